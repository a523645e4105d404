"""The paper's experiment: train a picker on each kind of tomograms, and score all of them on the same measured one."""
