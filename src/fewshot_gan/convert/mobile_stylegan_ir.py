"""MobileStyleGAN from the OpenVINO IR that the `random-face` wheel carries (mapping and synthesis, 1024 px)."""

import re
from pathlib import Path

import torch

from ..models.mobile_stylegan import MobileStyleGANGenerator
from .report import ConversionError, SourceTensors

MAPPING_FILE, SYNTHESIS_FILE = "MappingNetwork.xml", "SynthesisNetwork.xml"
MAPPING_LR = 0.01
W_AVG_SAMPLES, W_AVG_SEED = 100_000, 123


def find(folder: Path) -> Path | None:
    """The folder at or below `folder` that holds both networks, or None."""
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
        ImportError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError("reading an OpenVINO IR needs openvino: pip install 'fewshot_gan[convert]'") from error
    core = openvino.Core()
    constants = _mapping_tensors(core.read_model(str(folder / MAPPING_FILE)))
    num_layers = len(constants) // 2
    constants |= _synthesis_tensors(core.read_model(str(folder / SYNTHESIS_FILE)))
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


def _constant(node) -> torch.Tensor | None:
    return torch.from_numpy(node.get_data().copy()).float() if node.get_type_name() == "Constant" else None


def _inputs(node) -> list:
    return [value.get_node() for value in node.input_values()]


def _next(node, kind: str):
    """The consumer of `node` of type `kind`."""
    return _of_kind([target.get_node() for target in node.output(0).get_target_inputs()], kind, node)


def _of_kind(nodes: list, kind: str, beside):
    for node in nodes:
        if node.get_type_name() == kind:
            return node
    raise ConversionError(f"expected {kind} at {beside.get_friendly_name()}; is this a MobileStyleGAN IR?")


def _operand(node) -> torch.Tensor:
    """The constant input of an Add, Multiply, MatMul or Convolution."""
    for value in map(_constant, _inputs(node)):
        if value is not None:
            return value
    raise ConversionError(f"expected a constant operand at {node.get_friendly_name()}; is this a MobileStyleGAN IR?")


def _mapping_tensors(model) -> dict[str, torch.Tensor]:
    """Weights and biases of the fully connected layers, divided by their equalised-lr gain."""
    tensors, layers = {}, [op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]
    for i, op in enumerate(layers):
        weight = _operand(op)  # [I, O], or [O, I] when the MatMul transposes it
        if not op.get_attributes().get("transpose_b"):
            weight = weight.t()
        tensors[f"mapping.fc{i}.weight"] = weight * (weight.shape[1] ** 0.5 / MAPPING_LR)
        tensors[f"mapping.fc{i}.bias"] = _operand(_next(op, "Add")).flatten() / MAPPING_LR
    return tensors


def _synthesis_tensors(model) -> dict[str, torch.Tensor]:
    """All tensors of the synthesis network under our names; fixed gains are folded into the affines."""
    tensors = {}
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name()
        if kind == "Constant" and (ours := _our_name(name)):
            value = _constant(op)
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
    for op in model.get_ordered_ops():
        ours = _our_name(op.get_friendly_name()) if op.get_type_name() == "Constant" else None
        if ours and ours.endswith("bias") and "to_rgb" not in ours and "affine" not in ours:
            noise_add = _of_kind(_inputs(_next(op, "Add")), "Add", op)
            conv = _of_kind(_inputs(noise_add), "Convolution", op)
            noise = _operand(noise_add)[0, 0]
            strength = noise.std(correction=0)
            layer = ours.removesuffix("bias")
            tensors[layer + "conv.weight"] = _operand(conv)
            tensors[layer + "noise.strength"] = strength
            tensors[layer + "noise.const"] = noise / strength if strength > 0 else noise
    return tensors


def _style_gain(weight) -> float:
    """The scalar that follows an affine (MatMul → Add → Reshape → Multiply by a constant), 1 when there is none."""
    node = _next(_next(weight, "MatMul"), "Add")
    multiply = _next(_next(node, "Reshape"), "Multiply")
    constants = [c for c in map(_constant, _inputs(multiply)) if c is not None]
    return float(constants[0]) if constants and constants[0].numel() == 1 else 1.0


def _our_name(name: str) -> str | None:
    """`m.layers.3.conv2.conv.modulation.weight` → `synthesis.b64.conv1.affine.weight`; None for anonymous constants."""
    if not name.startswith("m."):
        return None
    name = name.removeprefix("m.")
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
        name = f"b{8 << int(match[1])}.{match[2]}"
        name = name.replace(".conv1.", ".conv0.").replace(".conv2.", ".conv1.")
    name = re.sub(r"^b\d+\.to_img\.", "to_rgb.", name)
    name = name.replace("input.input", "const").replace("up.modulation", "up_affine")
    name = name.replace("conv.modulation", "affine").replace("conv.weight_dw", "depthwise.weight")
    return None if name.endswith("affine.bias") else f"synthesis.{name}"
