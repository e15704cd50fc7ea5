"""The live page: a process of its own that reads both topics and serves one page, for people to watch forecasts on."""
