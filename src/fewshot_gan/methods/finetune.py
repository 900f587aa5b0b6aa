"""Fine-tuning baselines: TransferGAN (arXiv 1805.01677) and FreezeD (arXiv 2002.10964).

Both are the shared objective alone: an adversarial loss from a discriminator that starts where the source's ended.
TransferGAN trains everything; FreezeD keeps the discriminator's lower layers (`freeze_d`).
"""

from .objective import Objective, ObjectiveConfig


class FinetuneConfig(ObjectiveConfig):
    """`ObjectiveConfig` as it is."""


class FinetuneObjective(Objective):
    """Plain adversarial fine-tuning."""
