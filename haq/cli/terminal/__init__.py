"""What commands show in a terminal: tables of runs and costs, and how far they are."""
