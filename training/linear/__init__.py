"""Ridge regressions: the experts that the network is mixed with."""
