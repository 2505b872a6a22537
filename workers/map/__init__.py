"""The published map of Gaussians: writing it, reading it, scoring with it."""
