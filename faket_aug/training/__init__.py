"""Training a picker on tomograms that are simulated meanwhile: its classes, its validation, and what it shows."""
