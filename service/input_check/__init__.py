"""`tidecast input check`: what a topic's newest records are, what a table makes of them, and a table for them."""
