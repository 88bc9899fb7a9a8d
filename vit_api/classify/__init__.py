"""`python -m vit_api classify`: files and folders, by a server or in this process."""
