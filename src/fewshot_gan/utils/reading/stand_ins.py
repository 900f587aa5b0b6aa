"""Inert stand-ins for the classes and functions that a pickle names, looked up in one table.

NVIDIA's files contain source code, others name classes to import. Here nothing is imported and nothing runs: a name
outside the table is refused, and source text is ignored. Tensors and NumPy arrays become a `View` of a `Storage`, whose
data is not read yet; each view is checked against the size of its storage.
"""

import math
import pickle
import struct
from contextvars import ContextVar

from . import HoldsCode, Refused

MAX_COPIES = 4_000_000  # values that unpickling a file may copy between containers
copies: ContextVar[list[int]] = ContextVar("copies")  # [number so far] for the current file
ITEM_SIZES = {  # torch's name of a dtype: bytes per value
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "bool": 1, "uint8": 1, "int8": 1},
    **{"int16": 2, "int32": 4, "int64": 8, "uint16": 2, "uint32": 4, "uint64": 8},
}
_COMPLEX = {"complex32", "complex64", "complex128"}
_NUMPY = {  # NumPy's name of a dtype: (torch's, struct's)
    "f8": ("float64", "d"),
    "f4": ("float32", "f"),
    "f2": ("float16", "e"),
    "i8": ("int64", "q"),
    "i4": ("int32", "i"),
    "i2": ("int16", "h"),
    "i1": ("int8", "b"),
    "u8": ("uint64", "Q"),
    "u4": ("uint32", "I"),
    "u2": ("uint16", "H"),
    "u1": ("uint8", "B"),
    "b1": ("bool", "?"),
}
_STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"},
    **{"ComplexDouble": "complex128", "ComplexFloat": "complex64"},
}


class Function:
    """A function that a pickle may call.

    Pickle's BUILD opcode sets attributes on any object without `__setstate__`, so every stand-in defines one.
    """

    def __init__(self, call):
        self._call = call

    def __call__(self, *args):
        return self._call(*args)

    def __setstate__(self, state):
        raise Refused("it tries to alter its reader; nothing was executed")


class Opaque:
    """Any object that conversion does not need: keeps arguments and state, and does nothing."""

    __slots__ = ("args", "state")

    def __new__(cls, *args):  # pickle's NEWOBJ calls no __init__
        self = super().__new__(cls)
        self.args, self.state = args, {}
        return self

    def __setstate__(self, state):
        self.state = state


class Namespace(Opaque):
    """Stand-in for argparse.Namespace, a command line."""

    __slots__ = ()


class Mapping(dict):
    """Stand-in for OrderedDict, Counter and EasyDict."""

    __slots__ = ()

    def __init__(self, items=()):
        _count(len(items))
        super().__init__(items)
        if any(not isinstance(key, str | int | float | None) for key in self):
            raise Refused("a dictionary has keys that are neither text nor numbers")

    def __setstate__(self, state):  # attributes besides the items: none are needed
        pass


class Network:
    """Stand-in for NVIDIA's persistent object, without its source code."""

    __slots__ = ("class_name", "state")

    def __init__(self, class_name: str, state: dict):
        self.class_name, self.state = class_name, state

    def __setstate__(self, state):
        raise Refused("it tries to alter a network after building it; nothing was executed")


class Storage:
    """A range of values in a file that was not read yet.

    Attributes:
        block: where the data is: a `sources.Block`, bytes or a memoryview.
        dtype: torch's name of the dtype.
        begin: index of the first value in `block`.
        numel: number of values.
    """

    __slots__ = ("block", "dtype", "begin", "numel")

    def __init__(self, block, dtype: str, begin: int, numel: int):
        self.block, self.dtype, self.begin, self.numel = block, dtype, begin, numel

    def __setstate__(self, state):
        raise Refused("it tries to alter a storage after building it; nothing was executed")


