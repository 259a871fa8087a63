"""What changes a network before it gets its bits."""
