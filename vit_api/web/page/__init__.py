"""The web page at /: its static files and security headers."""
