"""From an upload to its prediction: hash, look up, join or compute. Knows nothing of HTTP."""
