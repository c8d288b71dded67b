"""The live views of a pool, in a terminal and in a browser: one model, one follower of the log, two faces."""
