"""HTTP/1.1 on sockets: bytes of a connection to requests, and their answers back. Knows nothing of images."""
