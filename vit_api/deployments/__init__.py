"""The versions of models that a server runs: their list, their traffic, and what is kept of both."""
