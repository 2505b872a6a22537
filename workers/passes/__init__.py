"""The tasks of one pass over a group: from features, or from inner products."""
