"""Integer products: the contract of each operation, and the kernels that keep it."""
