"""The records that a run keeps about itself: its inputs, its lease, its ledger."""
