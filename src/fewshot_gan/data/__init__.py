"""Pictures: files, tensors, sets of them, and grids."""
