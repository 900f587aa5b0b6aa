"""ONNX graphs of a generator whose weights are inputs, and of adapters as functions on these weights.

Weights that are inputs can be changed between two pictures. So a web page needs the base once, and of each look only
the factors. ONNX Runtime draws as fast as with weights that are part of the graph.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from ..adapters.base import Adapted, Adapter, Factors, combine
from ..adapters.blend import BlendFactors
from ..models.labels import unlike_plain_styles
from ..models.layers import adaptable_layers
from ..models.network import Network
from .export import quiet_exporter

# what an adapter's config records of its making, on which its function does not depend
RECORDS = ("training", "method", "base_model_name_or_path", "base_fingerprint", "latents_shape")
RANDOM_GROUP = 16  # torch draws normal numbers in groups of so many


class Graph(NamedTuple):
    """An ONNX model.

    Attributes:
        model: serialised.
        inputs, outputs: their names, in order.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Changed(NamedTuple):
    """A graph that computes what an adapter changes.

    The outputs come in the order of `outputs`: for each weight its difference, its scale minus 1, or both. Under
    several adapters with weights α_k a tensor is (W + Σ α_k difference_k) · (1 + Σ α_k scale_k).

    Attributes:
        graph: its inputs are the base's tensors `reads`, then the adapter's own.
        reads: names of the base's tensors.
        tensors: the adapter's own tensors, by name.
        outputs: (name of the base's tensor, "difference" or "scale") of each output.
    """

    graph: Graph
    reads: tuple[str, ...]
    tensors: dict[str, torch.Tensor]
    outputs: tuple[tuple[str, str], ...]


def tensors_of(generator: Network) -> dict[str, torch.Tensor]:
    """Return all parameters and stored buffers by name.

    Raises:
        ValueError: the generator has no styles, or has classes, or demodulates when it runs, or its z has a size that
            the page's random numbers do not have.
    """
    kind = type(generator).__name__
    if found := unlike_plain_styles(generator):
        raise ValueError(f"a {kind} has {found}; a web page needs styles alone")
    ways = {layer.demodulation for _, layer in adaptable_layers(generator)}
    if ways - {"none", "folded"}:
        raise ValueError(
            f"a {kind} demodulates its weights when it runs, which a web page cannot; use a MobileStyleGAN like 'ffhq'"
        )
    if generator.z_dim % RANDOM_GROUP:
        raise ValueError(f"z_dim={generator.z_dim}: a web page draws z in groups of {RANDOM_GROUP} numbers")
    return {name: tensor.detach() for name, tensor in generator.state_dict(keep_vars=True).items()}


class _Network(nn.Module):
    """Latents and weights → what a part of a generator makes of them: w `[B, w_dim]` or images `[B, 3, R, R]`.

    Args:
        generator: its weights are inputs.
        part: "mapping", of z `[B, z_dim]`, before truncation; or "synthesis", of w+ `[B, num_ws, w_dim]`.
        names: of the part's weights, in their order.
    """

    def __init__(self, generator: Any, part: str, names: Sequence[str]):
        super().__init__()
        self.network = [getattr(generator, part)]  # a list: its weights are not this module's own
        self.part, self.names = part, names

    def forward(self, latents, weights):
        made = functional_call(self.network[0], dict(zip(self.names, weights, strict=True)), (latents,))
        return made[:, 0] if self.part == "mapping" else made


def network_graphs(generator: Any) -> dict[str, Graph]:
    """Return the graphs "mapping" and "synthesis"; their first input is the latent, the others are weights by name."""
    generator = deepcopy(generator).eval()  # a copy has no active adapters, which would become part of the graphs
    tensors, graphs = tensors_of(generator), {}
    latents = {
        "mapping": torch.zeros(1, generator.z_dim),
        "synthesis": torch.zeros(1, generator.num_ws, generator.w_dim),
    }
    for part, latent in latents.items():
        names = [name for name in tensors if name.startswith(f"{part}.")]
        module = _Network(generator, part, [name.removeprefix(f"{part}.") for name in names])
        weights = [tensors[name].float() for name in names]
        output = "images" if part == "synthesis" else "w"
        graphs[part] = _exported(module, (latent, weights), ["latent", *names], [output])
    return graphs


class _Change(nn.Module):
    """Weights of a base and tensors of an adapter → what the adapter changes, see `Changed`."""

    def __init__(self, layers: Sequence[tuple], named: Mapping[str, torch.Tensor]):
        super().__init__()
        self.layers, self.names = layers, list(named)
        self.kinds: list[tuple[str, str]] = []

    def forward(self, weights, tensors):
        weights, tensors = iter(weights), dict(zip(self.names, tensors, strict=True))
        results, kinds = [], []
        for parts, (weight_name, bias_name), depthwise in self.layers:
            weight: torch.Tensor = next(weights)
            bias: Any = None if bias_name is None else next(weights)
            calls: list[Any] = [
                (partial(_call, factors, {name: tensors[own[name]] for name in own}), alpha)
                for factors, own, alpha in parts
            ]
            new = combine(calls, weight, bias)
            scale = _scale(new, depthwise)
            found: list[tuple[Any, str, Any]] = []
            if new.weight is not weight:
                found.append((weight_name, "difference", new.weight - weight))
            if scale is not None:
                found.append((weight_name, "scale", scale))
            if bias is not None and new.bias is not None and new.bias is not bias:
                found.append((bias_name, "difference", new.bias - bias))
            results += [value for *_, value in found]
            kinds += [(name, kind) for name, kind, _ in found]
        self.kinds = kinds
        return tuple(results)


