"""What `spoke run` is asked for: a job file, the options that go before it, and what comes of both."""
