"""The language of Spoke: the domain model, the events, and the fold that turns a log into a state."""
