"""Check latents from users, files and searches."""

import torch


def check_latents(latents: torch.Tensor, dtype: torch.dtype = torch.float32, name: str = "latents") -> torch.Tensor:
    """Return `latents` if they are finite and have the shape of z, w or w+.

    Args:
        latents: z `[N, z_dim]`, w `[N, w_dim]` or w+ `[N, num_ws, w_dim]`, of any real dtype.
        dtype: dtype that the generator casts them to.
        name: name of the latents in error messages.

    Returns:
        `latents`.

    Raises:
        ValueError: not a tensor of real numbers, wrong number of dimensions, or a value that is NaN, infinite or too
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
