"""Images and options of a training of two steps."""

import torch

IMAGES = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
FAST = ["--max_train_steps=2", "--train_batch_size=3", "--report_to=none", "--sample_steps=2", "--num_threads=1"]
