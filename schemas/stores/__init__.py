"""The layout of the Zarr stores of features and of Gaussian maps."""
