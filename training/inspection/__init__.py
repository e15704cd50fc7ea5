"""The parts of `tidecast inspect`: read an unknown file, describe it, propose a config, draw plots."""
