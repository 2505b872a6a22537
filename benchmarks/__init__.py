"""How fast and how large: ``python -m benchmarks NAME`` measures this machine."""
