"""What actors print, read from afar."""
