"""Check class labels against the classes of a network."""

import torch


def check_labels(labels: torch.Tensor | None, batch: int, num_classes: int | None) -> torch.Tensor | None:
    """Return checked int64 labels `[batch]`, or None for a network without classes.

    Labels may be None for a network of one class.

    Raises:
        ValueError: the labels are missing, not integers `[batch]`, out of range, or the network has no classes.
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
    if torch.compiler.is_compiling():  # a compiled network cannot read values; the pipeline has checked them
        return labels.long()
    if batch and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"class_labels from {int(labels.min())} to {int(labels.max())}: this network has {num_classes} classes, "
            f"give 0 to {num_classes - 1}"
        )
    return labels.long()


def start_from_w(latents: torch.Tensor | None, latent_space: str | None) -> bool:
    """Return whether `latents` are w or w+; if `latent_space` is None, 2 dimensions mean z and 3 mean w+."""
    return latents is not None and (latent_space or ("z" if latents.ndim == 2 else "w+")) != "z"


def labels_of_images(
    generator, labels, num_images: int, latents: torch.Tensor | None = None, latent_space: str | None = None
) -> torch.Tensor | None:
    """Return the class labels of images to generate.

    Args:
        generator: a generator, with or without `num_classes`.
        labels: one label for all images, one per image, or None.
        num_images: N.
        latents, latent_space: see `FewShotGAN.__call__`; None means a random z.

    Returns:
        int64 `[N]` on the CPU, or None for a generator without classes and for w and w+, which include the class.

    Raises:
        ValueError: labels are given for w or w+, or see `check_labels`.
    """
    classes = getattr(generator, "num_classes", None)
    if start_from_w(latents, latent_space) and classes is not None:
        if labels is not None:
            raise ValueError("class_labels belong to z; given w and w+ have their class in them, so leave them out")
        return None
    if labels is not None:
        labels = torch.as_tensor(labels).cpu()
        labels = labels.expand(num_images) if labels.ndim == 0 else labels
    return check_labels(labels, num_images, classes)


def one_hot(labels: torch.Tensor, num_classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Return `[B, num_classes]` for labels int64 `[B]`, with operations that every exporter supports."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(dtype)


def unlike_plain_styles(network) -> str | None:
    """Return "no styles" or "classes": what keeps a network from being a style-based one without classes; else None."""
    if not network.has_styles:
        return "no styles"
    return "classes" if getattr(network, "num_classes", None) else None


def refuse_classes(network, task: str) -> None:
    """Refuse a class-conditional network for a task that supports only unconditional StyleGAN2.

    Args:
        network: a generator or discriminator.
        task: subject of the error message.

    Raises:
        ValueError: `network` has classes.
    """
    if (classes := getattr(network, "num_classes", None)) is not None:
        raise ValueError(
            f"{task} needs a StyleGAN2 without classes, and this {type(network).__name__} has {classes}; take another "
            "base, e.g. 'ffhq'"
        )
