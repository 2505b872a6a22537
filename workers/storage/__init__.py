"""Files on disk and in object stores: complete writes, exact reads, plain errors."""
