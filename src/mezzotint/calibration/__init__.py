"""Record trajectories, select the samples that calibrate (TDAC), plan the grids and fit their ranges."""
