"""Reference results: runs that are published, and the tables made from them."""
