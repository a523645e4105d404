"""Measured tilt-series: reading them, finding the files beside them, aligning them."""
