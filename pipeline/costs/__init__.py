"""What a run costs, as formulas: bytes, tasks, memory, time."""
