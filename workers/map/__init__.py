"""The published map of Gaussians: written, read, used for scores."""
