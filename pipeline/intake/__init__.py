"""From an archive to stored features: list the images, extract them."""
