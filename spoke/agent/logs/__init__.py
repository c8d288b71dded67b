"""Actors' output on a node: written by the scribe, rotated, read on demand, and removed when its time is over."""
