"""``paire sheet``: one picture of what a run kept, rejected and found twice."""
