"""Records in, forecasts and dead letters out: no I/O, no clock. `pipeline.Pipeline.process` is the place to start."""