class View:
    """A tensor: a view of `storage`; `offset`, `size` and `stride` count values."""

    __slots__ = ("storage", "dtype", "offset", "size", "stride")

    def __init__(self, storage: Storage, dtype: str, offset: int, size, stride):
        size, stride = tuple(size), tuple(stride)
        integers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 8 or not all(type(n) is int and n >= 0 for n in integers):
            raise Refused("a tensor has no size and stride of whole numbers")
        if dtype in _COMPLEX:
            raise Refused(f"a tensor of shape {size} has complex numbers ({dtype}); weights are real")
        if dtype not in ITEM_SIZES:
            raise Refused(f"a tensor of shape {size} has numbers of the unknown type {str(dtype)[:40]}")
        whole = storage.numel * ITEM_SIZES.get(storage.dtype, 1) // ITEM_SIZES[dtype]
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
        if math.prod(size) > whole or (math.prod(size) and last > whole):
            raise Refused(f"a tensor of shape {size} does not fit its storage of {whole:,} numbers")
        self.storage, self.dtype, self.offset, self.size, self.stride = storage, dtype, offset, size, stride

    def __setstate__(self, state):
        pass  # attributes of a parameter: none are needed


class Array(Opaque):
    """Stand-in for numpy.ndarray; `view` is its tensor, or None for an array of objects or text."""

    __slots__ = ()

    @property
    def view(self) -> View | None:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, fortran, data = self.state
        return _numbers(data, dtype, shape, fortran)


