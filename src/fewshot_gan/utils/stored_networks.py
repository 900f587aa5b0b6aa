"""NVIDIA's network pickles, read without importing or running anything they name.

Such a file is a plain pickle of `{"G": …, "D": …, "G_ema": …}` whose networks include their own source code.
`untrusted` returns each network as inert data: class name, constructor arguments, attributes and tensors.
"""

import torch

from .conversion import ConversionError

MAX_DEPTH, MAX_MODULES = 32, 10_000  # per network


class Opaque:
    """Any other pickled object, as inert data: its constructor arguments and state."""

    __slots__ = ("args", "state")

    def __init__(self, args: tuple, state):
        self.args, self.state = args, state


class PersistentObject:
    """A pickled network or layer without its source code.

    Attributes:
        class_name: class name in the file.
        state: attributes, including `_parameters`, `_buffers` and `_modules`.
    """

    __slots__ = ("class_name", "state")

    def __init__(self, class_name: str, state: dict):
        self.class_name, self.state = class_name, state

    @property
    def init_kwargs(self) -> dict:
        kwargs = self.state.get("_init_kwargs")
        return kwargs if isinstance(kwargs, dict) else {}

    def modules(self) -> dict[str, dict]:
        """Return the attributes of this object (path `""`) and of every submodule, by path.

        Raises:
            ConversionError: there are too many modules, or one is damaged.
        """
        states, visits, pending = {}, 0, [("", self, 0)]
        while pending:
            path, module, depth = pending.pop()
            visits += 1  # count visits, not paths: two children may share a path
            if depth > MAX_DEPTH or visits > MAX_MODULES:
                raise ConversionError(
                    f"more than {MAX_MODULES} modules or {MAX_DEPTH} levels of them; the file is damaged"
                )
            states[path] = state = _dict(module.state, path or "state")
            children = _dict(state.get("_modules"), f"{path}._modules")
            pending += [
                (f"{path}.{name}".removeprefix("."), child, depth + 1)
                for name, child in reversed(children.items())
                if isinstance(child, (PersistentObject, Opaque))
            ]
        return states

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return parameters and buffers by path, e.g. `synthesis.b8.conv0.weight`."""
        tensors = {}
        for path, state in self.modules().items():
            for group in ("_parameters", "_buffers"):
                for name, value in _dict(state.get(group), f"{path}.{group}").items():
                    if isinstance(value, torch.Tensor):
                        tensors[f"{path}.{name}".removeprefix(".")] = value
        return tensors


def _dict(value, name: str) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConversionError(f"{name.strip('.')} of the network is not a dictionary; the file is damaged")
    return value
