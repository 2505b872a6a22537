"""Records, file formats and errors: what every part of the system knows.

It imports neither dask nor torch, so a reader of a run directory needs this package alone.
"""
