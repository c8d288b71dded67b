"""These tests need an RDMA device: `make test-rdma` gives them one, in a virtual machine, and sets SPOKE_TEST_RDMA."""

import os

if os.environ.get("SPOKE_TEST_RDMA") != "1":
    collect_ignore_glob = ["test_*.py"]
