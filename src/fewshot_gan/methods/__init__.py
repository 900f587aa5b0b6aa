"""Methods: why a generator changes. One paper per file: losses and steps, no files, no devices, no loop."""
