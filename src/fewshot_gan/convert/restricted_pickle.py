"""Read NVIDIA's network pickles without importing or running anything they name.

Such a file is a plain pickle of `{"G": …, "D": …, "G_ema": …}` whose networks carry their own source code. Here every
name in the file is looked up in one table of inert stand-ins; a name outside it ends the reading. The source text is
dropped unread, so a network comes back as what it is made of: class name, constructor arguments, attributes, tensors.
"""

import io
import pickle
import struct
from pathlib import Path

import torch

from .report import ConversionError

MAX_DEPTH, MAX_MODULES = 32, 10_000  # of a network


class _Function:
    """A stand-in that pickle may call, and nothing else.

    Pickle's BUILD sets attributes on anything that has no `__setstate__`: so every stand-in has one.
    """

    def __init__(self, call):
        self._call = call

    def __call__(self, *args):
        return self._call(*args)

    def __setstate__(self, state):
        raise ConversionError("the file tries to alter its reader; refused, nothing was executed")


class Opaque:
    """An object of no interest: arguments and state are kept, nothing happens."""

    __slots__ = ("args", "state")

    def __new__(cls, *args):  # pickle's NEWOBJ calls no __init__
        self = super().__new__(cls)
        self.args, self.state = args, {}
        return self

    def __setstate__(self, state):
        self.state = state


class Mapping(dict):
    """Stands for EasyDict and OrderedDict."""

    __slots__ = ()

    def __setstate__(self, state):  # attributes besides the items: none are needed
        pass


class PersistentObject:
    """A network or layer as stored: nothing of its source code.

    Attributes:
        class_name: as the file gives it.
        state: attributes, among them `_parameters`, `_buffers` and `_modules`.
    """

    __slots__ = ("class_name", "state")

    def __init__(self, class_name: str, state: dict):
        self.class_name, self.state = class_name, state

    def __setstate__(self, state):
        raise ConversionError("the file tries to alter a network after building it; refused, nothing was executed")

    @property
    def init_kwargs(self) -> dict:
        kwargs = self.state.get("_init_kwargs")
        return kwargs if isinstance(kwargs, dict) else {}

    def modules(self) -> dict[str, dict]:
        """Attributes of this object (`""`) and of every module below it, by path."""
        found = {}
        _walk(self, "", found, 0)
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by path, e.g. `synthesis.b8.conv0.weight`."""
        named = {}
        for path, state in self.modules().items():
            for group in ("_parameters", "_buffers"):
                for name, value in _dict(state.get(group), f"{path}.{group}").items():
                    if isinstance(value, torch.Tensor):
                        named[f"{path}.{name}".removeprefix(".")] = value
        return named


def _dict(value, name: str) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConversionError(f"{name.strip('.')} of the network is not a dictionary; the file is damaged")
    return value


def _walk(module, path, found, depth):
    if depth > MAX_DEPTH or len(found) > MAX_MODULES:
        raise ConversionError(f"more than {MAX_MODULES} modules or {MAX_DEPTH} levels of them; the file is damaged")
    state = _dict(module.state, path or "state")
    found[path] = state
    for name, child in _dict(state.get("_modules"), f"{path}._modules").items():
        if isinstance(child, (PersistentObject, Opaque)):
            _walk(child, f"{path}.{name}".removeprefix("."), found, depth + 1)


def _persistent(meta):
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
        raise ConversionError("a network in the file is not stored as a persistent class; the file is damaged")
    return PersistentObject(str(meta.get("class_name")), meta["state"])


def _storage(data):
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, (torch.storage.TypedStorage, torch.UntypedStorage)):
        raise ConversionError(f"expected a tensor storage in the file, found {type(storage).__name__}")
    return storage


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    dtype = getattr(storage, "dtype", torch.uint8)
    flat = torch.empty(0, dtype=dtype, device="cpu").set_(storage)
    tensor = flat.as_strided(tuple(size), tuple(stride), offset)  # raises when it reaches beyond the storage
    if tensor.numel() > flat.numel():
        raise ConversionError(f"a tensor of shape {tuple(size)} does not fit its storage of {flat.numel()} numbers")
    return tensor


def _parameter(data, requires_grad=True, hooks=None):
    return data


_SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "u8": "Q", "u4": "I", "b1": "?"}


def _numpy_scalar(dtype, data=b""):
    code = _SCALARS.get(dtype.args[0]) if isinstance(dtype, Opaque) and dtype.args else None
    return Opaque(dtype, data) if code is None else struct.unpack("<" + code, data)[0]


_STAND_INS = {
    "torch_utils.persistence._reconstruct_persistent_obj": _Function(_persistent),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    "torch.storage._load_from_bytes": _Function(_storage),
    "torch.Size": _Function(lambda size=(): tuple(size)),
    "torch.device": Opaque,
    "torch.nn.modules.module.Module": Opaque,
    "torch.nn.modules.container.ModuleDict": Opaque,
    "torch.nn.modules.container.ModuleList": Opaque,
    "torch.nn.modules.container.Sequential": Opaque,
    "collections.OrderedDict": Mapping,
    "dnnlib.EasyDict": Mapping,
    "dnnlib.util.EasyDict": Mapping,
    "builtins.set": _Function(lambda items=(): set(items)),
    "__builtin__.set": _Function(lambda items=(): set(items)),
    "numpy.dtype": Opaque,
    "numpy.ndarray": Opaque,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _STAND_INS[f"{_module}.scalar"] = _Function(_numpy_scalar)
    _STAND_INS[f"{_module}._reconstruct"] = _Function(Opaque)
for _dtype in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool"):
    _STAND_INS[f"torch.{_dtype}"] = f"torch.{_dtype}"


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        full = f"{module}.{name}"
        if full in _STAND_INS:
            return _STAND_INS[full]
        if module.startswith("dnnlib.tflib"):
            raise ConversionError(
                f"the file names {full}: a TensorFlow network; refused, nothing was executed. "
                "Convert it to the PyTorch format first, with legacy.py of stylegan2-ada-pytorch"
            )
        raise ConversionError(f"the file names {full}, which no StyleGAN2 network needs; refused, nothing was executed")

    def persistent_load(self, pid):
        raise ConversionError("the file refers to data outside itself; refused, nothing was executed")


def load(path: str | Path):
    """Read a pickle of persistent networks.

    Args:
        path: the `.pkl` file.

    Returns:
        What the file holds, usually a dict; networks are `PersistentObject`s, tensors are on the CPU.

    Raises:
        ConversionError: the file names something outside the table, or is damaged or cut short.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except (ConversionError, OSError):
        raise
    except Exception as error:  # whatever a damaged pickle makes of our stand-ins
        raise ConversionError(f"{path.name} is damaged or cut short ({error}); download it again") from error
