"""Measurements beside the peers, run with `./lab bench`. Nothing here is imported by the package."""
