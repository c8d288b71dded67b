"""What each event changes in the state: one small function an event, a file a subject; ``fold.py`` collects them."""
