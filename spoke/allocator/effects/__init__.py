"""Whom each event concerns, and what they are told: a small function an event, which ``outbox.py`` collects."""
