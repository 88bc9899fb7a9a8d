"""What brings the server to where it runs."""
