"""Development scripts; each is a module to run from the repository's root."""
