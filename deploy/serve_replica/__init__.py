"""What a replica of Ray Serve consists of: our server as a child process, and what passes HTTP through to it."""
