"""Programs over the library: the command line, sets of pictures, evaluation, export, the demo."""