class StorageType:
    """Stand-in for torch.FloatStorage and similar classes."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str):
        self.dtype = dtype

    def __setstate__(self, state):
        raise Refused("it tries to alter its reader; nothing was executed")


def _count(number: int) -> None:
    so_far = copies.get()
    so_far[0] += number
    if so_far[0] > MAX_COPIES:
        raise Refused(f"it has more than {MAX_COPIES:,} values copied")


def _set(items=()):
    _count(len(items))
    if any(not isinstance(item, str | int | float) for item in items):
        raise Refused("a set holds other things than text and numbers")
    return set(items)


def _size(items=()):
    if len(items) > 64 or any(type(item) is not int for item in items):
        raise Refused("a tensor's size in it is not made of whole numbers")
    return tuple(items)


def _persistent(meta):
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
        raise Refused("a network in it is not stored as a persistent class")
    name = meta.get("class_name")
    return Network(name if isinstance(name, str) else "", meta["state"])


def _tensor(storage, offset, size, stride, *more):
    if not isinstance(storage, Storage):
        raise Refused("a tensor has no storage")
    return View(storage, storage.dtype, offset, size, stride)


def _tensor_of_dtype(storage, offset, size, stride, requires_grad, hooks, dtype, *more):
    if not isinstance(storage, Storage) or not isinstance(dtype, str):
        raise Refused("a tensor has no storage or type")
    return View(storage, dtype.removeprefix("torch."), offset, size, stride)


def _with_attributes(rebuild, kind, args, state):
    if not isinstance(rebuild, Function):
        raise Refused("a tensor with attributes is not built as torch builds tensors")
    return rebuild(*args)


def _encode(text, encoding):  # how protocol 2 stores bytes
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("bytes in it are not stored as pickle stores them")
    return text.encode("latin1")


def _kind(dtype) -> tuple[str, str] | None:
    """Return torch's and struct's names of a numpy.dtype, or None for text, objects and similar dtypes."""
    if not isinstance(dtype, Opaque) or not dtype.args or not isinstance(dtype.args[0], str):
        return None
    if isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">":
        raise Refused("NumPy's numbers in it have the byte order of other machines")
    return _NUMPY.get(dtype.args[0])


def _scalar(dtype, data=b""):
    kind = _kind(dtype)
    return None if kind is None else struct.unpack("<" + kind[1], data)[0]


def _numbers(data, dtype, shape, fortran) -> View | None:
    if (kind := _kind(dtype)) is None or not isinstance(data, bytes | bytearray):
        return None
    name, shape = kind[0], tuple(shape)
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * ITEM_SIZES[name] != len(data):
        raise Refused(f"a NumPy array of shape {shape} does not fit its {len(data):,} bytes")
    order = range(len(shape)) if fortran else range(len(shape) - 1, -1, -1)
    stride, step = [0] * len(shape), 1
    for axis in order:
        stride[axis], step = step, step * shape[axis]
    return View(Storage(data, name, 0, math.prod(shape)), name, 0, shape, stride)


def _buffer(data, dtype, shape, order="C"):
    return _numbers(data, dtype, shape, order == "F")


TENSORS = {  # names in a file of torch.save
    "torch._utils._rebuild_tensor": Function(_tensor),
    "torch._utils._rebuild_tensor_v2": Function(_tensor),
    "torch._utils._rebuild_tensor_v3": Function(_tensor_of_dtype),
    "torch._utils._rebuild_parameter": Function(lambda data, *more: data),
    "torch._utils._rebuild_parameter_with_state": Function(lambda data, *more: data),
    "torch._tensor._rebuild_from_type_v2": Function(_with_attributes),
    "torch.Size": Function(_size),
    "torch.device": Opaque,
    "torch.Tensor": StorageType("tensor"),
    "torch.nn.parameter.Parameter": StorageType("tensor"),
    "torch.storage.UntypedStorage": StorageType("uint8"),
    "argparse.Namespace": Namespace,  # the command line of a training script
    "collections.OrderedDict": Mapping,
    "collections.Counter": Mapping,
    "builtins.set": Function(_set),
    "__builtin__.set": Function(_set),
    "_codecs.encode": Function(_encode),
    "builtins.bytes": Function(lambda: b""),  # how protocol 2 stores none
    "__builtin__.bytes": Function(lambda: b""),
    "numpy.dtype": Opaque,
    "numpy.ndarray": Array,
    **{f"torch.{name}": f"torch.{name}" for name in (*ITEM_SIZES, *_COMPLEX)},
    **{f"torch.{name}Storage": StorageType(dtype) for name, dtype in _STORAGES.items()},
}
for _module in ("numpy.core", "numpy._core"):
    TENSORS[f"{_module}.multiarray.scalar"] = Function(_scalar)
    TENSORS[f"{_module}.multiarray._reconstruct"] = Function(lambda kind=None, *more: Array())
    TENSORS[f"{_module}.numeric._frombuffer"] = Function(_buffer)
NETWORKS = TENSORS | {  # further names in NVIDIA's pickles; `sources` adds `torch.storage._load_from_bytes`
    "torch_utils.persistence._reconstruct_persistent_obj": Function(_persistent),
    "torch.nn.modules.module.Module": Opaque,
    "torch.nn.modules.container.ModuleDict": Opaque,
    "torch.nn.modules.container.ModuleList": Opaque,
    "torch.nn.modules.container.Sequential": Opaque,
    "dnnlib.EasyDict": Mapping,
    "dnnlib.util.EasyDict": Mapping,
}


class Unpickler(pickle.Unpickler):
    """Load a checked pickle with stand-ins.

    Args:
        file: a binary file at the beginning of the pickle.
        table: name → stand-in.
        storage: function that turns a persistent id into a `Storage`, or None to refuse persistent ids.
    """

    def __init__(self, file, table: dict, storage=None):
        super().__init__(file)
        self._table, self._storage = table, storage

    def find_class(self, module, name):
        full = f"{module}.{name}"
        if full in self._table:
            return self._table[full]
        full = full[:100]
        if module.startswith("dnnlib.tflib"):
            raise Refused(
                f"it names {full}: a TensorFlow network; nothing was executed. "
                "Convert it to the PyTorch format first, with legacy.py of stylegan2-ada-pytorch"
            )
        if self._storage is None:
            raise Refused(f"it names {full}, which no StyleGAN2 network needs; nothing was executed")
        if full.startswith(("torch._utils._rebuild_", "torch.Q")):
            raise Refused(f"it names {full}: a tensor that is sparse, quantised or nested; weights are plain numbers")
        raise HoldsCode(
            f"it names {full}, so it holds code, such as a whole pickled network, besides tensors; nothing was "
            "executed. Only a file of the networks' state_dict() can be converted"
        )

    def persistent_load(self, pid):
        if self._storage is None:
            raise Refused("it refers to data outside itself; nothing was executed")
        return self._storage(pid)
