"""What happens inside one task: plain functions and small classes on arrays. Imports no dask."""
