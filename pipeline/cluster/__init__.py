"""The Dask cluster: workers, tasks in flight, progress."""
