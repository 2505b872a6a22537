"""``paire plan``: what a run would cost, from a sample."""
