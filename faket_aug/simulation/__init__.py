"""From a specimen to a tilt-series and a tomogram: simulated, saved, fitted."""
