"""The training side: data, augmentation, looks with a known truth, the loop. Generating imports none of it."""
