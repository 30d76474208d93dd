"""Trajectories from seeds, on diffusers schedulers. Knows nothing of quantization."""
