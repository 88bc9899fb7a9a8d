"""The decision log: what was answered for each image, for those who have to account for it."""
