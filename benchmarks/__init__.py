"""Load tests that ship with the server; each is a module to run from the repository's root."""
