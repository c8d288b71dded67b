"""The agent of a node: inventory, processes, supervision; and the runtime inside an actor's process."""
