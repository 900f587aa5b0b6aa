"""Read the graph of an OpenVINO IR with the standard library: layers with types, constants and neighbours.

OpenVINO itself would try its readers of other formats on a damaged file, in C++ in this process.
"""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from ..utils.regular_files import read_regular
from ..utils.text import in_short
from .report import ConversionError

MAX_XML, MAX_BIN, MAX_LAYERS = 8 * 2**20, 2**30, 5_000  # the published networks have 0.4 MB, 32 MB, 1,000
MAX_RESHAPES, SPARE = 8, 2**20
_RESHAPES = {"Reshape", "Unsqueeze", "Squeeze", "Convert"}  # of a constant: the values stay the same
_DTYPES = {
    **{"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16},
    **{"i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8},
}


class Node:
    """A layer of the graph.

    Attributes:
        name, kind: name and type in the file; the type of a constant is "Const".
        attributes: attributes of its `data` element.
        shape: shape of its first output.
        inputs: nodes connected to its input ports, in order.
        consumers: nodes that use its outputs.
    """

    def __init__(self, name: str, kind: str, attributes: dict[str, str], shape: list[int], numbers: bytearray):
        self.name, self.kind, self.attributes, self.shape, self._numbers = name, kind, attributes, shape, numbers
        self.inputs: list[Node] = []
        self.consumers: list[Node] = []
        self._value: torch.Tensor | None = None

    def constant(self) -> torch.Tensor | None:
        """Return the float32 values of a constant or a reshaped constant; None for layers that compute.

        Raises:
            ConversionError: the values do not fit the file.
        """
        node = self
        for _ in range(MAX_RESHAPES):
            if node.kind not in _RESHAPES or not node.inputs:
                break
            node = node.inputs[0]
        value = node.stored()
        if value is not None and node is not self:
            if math.prod(self.shape) != value.numel():
                raise ConversionError(f"{self.name} of shape {self.shape} does not fit its {value.numel()} numbers")
            value = value.reshape(self.shape)
        return value

    def stored(self) -> torch.Tensor | None:
        """Return the float32 values of a constant, cached; None for other layers.

        Raises:
            ConversionError: the values do not fit the file.
        """
        if self._value is None:
            self._value = self._read()
        return self._value

    def _read(self) -> torch.Tensor | None:
        if self.kind != "Const" or (dtype := _DTYPES.get(self.attributes.get("element_type", ""))) is None:
            return None
        try:
            shape = [int(size) for size in self.attributes.get("shape", "").split(",") if size.strip()]
            offset, size = int(self.attributes["offset"]), int(self.attributes["size"])
        except (KeyError, ValueError) as error:
            raise ConversionError(f"{self.name} has no shape and place; the .xml file is damaged") from error
        fits = min([offset, size, *shape]) >= 0 and math.prod(shape) * dtype.itemsize == size
        if not fits or offset + size > len(self._numbers):
            raise ConversionError(
                f"{self.name} of shape {shape} takes {size:,} bytes from {offset:,} on, and the .bin file has "
                f"{len(self._numbers):,}; one of the two is damaged or of another network"
            )
        numbers = torch.frombuffer(self._numbers[offset : offset + size] or bytearray(dtype.itemsize), dtype=dtype)
        return numbers[: math.prod(shape)].reshape(shape).float()


def read_graph(xml: Path) -> list[Node]:
    """Return the layers of `NAME.xml`, whose values are in `NAME.bin`, in the order of the file.

    Raises:
        ConversionError: a file is too large, damaged, or not an IR.
        FileNotFoundError: one of the two files is missing.
    """
    try:
        text, numbers = read_regular(xml, MAX_XML), bytearray(read_regular(xml.with_suffix(".bin"), MAX_BIN))
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise ValueError("it declares entities")
        root = ElementTree.fromstring(text)
        layers = root.findall("./layers/layer")
        if root.tag != "net" or not 0 < len(layers) <= MAX_LAYERS:
            raise ValueError(f"it has {len(layers):,} layers of a net; 1 to {MAX_LAYERS:,} are read")
        nodes = {layer.attrib["id"]: _node(layer, numbers) for layer in layers}
        ports = {layer.attrib["id"]: [p.attrib["id"] for p in layer.findall("./input/port")] for layer in layers}
        links = {}
        for edge in root.findall("./edges/edge"):
            source, target = nodes[edge.attrib["from-layer"]], nodes[edge.attrib["to-layer"]]
            links[edge.attrib["to-layer"], edge.attrib["to-port"]] = source
            source.consumers.append(target)
        for key, node in nodes.items():
            node.inputs = [links[key, port] for port in ports[key] if (key, port) in links]
        stored = sum(int(node.attributes.get("size", 0)) for node in nodes.values() if node.kind == "Const")
        if stored > 2 * len(numbers) + SPARE:  # some constants lie in one place
            raise ValueError(f"its constants take {stored:,} bytes, and the .bin file has {len(numbers):,}")
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise ConversionError(f"{xml.name} is no OpenVINO IR or is damaged ({in_short(error)})") from error
    return list(nodes.values())


def _node(layer: ElementTree.Element, numbers: bytearray) -> Node:
    data, output = layer.find("data"), layer.find("./output/port")
    attributes = {} if data is None else dict(data.attrib)
    shape = [] if output is None else [int(size.text or "") for size in output.findall("dim")]
    return Node(layer.attrib.get("name", ""), layer.attrib["type"], attributes, shape, numbers)
