"""What a microscope does to clean tilts: transfer function, noise, response, damage, detector, and their fits."""
