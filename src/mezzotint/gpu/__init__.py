"""A quantized network on an NVIDIA GPU: traced, told in channels-last rows, fused, and run as one CUDA graph."""
