"""The worker half: collects images from the slot table into batches and answers them."""
