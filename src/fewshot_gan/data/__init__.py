"""Images: reading files, folders and archives, conversion to tensors, grids."""
