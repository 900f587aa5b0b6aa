"""Build modules on the meta device: shapes and dtypes without memory."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _ForceMeta(TorchFunctionMode):
    """Replace explicit `device=` arguments by "meta"."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return function(*args, **(kwargs | {"device": "meta"} if kwargs.get("device") is not None else kwargs))


@contextmanager
def on_meta():
    """Create all tensors of a `with` block on "meta", e.g. to check an untrusted config before allocating memory."""
    with torch.device("meta"), _ForceMeta():
        yield
