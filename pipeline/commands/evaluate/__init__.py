"""``paire evaluate``: a result against true labels."""
