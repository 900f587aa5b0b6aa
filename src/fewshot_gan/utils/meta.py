"""Modules without memory: only the shapes and dtypes of their tensors."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _Redirect(TorchFunctionMode):
    """Also what names its device is made on "meta"."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return function(*args, **(kwargs | {"device": "meta"} if kwargs.get("device") is not None else kwargs))


@contextmanager
def without_memory():
    """What is built inside the `with` block, by a config of strangers for example, allocates nothing."""
    with torch.device("meta"), _Redirect():
        yield
