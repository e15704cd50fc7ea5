"""The rooms of `tidecast inspect`: read a file that nothing is known of, judge it, propose a config, draw it."""
