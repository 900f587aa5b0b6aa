"""What may be drawn from: the one check of latents that users, files and searches hand over."""

import torch


def check_latents(latents: torch.Tensor, dtype: torch.dtype = torch.float32, name: str = "latents") -> torch.Tensor:
    """Refuse what is no z `[N, z_dim]`, w `[N, w_dim]` or w+ `[N, num_ws, w_dim]`, or would draw noise.

    Args:
        latents: of any real dtype.
        dtype: that they are cast to before they are drawn.
        name: for messages.

    Returns:
        `latents`.

    Raises:
        ValueError: no tensor of real numbers, another number of dimensions, or a number that is NaN, infinite or too
            large for `dtype`.
    """
    if not isinstance(latents, torch.Tensor) or latents.ndim not in (2, 3):
        raise ValueError(f"{name} are a torch tensor: z [N, z_dim], w [N, w_dim] or w+ [N, num_ws, w_dim]")
    if latents.is_complex() or latents.dtype is torch.bool:
        raise ValueError(f"{name} are of {latents.dtype}; give real numbers, e.g. of torch.float32")
    finite = torch.isfinite(latents.to(dtype)).flatten(1).all(1)
    if not finite.all():
        row = int(finite.int().argmin())
        raise ValueError(
            f"{name}[{row}] has numbers that are NaN, infinite or beyond {dtype}, which would draw no picture; leave "
            "it out or make it anew"
        )
    return latents
