"""The allocator: decides requests, commits events, and is the only one to do so in its pool."""
