"""The page at /: its static files and their security headers."""
