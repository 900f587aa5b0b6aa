"""Pickles in NVIDIA's persistence format; the modules that they name are gone when they are read."""

import collections
import pickle
import sys
import types
from unittest import mock

import numpy as np
import torch


class EasyDict(dict):
    """Pickled as `dnnlib.util.EasyDict`."""


EasyDict.__module__ = "dnnlib.util"


def reconstruct(meta):
    raise AssertionError("the file's own reader was called")


reconstruct.__module__ = "torch_utils.persistence"
reconstruct.__name__ = reconstruct.__qualname__ = "_reconstruct_persistent_obj"


class Stored:
    """A network or layer of the file: its class's name, source and attributes."""

    def __init__(self, class_name, state, source="import torch  # never imported"):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self):
        return reconstruct, (self.meta,)


def of_module(module: torch.nn.Module, init_kwargs: dict | None = None) -> Stored:
    """A module and its children, with all their attributes, under the names of their classes."""
    children = {name: None if child is None else of_module(child) for name, child in module._modules.items()}
    own = {"_modules": children, "_init_args": (), "_init_kwargs": EasyDict(init_kwargs or {})}
    return Stored(type(module).__name__, {**vars(module), **own})


def tree(class_name, tensors, attributes, source, init_kwargs) -> Stored:
    """A network of named tensors, and of attributes by module path."""
    nodes = {"": {}}
    for key in [*tensors, *(f"{path}.x" for path in attributes if path)]:
        parts = key.split(".")
        for i in range(len(parts)):
            nodes.setdefault(".".join(parts[:i]), {})

    def build(path, name):
        own = {k[len(path) + 1 if path else 0 :]: v for k, v in tensors.items() if k.rpartition(".")[0] == path}
        fixed = ("resample_filter", "noise_const", "w_avg")
        children = [n for n in nodes if n and n.rpartition(".")[0] == path]
        state = {
            "training": False,
            "_parameters": collections.OrderedDict(
                (k, torch.nn.Parameter(v)) for k, v in own.items() if k not in fixed
            ),
            "_buffers": collections.OrderedDict((k, v) for k, v in own.items() if k in fixed),
            "_modules": collections.OrderedDict((n.rpartition(".")[2], build(n, "Layer")) for n in children),
            "_non_persistent_buffers_set": {"scratch"},
            "_forward_hooks": collections.OrderedDict(),
            "weight_gain": np.sqrt(0.5),
            "_init_args": (),
            "_init_kwargs": EasyDict(init_kwargs if not path else {}),
        }
        return Stored(name, state | attributes.get(path, {}), source)

    return build("", class_name)


def write(path, data, protocol=4):
    """Pickle `data`, a network or what holds some, to `path`."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    with mock.patch.dict(sys.modules, {name: types.ModuleType(name) for name in names}):
        sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
        sys.modules["dnnlib.util"].EasyDict = EasyDict
        path.write_bytes(pickle.dumps(data, protocol=protocol))
    assert "torch_utils" not in sys.modules and "dnnlib" not in sys.modules
    return path
