"""From pixels to patch features, stored block by block."""
