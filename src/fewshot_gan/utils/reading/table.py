"""Flatten the contents of a file to a list of nodes and a list of data blocks, for JSON.

A node is `[kind, …]` and refers only to earlier nodes. The list can therefore be read without recursion, shared values
stay shared, and values that contain themselves are refused. In a node, a scalar stands for itself and `[i]` for node i.
"""

from typing import NamedTuple

from . import Refused
from .sources import GROWTH, SPARE, FileContents
from .stand_ins import ITEM_SIZES, Array, Namespace, Network, Opaque, View

MAX_NODES, MAX_LEVELS = 500_000, 200
SHORT = 64  # characters of a text that counts as a scalar; a longer one becomes a node


class Table(NamedTuple):
    """The flattened contents of a file.

    Attributes:
        kind: see `FileContents`.
        nodes: the values.
        root: the outermost value: a scalar or `[i]`.
        blocks: tensor data: `sources.Block`, bytes or memoryview.
        sizes: bytes per block.
    """

    kind: str
    nodes: list
    root: object
    blocks: list
    sizes: list[int]


def flatten(contents: FileContents, file_size: int) -> Table:
    """Return the table of the contents of a file of `file_size` bytes.

    Raises:
        Refused: a value contains itself, there are too many values or levels, or more data than the file can hold.
    """
    if contents.kind in ("ir", "unknown"):
        blocks = contents.value or []
        return Table(contents.kind, [], None, blocks, [block.size for block in blocks])
    nodes, levels, index_of, blocks = [], [], {}, _Blocks(SPARE + GROWTH * file_size)
    pending, ancestors = [(contents.value, False)], set()

    def refer(value):
        return value if _is_scalar(value) else [index_of[id(value)]]

    while pending:
        value, children_done = pending.pop()
        if _is_scalar(value) or id(value) in index_of:
            continue
        children = [child for child in _children(value) if not _is_scalar(child)]
        if not children_done:
            if id(value) in ancestors:
                raise Refused("a value in it contains itself")
            ancestors.add(id(value))
            pending += [(value, True), *((child, False) for child in children)]
            continue
        ancestors.discard(id(value))
        levels.append(1 + max((levels[index_of[id(child)]] for child in children), default=0))
        if levels[-1] > MAX_LEVELS or len(nodes) >= MAX_NODES:
            raise Refused(f"it has more than {MAX_NODES:,} values or {MAX_LEVELS} levels of them")
        index_of[id(value)] = len(nodes)
        nodes.append(_node(value, refer, blocks))
    return Table(contents.kind, nodes, refer(contents.value), blocks.blocks, blocks.sizes)


class _Blocks:
    """Number the data blocks, each once, and limit their total size."""

    def __init__(self, allowed: int):
        self.blocks, self.sizes, self.left, self.allowed, self.index_of = [], [], allowed, allowed, {}

    def index(self, block) -> int:
        if id(block) not in self.index_of:
            size = len(block) if isinstance(block, bytes | bytearray | memoryview) else block.size
            self.left -= size
            if self.left < 0:
                raise Refused(f"its tensors have more than {self.allowed:,} bytes together")
            self.index_of[id(block)] = len(self.blocks)
            self.blocks.append(block)
            self.sizes.append(size)
        return self.index_of[id(block)]


def _is_scalar(value) -> bool:
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= SHORT)


def _children(value):
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        return value
    if isinstance(value, Network):
        return [value.class_name, value.state]
    if isinstance(value, Opaque) and not isinstance(value, Array):
        return [value.args, value.state]
    return ()


def _node(value, refer, blocks: _Blocks) -> list:
    if isinstance(value, Array):
        value = value.view
    if isinstance(value, View):
        storage, item = value.storage, ITEM_SIZES[value.dtype]
        begin = storage.begin * ITEM_SIZES.get(storage.dtype, 1) + value.offset * item
        if begin % item:
            raise Refused("a tensor begins in the middle of a number")
        return ["tensor", blocks.index(storage.block), value.dtype, begin // item, value.size, value.stride]
    if isinstance(value, dict):
        return ["dict", [[refer(key), refer(item)] for key, item in value.items()]]
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return [kind.__name__, [refer(item) for item in value]]
    if isinstance(value, str):
        return ["text", value]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.decode("latin1")]
    if isinstance(value, Network):
        return ["network", refer(value.class_name), refer(value.state)]
    if isinstance(value, Opaque):
        return ["namespace" if isinstance(value, Namespace) else "opaque", refer(value.args), refer(value.state)]
    return ["nothing"]
