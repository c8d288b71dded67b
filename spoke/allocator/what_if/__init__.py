"""What another policy would have made of a log: the recorded requests, decided again in simulated time."""
