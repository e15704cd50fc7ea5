"""The service's commands, one module each, with `HELP`, `EXAMPLE`, `configure(parser)` and `run(args)`.

`tidecast.service.cli` imports only the one that is asked for.
"""
