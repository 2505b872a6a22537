"""Whether a result can be trusted: contamination, structure, findings in words."""
