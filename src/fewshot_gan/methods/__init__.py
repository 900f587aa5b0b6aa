"""Methods of few-shot adaptation: losses and their weights, one paper per file. The training loop is in `training`."""
