"""Looks: which adapters act and how strongly, in the notations of Python calls and of the command line.

A *look* is `{adapter name: weight}`. A *weight* is a number α or a *schedule* `{resolution: α}` over depth, e.g.
`{"coarse": 0.0, "fine": 1.0}` or `{4: 0.2, 32: 1.0}`; on the command line `coarse:0,fine:1` or `4:0.2,32:1`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, cast

BASE = "__base__"  # the unadapted generator, wherever an adapter may be named
NAMED_RESOLUTIONS = {"coarse": 4, "middle": 16, "fine": 64}  # StyleGAN §3.1, arXiv 1812.04948
LARGEST_WEIGHT = 1000  # on the command line
LIKENESS = 0.7  # weight of a person beside one whole look; nearest to true drawings, see training/RESULTS.md
TOO_LARGE = 1e30  # such weights would overflow

Weight = float | Mapping[int | str, float]
Look = Mapping[str, Weight]


def parse_weight(text: str, name: str = "weight") -> float | dict[str, float]:
    """Return the weight that a text such as `0.5`, `coarse:0,fine:1` or `4:0,32:1` stands for.

    Args:
        text: a number, or `resolution:number` entries joined by commas.
        name: what messages call the option.

    Raises:
        ValueError: another text, a resolution that is named twice, or a number beyond ±1000.
    """
    try:
        pairs = [entry.split(":") for entry in text.split(",")] if ":" in text else [["", text]]
        schedule = {key.strip(): float(alpha) for key, alpha in pairs}
        if len(schedule) < len(pairs):
            raise ValueError("an entry comes twice")
    except ValueError as error:
        raise ValueError(f"{name} {text} is neither a number nor like coarse:0,fine:1") from error
    if not all(abs(alpha) <= LARGEST_WEIGHT for alpha in schedule.values()):  # refuses NaN too
        raise ValueError(f"{name} {text}: give numbers from -{LARGEST_WEIGHT} to {LARGEST_WEIGHT}, e.g. 1 or 0.5")
    return schedule if ":" in text else schedule[""]


def parse_look(adapter_names, weights: Any = None) -> dict[str, Weight]:
    """Return the look that adapter names and weights stand for; see `FewShotGAN.set_adapters`.

    Args:
        adapter_names: a name, a list of names, or `{name: weight}` without `weights`.
        weights: one for all names, or one per name; None: 1.

    Raises:
        ValueError: something else, a name given twice, or not one weight per name.
    """
    if isinstance(adapter_names, Mapping) and weights is None:
        return plain_look(adapter_names)
    names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"adapters {adapter_names!r}: give a name, a list of names, or {{name: weight}} without weights"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"adapters named twice: {', '.join(names)}; name each once, with its weight")
    weights = 1.0 if weights is None else _plain_number(weights)
    is_list = isinstance(weights, Iterable) and not isinstance(weights, Mapping | str)
    per_name: list[Any] = list(weights) if is_list else [weights] * len(names)
    per_name = [1.0 if weight is None else weight for weight in per_name]
    if len(per_name) != len(names):
        raise ValueError(f"{len(names)} adapters but {len(per_name)} weights; give one weight per adapter")
    return plain_look(dict(zip(names, per_name, strict=True)))


def plain_look(look: Mapping) -> dict[str, Weight]:
    """Return a look whose weights and resolutions are numbers of Python, where it has those of NumPy or torch."""

    def plain_weight(weight):
        if isinstance(weight, Mapping):
            return {_plain_number(key): _plain_number(alpha) for key, alpha in weight.items()}
        return _plain_number(weight)

    return {name: plain_weight(weight) for name, weight in look.items()}


def _plain_number(value):
    """Return the number or list of numbers in a scalar or array of NumPy or torch; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def look_per_image(adapter_names, num_images: int, current: Look) -> list[Look]:
    """Return one look per image, as `adapter_names` of `FewShotGAN.__call__` gives them.

    Args:
        adapter_names: a name, `{name: weight}`, or a list of these and None, one per image. "__base__" stands for no
            adapter.
        num_images: number of images.
        current: the look that None stands for.

    Raises:
        ValueError: something else, or not one entry per image.
    """
    if isinstance(adapter_names, str | Mapping):
        adapter_names = [adapter_names] * num_images
    if not isinstance(adapter_names, Sequence):
        raise ValueError(f"adapter_names={adapter_names!r}: give a name, a {{name: weight}}, or a list of these")
    if len(adapter_names) != num_images:
        raise ValueError(f"adapter_names has {len(adapter_names)} entries for {num_images} images; give one per image")
    looks = []
    for entry in adapter_names:
        if entry is None:
            looks.append(current)
        elif isinstance(entry, Mapping):
            looks.append({name: weight for name, weight in plain_look(entry).items() if name != BASE})
        elif isinstance(entry, str):
            looks.append({} if entry == BASE else {entry: 1.0})
        else:
            raise ValueError(f"adapter_names has {entry!r}: each entry is a name, a {{name: weight}} or None")
    return looks


