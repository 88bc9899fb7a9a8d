"""What is remembered of uploads: in an HTTP process, and in Redis for several servers."""
