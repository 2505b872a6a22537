"""The trust test: plant defects, find them again, count."""
