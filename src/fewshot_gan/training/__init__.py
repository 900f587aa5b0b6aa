"""Training: runs, augmentation, looks whose true pictures are known. Drawing pictures imports nothing of it."""
