"""Clients: sessions, gangs, handles. The public names are in the package ``spoke``."""
