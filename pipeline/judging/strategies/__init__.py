"""How the clean set is found, one strategy a file."""
