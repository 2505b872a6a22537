"""The Zarr stores: the layout of the features and of the Gaussian map."""
