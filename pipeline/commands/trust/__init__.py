"""``paire trust``: which defects a finished run would have caught."""
