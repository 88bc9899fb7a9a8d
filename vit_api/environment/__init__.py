"""What the server finds where it runs: cores, memory, devices, writable folders, the platform's variables."""
