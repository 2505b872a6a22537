"""From stored features to verdicts: passes, strategies, evidence, manifest."""
