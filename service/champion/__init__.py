"""Which model of a group answers: the test of a shadow against the champion, and the log of the decisions."""
