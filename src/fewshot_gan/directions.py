"""Directions of edits in the latent space w: found without labels, shipped with names, or read from a file.

A direction is a vector of w, added to some layers of w+: those of low resolution change pose and shape, those of high
resolution colours and light. One unit is one standard deviation of w along it.

Shape legend: N pictures, L `num_ws`, D `w_dim`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import torch
from safetensors.torch import save

from .models.layers import adaptable_layers
from .utils.files import replace_file, user_path
from .utils.json_files import parse_json
from .utils.offloading import execution_device, fetch_tensor
from .utils.random import seeded
from .utils.ranges import COUNT, Range, check_number
from .utils.safetensors_files import read_header, read_tensors

MOST = 1024  # directions in a file
SAMPLES = 20_000  # latents whose w are analysed
KEY = "layers"  # of the metadata


@dataclass(frozen=True)
class Direction:
    """A change of w+.

    Attributes:
        vector: `[D]`, one unit.
        start, stop: the layers of w+ that it changes; None: up to the last one.
    """

    vector: torch.Tensor
    start: int = 0
    stop: int | None = None


class Directions(Mapping[str, Direction]):
    """Directions by name.

    Args:
        directions: name → direction, one or more of the same size.

    Raises:
        ValueError: there are none, a vector is no `[D]` of finite numbers, or the layers are no range.
    """

    def __init__(self, directions: Mapping[str, Direction]):
        if not 1 <= len(directions) <= MOST:
            raise ValueError(f"{len(directions)} directions: give 1 to {MOST}")
        self._all = dict(directions)
        size = next(iter(self._all.values())).vector.shape
        for name, direction in self._all.items():
            vector, start, stop = direction.vector, direction.start, direction.stop
            if vector.ndim != 1 or vector.shape != size or not torch.isfinite(vector).all():
                raise ValueError(f"direction {name!r} is no vector [w_dim] of finite numbers")
            begins = isinstance(start, Integral) and start >= 0
            if not begins or not (stop is None or (isinstance(stop, Integral) and start < stop)):
                raise ValueError(
                    f"direction {name!r} changes layers {start} to {stop}; give a whole number from 0 on and a larger "
                    "one, or None for all that follow"
                )

    def __getitem__(self, name: str) -> Direction:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"Directions({', '.join(self)})"

    def with_layers(self, start: int = 0, stop: int | None = None) -> "Directions":
        """Return the same directions for other layers of w+.

        Args:
            start, stop: see `Direction`.

        Raises:
            ValueError: they are no range of layers.
        """
        return Directions({name: Direction(each.vector, start, stop) for name, each in self.items()})

    def shift(self, strengths: Mapping[str, float], num_ws: int) -> torch.Tensor:
        """Return the sum of directions, `[L, D]`, to be added to w+.

        Args:
            strengths: name → units.
            num_ws: L.

        Raises:
            ValueError: an unknown name, a strength that is no number from -100 to 100, or a direction of layers that
                are not there.
        """
        size = next(iter(self.values())).vector.shape[0]
        total = torch.zeros(num_ws, size, dtype=torch.float32, device="cpu")
        for name, strength in strengths.items():
            if name not in self:
                raise ValueError(f"unknown direction {name!r}; known: {', '.join(self)}")
            check_number(f"strength of {name}", strength, Range(-100, 100, example="1.5"))
            start, stop = self[name].start, self[name].stop
            if start >= num_ws or (stop or 0) > num_ws:
                raise ValueError(
                    f"direction {name!r} changes layers {start} to {stop}, and this base has {num_ws}; give a range "
                    "inside by with_layers"
                )
            total[start:stop] += float(strength) * self[name].vector.float().cpu()
        return total

    def save(self, path) -> None:
        """Write a safetensors file in fp16; `Directions.load` reads it.

        Raises:
            ValueError: a number is too large for fp16.
        """
        tensors = {name: each.vector.half().contiguous() for name, each in self.items()}
        if large := [name for name, vector in tensors.items() if not torch.isfinite(vector).all()]:
            raise ValueError(
                f"direction {large[0]!r} has numbers beyond 65,504, which the file cannot hold; scale it down"
            )
        ranges = {name: (each.start, each.stop) for name, each in self.items()}
        layers = json.dumps(
            {name: [int(start), None if stop is None else int(stop)] for name, (start, stop) in ranges.items()}
        )
        content = save(tensors, {KEY: layers})  # `save_file` makes files that only the owner can read
        replace_file(user_path(path), lambda temp: Path(temp).write_bytes(content))

    @classmethod
    def load(cls, path) -> "Directions":
        """Read a file of `save`, or another safetensors file of vectors `[D]`, which change all layers.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no directions.
        """
        path = Path(user_path(path))
        header = read_header(path)
        if len(header.tensors) > MOST or any(len(entry.shape) != 1 for entry in header.tensors.values()):
            raise ValueError(f"{path} holds no directions: they are up to {MOST} vectors [w_dim]")
        try:
            layers = parse_json(header.metadata.get(KEY, "{}").encode())
            ranges = {name: (int(start), None if stop is None else int(stop)) for name, (start, stop) in layers.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} says wrongly which layers its directions change ({error})") from error
        tensors = read_tensors(path)
        places = {name: ranges.get(name, (0, None)) for name in tensors}
        return cls({name: Direction(vector.float(), *places[name]) for name, vector in tensors.items()})


@torch.no_grad()
def sample_w(generator, num: int = SAMPLES, seed: int = 0) -> torch.Tensor:
    """Return w `[num, D]` of random z, on the CPU."""
    z = torch.randn(num, generator.z_dim, generator=seeded(seed), dtype=torch.float32, device="cpu")
    device = execution_device(generator)
    return torch.cat([generator.mapping(part.to(device))[:, 0].float().cpu() for part in z.split(1024)])


def ganspace(generator, num: int = 20, samples: int = SAMPLES, seed: int = 0) -> Directions:
    """Return the principal components of w, "0" the strongest (GANSpace, arXiv 2004.02546).

    Args:
        generator: style-based generator without classes.
        num: number of directions.
        samples: number of random z.
        seed: of these.

    Raises:
        ValueError: `num` is out of range.
    """
    check_number("num", num, Range(1, generator.w_dim), whole=True)
    check_number("samples", samples, Range(max(2, num)), whole=True)
    w = sample_w(generator, samples, seed)
    _, singular, components = torch.linalg.svd(w - w.mean(0), full_matrices=False)
    deviations = singular / len(w) ** 0.5
    return Directions({str(i): Direction(components[i] * deviations[i]) for i in range(min(num, len(components)))})


def sefa(generator, num: int = 20, layers: tuple[int, int | None] = (0, None), samples: int = SAMPLES) -> Directions:
    """Return the directions of w to which the style layers react most, "0" the strongest (SeFa, arXiv 2007.06600).

    Args:
        generator: style-based generator without classes.
        num: number of directions.
        layers: range of the layers of w+, from the lowest resolution on, that the directions change; the style layers
            that read these are analysed.
        samples: number of random z, whose spread along a direction is one unit.

    Raises:
        ValueError: a number is out of range, or no layer of w+ is in the range.
    """
    check_number("num", num, Range(1, generator.w_dim), whole=True)
    check_number("samples", samples, COUNT, whole=True)
    rows = range(generator.num_ws)[slice(*layers)]
    if not rows or layers[0] < 0 or (layers[1] or 1) not in range(1, generator.num_ws + 1):
        raise ValueError(f"layers={layers}: w+ of this generator has {generator.num_ws} layers; give a range inside")
    weights = [fetch_tensor(layer, "weight").float().cpu() for layer, row in _readers(generator) if row in rows]
    scaled = torch.cat([weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-8) for weight in weights])
    values, vectors = torch.linalg.eigh(scaled.t() @ scaled)
    order = values.argsort(descending=True)[:num]
    spread = (sample_w(generator, samples) @ vectors[:, order]).std(0)
    return Directions(
        {str(i): Direction(vectors[:, column] * spread[i], *layers) for i, column in enumerate(order.tolist())}
    )


def _readers(generator) -> list[tuple[torch.nn.Module, int]]:
    """Return each style layer with the number of the layer of w+ that it reads: it sees w+ whose row i is full of i."""
    found = []

    def note(layer, arguments):
        found.append((layer, int(arguments[0].flatten()[0])))

    affines = [layer for _, layer in adaptable_layers(generator.synthesis) if layer.role == "affine"]
    hooks = [layer.register_forward_pre_hook(note) for layer in affines]
    try:
        ws = torch.arange(generator.num_ws, dtype=torch.float32, device="cpu")[None, :, None].repeat(
            1, 1, generator.w_dim
        )
        generator(ws.to(execution_device(generator), generator.dtype), latent_space="w+")
    finally:
        for hook in hooks:
            hook.remove()
    return found


METHODS = {"ganspace": ganspace, "sefa": sefa}
