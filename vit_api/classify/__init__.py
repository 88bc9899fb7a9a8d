"""`python -m vit_api classify`: classifies image files and folders, on a server or in this process."""
