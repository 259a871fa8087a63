"""HAQ-Bench: thousands of evaluated policies of a network, and the environment that plays them.

It needs neither torch nor data, so an episode takes milliseconds; ``docs/bench.md`` says how.
"""
