"""What the processes of a server share, and what they tell each other when models are loaded and unloaded."""
