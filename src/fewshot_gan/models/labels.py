"""Class labels: which ones a network takes, and what it refuses."""

import torch


def check_labels(labels: torch.Tensor | None, batch: int, num_classes: int | None) -> torch.Tensor | None:
    """Labels of a batch, or None of a network without classes.

    Raises:
        ValueError: they are missing, not wanted, of another length, or out of range.
    """
    if num_classes is None:
        if labels is not None:
            raise ValueError("this network knows no classes; leave class_labels out")
        return None
    if labels is None and num_classes == 1:
        return torch.zeros(batch, dtype=torch.long, device="cpu")
    if labels is None:
        raise ValueError(f"this network is class-conditional; give class_labels, one from 0 to {num_classes - 1} each")
    if labels.shape != (batch,) or labels.is_floating_point() or labels.dtype is torch.bool:
        raise ValueError(f"class_labels are whole numbers [{batch}], not {labels.dtype} {tuple(labels.shape)}")
    if torch.compiler.is_compiling():  # a compiled network cannot look at values; the pipeline has
        return labels.long()
    if batch and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"class_labels from {int(labels.min())} to {int(labels.max())}: this network has {num_classes} classes, "
            f"give 0 to {num_classes - 1}"
        )
    return labels.long()


def start_from_w(latents: torch.Tensor | None, latent_space: str | None) -> bool:
    """Whether given latents are w or w+; a `latent_space` of None takes two dimensions for z and three for w+."""
    return latents is not None and (latent_space or ("z" if latents.ndim == 2 else "w+")) != "z"


def labels_of_images(
    generator, labels, num_images: int, latents: torch.Tensor | None = None, latent_space: str | None = None
) -> torch.Tensor | None:
    """Class labels of pictures to draw.

    Args:
        generator: with or without `num_classes`.
        labels: one for all pictures, one per picture, or None.
        num_images: N.
        latents, latent_space: of the pictures, see `FewShotGAN.__call__`; None: z is drawn.

    Returns:
        int64 `[N]` on the CPU; None of a generator without classes, and of w and w+, which have their class in them.

    Raises:
        ValueError: as `check_labels`, or labels for w.
    """
    classes, given = getattr(generator, "num_classes", None), start_from_w(latents, latent_space)
    if given and classes is not None:
        if labels is not None:
            raise ValueError("class_labels belong to z; given w and w+ have their class in them, so leave them out")
        return None
    if labels is not None:
        labels = torch.as_tensor(labels).cpu()
        labels = labels.expand(num_images) if labels.ndim == 0 else labels
    return check_labels(labels, num_images, classes)


def one_hot(labels: torch.Tensor, num_classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Labels int64 `[B]` → `[B, num_classes]`; in terms that every exporter knows."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(dtype)


def refuse_classes(network, task: str) -> None:
    """Refuse what works on StyleGAN2 without classes alone.

    Raises:
        ValueError: `network` has classes.
    """
    if (classes := getattr(network, "num_classes", None)) is not None:
        raise ValueError(
            f"{task} needs a StyleGAN2 without classes, and this {type(network).__name__} has {classes}; take another "
            "base, e.g. 'ffhq'"
        )
