"""The run directory: who owns it, what is finished, what is published."""
