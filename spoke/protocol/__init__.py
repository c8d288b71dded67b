"""What crosses Redis between clients, allocator and agents: keys, requests, orders, replies, leases."""
