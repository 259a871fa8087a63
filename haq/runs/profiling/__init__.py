"""``haq profile``: measure a network on this machine, and write what a search needs to know."""
