"""The server's processes: what each does at its start and end, and who keeps them alive."""
