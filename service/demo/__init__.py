"""The demonstration: `run` starts and ends everything, `scoreboard` keeps count, `display` shows it."""
