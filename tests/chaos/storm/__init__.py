"""The storm: a pool of real processes in network namespaces, under load, with faults at random from a seed."""