def shown_look(look: Look) -> str:
    """Return a look in words: names and weights, `the base alone` without any."""
    return ", ".join(f"{name} {weight}" for name, weight in look.items()) or "the base alone"


def without_zeros(look: Look) -> dict[str, Weight]:
    """Return the part of a look that acts: the adapters whose weight is another number than 0, or a schedule."""
    return {name: weight for name, weight in look.items() if weight != 0}


def with_person(look: Look, person: str, likeness: float = LIKENESS) -> dict[str, Weight]:
    """Add the adapter of a person to a look, unless the look names it.

    Its weight is 1 without looks, `likeness` beside a look of weight 1 or more, and between these for weaker looks.

    Args:
        look: of an image; "__base__" counts as no look.
        person: name of the adapter.
        likeness: weight of the person beside a whole look; less draws far looks more cleanly.

    Raises:
        ValueError: see `check_weight`.
    """
    if person in look:
        return dict(look)
    strength = 0.0
    for name, weight in look.items():
        check_weight(weight, name)
        if name != BASE:
            strength += max(abs(alpha) for alpha in (weight.values() if isinstance(weight, Mapping) else [weight]))
    return {person: 1 - (1 - likeness) * min(1.0, strength), **look}


def scaled(weight: Weight, factor: float) -> Weight:
    """Return a weight, or each value of a schedule, times `factor`."""
    if isinstance(weight, Mapping):
        return {resolution: alpha * factor for resolution, alpha in weight.items()}
    return weight * factor


def check_weight(weight, name: str) -> None:
    """Refuse a weight that is neither a finite number nor a schedule of such.

    Args:
        weight: of an adapter.
        name: of the adapter, for messages.

    Raises:
        ValueError: an empty schedule, a value that is no finite number, an unknown resolution, or one named twice.
    """
    schedule = weight if isinstance(weight, Mapping) else {0: weight}
    if not schedule:
        raise ValueError(f"the weight schedule of adapter {name!r} is empty; for example {{4: 0.0, 32: 1.0}}")
    for alpha in schedule.values():
        is_number = isinstance(alpha, Real) and not isinstance(alpha, bool)
        if not is_number or not -TOO_LARGE < cast(float, alpha) < TOO_LARGE:  # refuses NaN and huge integers too
            raise ValueError(f"weight {alpha!r} of adapter {name!r} is no finite number, e.g. 0.5")
    resolutions = [_resolution(key) for key in schedule]
    for key, resolution in zip(schedule, resolutions, strict=True):
        if resolution is None:
            raise ValueError(
                f"{key!r} in the weights of adapter {name!r} is no resolution; give 0 (mapping), 4, 8, … or "
                f"{', '.join(NAMED_RESOLUTIONS)}"
            )
        if resolutions.count(resolution) > 1:
            raise ValueError(f"the weights of adapter {name!r} name resolution {resolution} twice; drop one")


def weight_at(schedule: Mapping[int | str, float], resolution: int) -> float:
    """Return α of a schedule at a layer: the entry of the highest resolution up to the layer's, or else the lowest.

    Args:
        schedule: `{resolution: α}`, as `check_weight` accepts it.
        resolution: of the layer's feature maps in px; 0 for the mapping network.
    """
    alphas = {_resolution(key) or 0: alpha for key, alpha in schedule.items()}
    return float(alphas[max((key for key in alphas if key <= resolution), default=min(alphas))])


def row_order(looks: Sequence[Look], only_scales: Callable[[str], bool]) -> list[int]:
    """Return an order of the rows of a batch in which rows that can share convolutions lie side by side.

    Rows of one look share everything. Rows whose adapters only scale channels share the weights of the base, so they
    come first.

    Args:
        looks: one per row.
        only_scales: adapter name → whether the adapter leaves all weights alone, see `Adapter.only_scales`.
    """
    first_seen: dict[tuple, int] = {}
    sort_keys = []
    for look in looks:
        key = tuple((name, tuple(w.items()) if isinstance(w, Mapping) else w) for name, w in look.items())
        changes_weights = not all(only_scales(name) for name in look)
        sort_keys.append((changes_weights, first_seen.setdefault(key, len(first_seen))))
    return sorted(range(len(looks)), key=sort_keys.__getitem__)


def _resolution(key) -> int | None:
    """Return the resolution that a key of a schedule names, None if it names none."""
    if isinstance(key, str):
        return NAMED_RESOLUTIONS.get(key, int(key) if key.isascii() and key.isdigit() else None)
    return int(key) if isinstance(key, Integral) and not isinstance(key, bool) and int(key) >= 0 else None
