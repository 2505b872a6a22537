"""What is true: records, file formats and errors, known to every part of the system.

Imports neither dask nor torch, so any consumer of a run directory can read it with this package alone.
"""
