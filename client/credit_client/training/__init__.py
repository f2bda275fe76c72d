"""Local training under differential privacy; the only door to opacus."""
