"""From distances to a verdict: thresholds, scores, the clean set."""
