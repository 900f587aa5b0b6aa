"""What every room uses and none owns: files, errors. Imports nothing else of the package."""
