"""What is shown of finished runs: pages, charts, tables."""