def _call(factors: Factors, tensors: dict[str, torch.Tensor], weight, bias) -> Adapted:
    return functional_call(factors, tensors, (weight, bias))


def _parts(factors: Factors, alpha: float = 1.0) -> list[tuple[Factors, float]]:
    """Return the factors of which a layer's are the blend, with their weights; others alone."""
    if not isinstance(factors, BlendFactors):
        return [(factors, alpha)]
    return [found for part, weight in factors.parts.value for found in _parts(part, alpha * weight)]


def _scale(new, depthwise: bool) -> torch.Tensor | None:
    """Return the sum of the scales minus 1 of an `Adapted`, shaped to multiply the weight; None: there is none."""
    parts = []
    if new.input_scale is not None:
        parts.append(new.input_scale.reshape(-1, 1, 1, 1) if depthwise else new.input_scale.reshape(1, -1, 1, 1))
    if new.output_scale is not None:
        parts.append(new.output_scale.reshape(-1, 1, 1, 1))
    if new.filter_scale is not None:
        parts.append(new.filter_scale)
    return torch.stack(torch.broadcast_tensors(*(part - 1 for part in parts))).sum(0) if parts else None


def change_graph(generator: Any, adapter: Adapter, known: dict[str, Graph] | None = None) -> Changed:
    """Return the graph of an adapter that was made for `generator`.

    Args:
        generator: the base.
        adapter: the adapter.
        known: graphs of adapters of the same base, by what they depend on; adapters of one kind with the same options
            and layers share a graph. New ones are added.
    """
    base = tensors_of(generator)
    names = {id(tensor): name for name, tensor in generator.state_dict(keep_vars=True).items()}
    modules = dict(adaptable_layers(generator))
    layers, reads, tensors, is_constant = [], [], {}, False
    for path, factors in adapter.factors().items():
        stored = modules[path].stored()
        pair = tuple(None if tensor is None else names[id(tensor)] for tensor in stored)
        parts = []
        for i, (part, alpha) in enumerate(_parts(factors)):
            everything = {**dict(part.named_parameters()), **dict(part.named_buffers())}
            own = {name: tensor for name, tensor in everything.items() if tensor.is_floating_point()}
            known_here = {id(tensor) for tensor in own.values()}
            is_constant |= any(id(tensor) not in known_here for tensor in part.tensors())  # bits stay in the graph
            parts.append((part, {name: f"{path}.{i}.{name}" for name in own}, alpha))
            tensors |= {f"{path}.{i}.{name}": tensor.detach().float() for name, tensor in own.items()}
        layers.append((parts, pair, modules[path].role == "depthwise"))
        reads += [name for name in pair if name is not None]
    module = _Change(layers, tensors)
    inputs = [base[name].float() for name in reads], list(tensors.values())
    with torch.no_grad():
        module(*inputs)  # to learn which tensors it changes
    outputs, graphs = tuple(module.kinds), {} if known is None else known
    options = {name: adapter.config[name] for name in sorted(adapter.config) if name not in RECORDS and name[0] != "_"}
    key = json.dumps([adapter.adapter_type, options, id(adapter) if is_constant else 0], default=str)
    if key not in graphs:
        named = [*reads, *(f"own:{name}" for name in tensors)]
        graphs[key] = _exported(module, inputs, named, [f"{kind}:{name}" for name, kind in outputs])
    return Changed(graphs[key], tuple(reads), tensors, outputs)


def changed(base: Mapping[str, np.ndarray], parts: Iterable[tuple[Changed, float, Sequence[np.ndarray]]]) -> dict:
    """Return the base's tensors under adapters, as the page computes them.

    Args:
        base: the tensors by name.
        parts: each adapter, its weight α, and the outputs of its graph.
    """
    differences: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    for change, alpha, outputs in parts:
        for (name, kind), value in zip(change.outputs, outputs, strict=True):
            of = differences if kind == "difference" else scales
            of[name] = of.get(name, np.float32(0)) + np.float32(alpha) * value
    return {
        name: (value + differences.get(name, np.float32(0))) * (1 + scales.get(name, np.float32(0)))
        for name, value in base.items()
    }


def _exported(module: nn.Module, inputs: tuple, names: list[str], outputs: list[str]) -> Graph:
    """Return the graph of a module, without what only debuggers read.

    Raises:
        ValueError: torch exported nothing.
    """
    with torch.no_grad(), quiet_exporter():
        options = {"input_names": names, "output_names": outputs, "dynamo": True, "verbose": False}
        program = torch.onnx.export(module.eval(), inputs, **options)
    if program is None:
        raise ValueError("torch exported no program; another version of torch may do it")
    model: Any = program.model_proto
    del model.graph.value_info[:], model.metadata_props[:], model.graph.metadata_props[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string, node.name = "", ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    kept = tuple(value.name for value in model.graph.input), tuple(value.name for value in model.graph.output)
    return Graph(model.SerializeToString(deterministic=True), *kept)
