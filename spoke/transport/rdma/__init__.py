"""Data over RDMA: reliable-connected queue pairs by pyverbs, which is imported only when a device is opened."""
