"""Process lifecycle: start, restart, shutdown, and recovery of a dead worker's images."""
