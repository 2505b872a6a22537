"""The records that a run keeps of itself: what was read, who is at work, whether the books balance."""
