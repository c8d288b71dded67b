"""The client for programs with threads: what is asked returns a future."""
