"""The queue: who is next, who may overtake, who must make room. Pure functions of the state and the server's time."""
