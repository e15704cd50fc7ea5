"""The live page: a process that reads both topics and serves a web page with readings and forecasts."""
