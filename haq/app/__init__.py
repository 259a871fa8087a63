"""The front doors: what a user asks for, how it runs, where its results lie."""
