"""The public face of the package."""
