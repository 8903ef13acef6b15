"""A service over HTTP for the folders that `save_pretrained` writes."""
