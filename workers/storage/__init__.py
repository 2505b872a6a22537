"""Files on disk and in object stores: whole writes, exact reads, plain errors."""
