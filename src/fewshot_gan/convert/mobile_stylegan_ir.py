"""Convert MobileStyleGAN from the OpenVINO IR in the `random-face` wheel (mapping and synthesis, 1024 px)."""

import re
from pathlib import Path

import torch

from ..models.mobile_stylegan import MobileStyleGANGenerator
from .ir_graph import SPARE, Node, read_graph
from .report import ConversionError, SourceTensors

MAPPING_FILE, SYNTHESIS_FILE = "MappingNetwork.xml", "SynthesisNetwork.xml"
MAPPING_LR = 0.01
W_AVG_SAMPLES, W_AVG_SEED = 100_000, 123


def find(folder: Path) -> Path | None:
    """Return the folder at or below `folder` that holds both networks, or None."""
    for xml in sorted(folder.rglob(SYNTHESIS_FILE)):
        if (xml.parent / MAPPING_FILE).is_file():
            return xml.parent
    return None


def convert(folder: Path) -> MobileStyleGANGenerator:
    """Rebuild the generator in fp32; `w_avg` is the mean of 100,000 mapped latents (the IR holds none).

    Args:
        folder: holds `MappingNetwork.{xml,bin}` and `SynthesisNetwork.{xml,bin}`.

    Returns:
        The generator, in eval mode; widths and depth come from the weights.

    Raises:
        ConversionError: the graphs are not those of a MobileStyleGAN, or tensors are left over or missing.
    """
    constants = _mapping_tensors(read_graph(folder / MAPPING_FILE))
    num_layers = len(constants) // 2
    constants |= _synthesis_tensors(read_graph(folder / SYNTHESIS_FILE))
    source = SourceTensors(constants)

    widths = [source["synthesis.conv1.bias"].numel()]
    while (name := f"synthesis.b{4 << len(widths)}.conv1.bias") in source:
        widths.append(source[name].numel())
    z_dim, w_dim = source["mapping.fc0.weight"].shape[1], source["mapping.fc0.weight"].shape[0]
    model = MobileStyleGANGenerator(tuple(widths), z_dim, w_dim, num_layers).eval()
    state = {key: source.take(key, value.shape) for key, value in model.state_dict().items() if key != "mapping.w_avg"}
    source.finish()
    model.load_state_dict({**state, "mapping.w_avg": model.mapping.w_avg})

    generator = torch.Generator().manual_seed(W_AVG_SEED)
    total = torch.zeros(w_dim, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        for _ in range(0, W_AVG_SAMPLES, 10_000):
            total += (
                model.mapping(torch.randn(10_000, z_dim, generator=generator, dtype=torch.float32, device="cpu"))[:, 0]
                .double()
                .sum(0)
            )
        model.mapping.w_avg.copy_(total / W_AVG_SAMPLES)
    return model


def _next(node: Node, kind: str) -> Node:
    """Return the consumer of `node` of type `kind`."""
    return _of_kind(node.consumers, kind, node)


def _of_kind(nodes: list[Node], kind: str, beside: Node) -> Node:
    for node in nodes:
        if node.kind == kind:
            return node
    raise ConversionError(f"expected {kind} at {beside.name}; is this a MobileStyleGAN IR?")


def _operand(node: Node) -> torch.Tensor:
    """Return the constant input of an Add, Multiply, MatMul or Convolution."""
    for value in (source.constant() for source in node.inputs):
        if value is not None:
            return value
    raise ConversionError(f"expected a constant operand at {node.name}; is this a MobileStyleGAN IR?")


class _LimitedTensors(dict):
    """Name → tensor, with a limit on all values: thousands of layers of a bad file could share one constant."""

    def __init__(self, nodes: list[Node]):
        super().__init__()
        self.left = SPARE + 2 * sum(len(value.flatten()) for node in nodes if (value := node.stored()) is not None)

    def __setitem__(self, name: str, value: torch.Tensor):
        self.left -= value.numel()
        if self.left < 0:
            raise ConversionError("its layers share more constants than the file has; is this a MobileStyleGAN IR?")
        super().__setitem__(name, value)


def _mapping_tensors(nodes: list[Node]) -> dict[str, torch.Tensor]:
    """Return weights and biases of the fully connected layers, divided by their equalised-lr gain."""
    tensors, layers = _LimitedTensors(nodes), [node for node in nodes if node.kind == "MatMul"]
    for i, op in enumerate(layers):
        weight = _operand(op)  # [I, O], or [O, I] when the MatMul transposes it
        if op.attributes.get("transpose_b") != "true":
            weight = weight.t()
        tensors[f"mapping.fc{i}.weight"] = weight * (weight.shape[1] ** 0.5 / MAPPING_LR)
        tensors[f"mapping.fc{i}.bias"] = _operand(_next(op, "Add")).flatten() / MAPPING_LR
    return tensors


def _synthesis_tensors(nodes: list[Node]) -> dict[str, torch.Tensor]:
    """Return all tensors of the synthesis network under our names; fixed gains are folded into the affines."""
    tensors = _LimitedTensors(nodes)
    for op in nodes:
        if (ours := _our_name(op.name)) and (value := op.constant()) is not None:
            if ours.endswith("affine.weight"):
                gain = _style_gain(op)
                value = value * (gain * value.shape[1] ** 0.5)
                tensors[ours.replace("weight", "bias")] = _operand(_next(_next(op, "MatMul"), "Add")).flatten() * gain
            elif ours.endswith((".bias", "const")):
                value = value.flatten() if ours.endswith("bias") else value[0]
            elif ours.endswith("depthwise.weight"):
                value = value.flatten(1, 2)  # [C, 1, 1, 3, 3] -> [C, 1, 3, 3]
            tensors[ours] = value
    # The folded weights and noise images have no names of their own: walk back from each bias.
    for op in nodes:
        ours = _our_name(op.name) if op.constant() is not None else None
        if ours and ours.endswith("bias") and "to_rgb" not in ours and "affine" not in ours:
            noise_add = _of_kind(_next(op, "Add").inputs, "Add", op)
            conv = _of_kind(noise_add.inputs, "Convolution", op)
            noise = _operand(noise_add)[0, 0]
            strength = noise.std(correction=0)
            layer = ours.removesuffix("bias")
            tensors[layer + "conv.weight"] = _operand(conv)
            tensors[layer + "noise.strength"] = strength
            tensors[layer + "noise.const"] = noise / strength if strength > 0 else noise
    return tensors


def _style_gain(weight) -> float:
    """Return the scalar after an affine (MatMul → Add → Reshape → Multiply by a constant), or 1."""
    node = _next(_next(weight, "MatMul"), "Add")
    multiply = _next(_next(node, "Reshape"), "Multiply")
    constants = [value for source in multiply.inputs if (value := source.constant()) is not None]
    return float(constants[0]) if constants and constants[0].numel() == 1 else 1.0


def _our_name(name: str) -> str | None:
    """Return our name `synthesis.b64.conv1.affine.weight` for `m.layers.3.conv2.conv.modulation.weight`, or None."""
    if not name.startswith("m.") or name.endswith("_compressed"):  # fp16, before its Convert, which has the name
        return None
    name = name.removeprefix("m.")
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
        name = f"b{8 << int(match[1])}.{match[2]}"
        name = name.replace(".conv1.", ".conv0.").replace(".conv2.", ".conv1.")
    name = re.sub(r"^b\d+\.to_img\.", "to_rgb.", name)
    name = name.replace("input.input", "const").replace("up.modulation", "up_affine")
    name = name.replace("conv.modulation", "affine").replace("conv.weight_dw", "depthwise.weight")
    return None if name.endswith("affine.bias") else f"synthesis.{name}"
