"""The commands behind the figures in ``docs/``; neither installed nor collected by pytest."""
