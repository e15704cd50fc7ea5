"""The demo: `run` starts and stops everything, `scoreboard` computes the errors, `display` shows them."""
