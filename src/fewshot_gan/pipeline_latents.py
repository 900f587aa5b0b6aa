"""Methods of a pipeline that move in the latent space: latents of seeds, edits, mixes, walks.

Shape legend: N pictures, K key frames, F frames, L `num_ws`, D `w_dim`.
"""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from .adapters.looks import look_per_image, without_zeros
from .directions import METHODS, Directions
from .hub import embedded_directions
from .models.labels import unlike_plain_styles
from .models.latents import check_latents
from .models.layers import mix_styles
from .pipeline_base import drawing
from .pipeline_inputs import check_whole_number
from .utils.random import seeded

if TYPE_CHECKING:
    from .pipeline_base import NetworkPipeline as Pipeline
else:
    Pipeline = object  # a mixin: the pipeline comes from the other base class

VARIED = 0.35  # usual strength of variations
FEATURED = 4  # the first layers of w+, up to 8 px: pose and shape


class LatentMixin(Pipeline):
    """Methods of `FewShotGAN` that need nothing but latents."""

    if TYPE_CHECKING:
        generator: Any

        def __call__(self, *args, **options) -> Any: ...
        def stream(self, *args, **options) -> Any: ...
        def prepare_latents(self, *args, **options) -> Any: ...
        def prepare_looks(self, *args, **options) -> Any: ...
        def check_inputs(self, *args, **options) -> None: ...

    def latents(
        self,
        num_images: int | None = None,
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        truncation_psi: float | None = None,
    ) -> torch.Tensor:
        """Return the z `[N, z_dim]` of pictures: those of `pipe(num_images, seed=seed)`, or the first of each seed.

        Args:
            num_images: N; None: 1, or the number of `seeds`.
            seed: of all of them.
            seeds: one for each picture, instead of `seed`.
            truncation_psi: ψ of z for a generator without w, see `__call__`; others truncate w when they draw.

        Raises:
            ValueError: a number is out of range, or `num_images` is given beside `seeds`.
        """
        self.check_inputs(1 if num_images is None else num_images, truncation_psi=truncation_psi)
        psi = {"truncation_psi": truncation_psi}
        if seeds is None:
            return self.prepare_latents(num_images or 1, seeded(seed), **psi)[0]
        if num_images is not None:
            raise ValueError(f"num_images={num_images}: seeds give one picture each; leave it out")
        if not len(seeds):
            raise ValueError("seeds is empty; give one or more")
        return torch.cat([self.prepare_latents(1, seeded(one), **psi)[0] for one in seeds])

    @torch.no_grad()
    @drawing
    def map_latents(
        self,
        latents: torch.Tensor,
        *,
        latent_space: str | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        adapter_names: Any = None,
    ) -> torch.Tensor:
        """Return w+ `[N, L, D]` on the CPU, of z, w or w+, as a look maps it: looks with layers in the mapping differ.

        Args:
            latents: z `[N, z_dim]`, w `[N, w_dim]` or w+ `[N, L, D]`.
            latent_space: of `latents`; None takes two dimensions for z and three for w+.
            truncation_psi: ψ; None: 1 for given w and w+, else the pipeline's.
            truncation_cutoff: number of leading layers that are truncated; None: all.
            adapter_names: the look, or one per row, see `__call__`; None: the active adapters.

        Raises:
            ValueError: latents of another shape, a number out of range, an adapter that is not loaded or is fused, or a
                generator without styles or with classes.
        """
        self._require_styles("latents of this kind")
        check_latents(latents, self.generator.dtype)
        given = {"latents": latents, "latent_space": latent_space}
        truncation = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff}
        self.check_inputs(len(latents), **given, **truncation)
        self.prepare_latents(len(latents), **given)  # checks the size of z
        space = latent_space or ("z" if latents.ndim == 2 else "w+")
        psi = self.config.truncation_psi if truncation_psi is None and space == "z" else truncation_psi
        moved = latents.to(self._execution_device, self.generator.dtype)
        with self.bank.drawing(self.prepare_looks(adapter_names, len(latents))) as looks_of_rows:
            with looks_of_rows(range(len(latents))):
                ws = self.generator.map_latents(moved, space, 1.0 if psi is None else psi, truncation_cutoff)
        return ws.float().cpu().clone()

    def _require_styles(self, what: str) -> None:
        if found := unlike_plain_styles(self.generator):
            raise ValueError(f"{what}: a {type(self.generator).__name__} has {found}")

    def directions(self, method: str | None = None, **options) -> Directions:
        """Return directions of edits.

        Args:
            method: None: those that ship with an embedded base; "sefa" or "ganspace", which find some; or a file of
                `Directions.save`.
            options: of `directions.sefa` or `directions.ganspace`.

        Raises:
            ValueError: the base has none, or an unknown method.
            FileNotFoundError: there is no such file.
        """
        self._require_styles("directions")
        if method in METHODS:
            return METHODS[method](self.generator, **options)
        if options:
            raise ValueError(f"{', '.join(options)}: options are of the methods {' and '.join(METHODS)}")
        if method is not None:
            if not Path(method).expanduser().is_file():
                raise FileNotFoundError(f"directions {method!r}: give {' or '.join(METHODS)}, or a file of directions")
            found = Directions.load(method)
        elif (path := embedded_directions(self.bank.fingerprint())) is not None:
            found = Directions.load(path)
        else:
            raise ValueError("no directions ship with this base; find some with method='ganspace' or 'sefa'")
        return self._check_directions(found)

    def _check_directions(self, found: Directions) -> Directions:
        for direction in found.values():
            if (size := direction.vector.shape[0]) != self.generator.w_dim:
                raise ValueError(
                    f"these directions are of {size} numbers, and w of this base has {self.generator.w_dim}"
                )
        return found

    def edit(
        self,
        latents: torch.Tensor,
        strengths: Mapping[str, float],
        directions: Directions | None = None,
        *,
        latent_space: str | None = None,
        truncation_psi: float | None = None,
        adapter_names: Any = None,
    ) -> torch.Tensor:
        """Return edited latents w+ `[N, L, D]`, for `pipe(latents=…)`; with adapters and persons as any others.

        Args:
            latents: z, w or w+ of the pictures, e.g. of `latents` or of `invert`.
            strengths: name of a direction → strength, e.g. `{"smile": 2, "age": -1}`; ±1 to ±3 are usual.
            directions: None: those of `directions()`.
            latent_space, truncation_psi, adapter_names: of `latents`, see `map_latents`.

        Raises:
            ValueError: an unknown direction, directions of another base, or latents that do not fit.
        """
        directions = self.directions() if directions is None else self._check_directions(directions)
        ws = self.map_latents(
            latents, latent_space=latent_space, truncation_psi=truncation_psi, adapter_names=adapter_names
        )
        return ws + directions.shift(strengths, self.generator.num_ws)

    def variations(
        self,
        latents: torch.Tensor,
        num_images: int,
        *,
        strength: float = VARIED,
        seed: int = 0,
        latent_space: str | None = None,
        truncation_psi: float | None = None,
        adapter_names: Any = None,
    ) -> torch.Tensor:
        """Return latents w+ `[N, L, D]` of faces like one face, for `pipe(latents=…)`; the first is the face itself.

        Each is moved by a share of the way from the average face to another random face.

        Args:
            latents: z, w or w+ of one face, `[1, …]`.
            num_images: N.
            strength: the share; 0.2 keeps the person, 0.6 gives relatives.
            seed: of the random faces.
            latent_space, truncation_psi, adapter_names: of `latents`, see `map_latents`; one look for all.

        Raises:
            ValueError: latents of more than one face, or a number out of range.
        """
        if len(latents) != 1:
            raise ValueError(f"latents of {len(latents)} faces: variations are of one face")
        check_whole_number("num_images", num_images)
        if isinstance(strength, bool) or not 0 <= strength <= 2:
            raise ValueError(f"strength={strength}: give 0 to 2, usual are 0.2 to 0.6")
        look = {"adapter_names": adapter_names}
        face = self.map_latents(latents, latent_space=latent_space, truncation_psi=truncation_psi, **look)
        if num_images == 1:
            return face
        z = self.latents(num_images - 1, seed=seed)
        others, average = (self.map_latents(z, truncation_psi=psi, **look) for psi in (1.0, 0.0))
        return torch.cat([face, face + strength * (others - average)])

    def mix_styles(
        self,
        coarse: torch.Tensor,
        fine: torch.Tensor,
        *,
        crossover: int = FEATURED,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        adapter_names: Any = None,
        **options,
    ):
        """Draw the grid of StyleGAN (arXiv 1812.04948 §3.1): rows give the coarse styles, columns the fine ones.

        Args:
            coarse: latents of R rows, z or w+: pose and shape.
            fine: latents of C columns: the rest.
            crossover: number of layers, from the lowest resolution on, that come from the rows.
            truncation_psi, truncation_cutoff: see `map_latents`.
            adapter_names: of all pictures, or a look for each of the R · C.
            options: of `__call__`, except `latents`, `latent_space` and `num_images`.

        Returns:
            R · C pictures, row after row.

        Raises:
            ValueError: latents that do not fit, a crossover out of range, or a generator without styles.
        """
        self._require_styles("mixes")
        if isinstance(crossover, bool) or not 0 <= crossover <= self.generator.num_ws:
            raise ValueError(f"crossover={crossover}: give 0 to {self.generator.num_ws}, the number of layers")
        for latents in (coarse, fine):
            check_latents(latents, self.generator.dtype)
        of_rows = coarse.repeat_interleave(len(fine), 0)
        of_columns = fine.repeat(len(coarse), *[1] * (fine.ndim - 1))
        how = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff, "adapter_names": adapter_names}
        mixed = mix_styles(self.map_latents(of_rows, **how), self.map_latents(of_columns, **how), crossover)
        return self(latents=mixed, latent_space="w+", adapter_names=adapter_names, **options)

    def walk(
        self,
        latents: torch.Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        looks: Sequence[Any] | None = None,
        frames: int = 120,
        loop: bool = True,
        latent_space: str | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        batch_size: int = 4,
        **options,
    ) -> Iterator[Any]:
        """Yield the frames of a walk through latents and looks, one picture at a time.

        The way between latents is a smooth curve in w+ (Catmull-Rom), and that between looks is straight. Each key
        frame is mapped as its look does.

        Args:
            latents: z, w or w+ of K key frames.
            seeds: of the key frames, instead of `latents`.
            looks: K looks, or any number of looks for one latent: names, `{name: weight}`, or "__base__". None: the
                active adapters.
            frames: number F of frames in all.
            loop: go back to the first key frame, so that the last frame comes just before the first one.
            latent_space, truncation_psi, truncation_cutoff: of `latents`, see `map_latents`.
            batch_size: frames drawn at once.
            options: of `__call__`, e.g. `output_type`.

        Raises:
            ValueError: fewer than two key frames, numbers of latents and looks that do not fit, a look whose weight is
                a schedule, fewer frames than key frames, `adapter_names` beside `looks`, or an option of random
                pictures.
        """
        if random := [name for name in ("seed", "generator", "num_images", "skip") if name in options]:
            raise ValueError(f"{random[0]}={options[random[0]]!r}: a walk draws its key frames; give seeds or latents")
        if "return_dict" in options:
            raise ValueError(f"return_dict={options['return_dict']!r}: a walk yields pictures; leave it out")
        if looks is not None and (isinstance(looks, str | Mapping) or not isinstance(looks, Sequence)):
            raise ValueError(f"looks={looks!r}: give a list with the look of each key frame")
        if looks is not None and options.get("adapter_names") is not None:
            raise ValueError("looks and adapter_names both say which adapters act; give one of them")
        if (latents is None) == (seeds is None):
            raise ValueError("give latents or seeds of the key frames, one of both")
        keys, points = None, self.latents(seeds=seeds) if latents is None else latents
        check_latents(points, self.generator.dtype)
        if looks is not None:
            keys = [without_zeros(look) for look in look_per_image(list(looks), len(looks), self.bank.current())]
            for look in keys:
                self.bank.check(look)
            if any(not isinstance(weight, Real) for look in keys for weight in look.values()):
                raise ValueError("a walk goes between looks with plain weights, not with schedules over depth")
            if len(points) == 1:
                points = points.expand(len(keys), *points.shape[1:])
            if len(points) != len(keys):
                raise ValueError(
                    f"{len(keys)} looks for {len(points)} latents: give one look per latent, or one latent"
                )
        if (count := len(points)) < 2:
            raise ValueError("a walk needs two key frames or more: give more seeds, latents or looks")
        check_whole_number("frames", frames)
        if frames < count:
            raise ValueError(f"frames={frames} for {count} key frames: give {count} or more")
        places = key_places(count, frames, loop)
        options = {**options, "latent_space": "w+"}
        of_keys: Any = keys or options.get("adapter_names")
        if keys is not None:
            options["adapter_names"] = [between(keys, place, loop) for place in places]
        elif isinstance(of_keys, Sequence) and not isinstance(of_keys, str):  # a look for each frame
            nearest = [min(range(frames), key=lambda frame: abs(places[frame] - key)) for key in range(count)]
            of_keys = [look_per_image(of_keys, frames, self.bank.current())[frame] for frame in nearest]
        ws = self.map_latents(
            points,
            latent_space=latent_space,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            adapter_names=of_keys,
        )
        ways = torch.stack([curve(ws, place, loop) for place in places])
        for part in self.stream(frames, seed=0, latents=ways, batch_size=batch_size, **options):
            yield from part.images


def key_places(num: int, frames: int, loop: bool) -> list[float]:
    """Return where each frame lies between `num` key frames: 1.5 is halfway from the second to the third."""
    if loop:
        return [frame * num / frames for frame in range(frames)]
    return [frame * (num - 1) / max(1, frames - 1) for frame in range(frames)]


def curve(points: torch.Tensor, place: float, loop: bool) -> torch.Tensor:
    """Return the point at `place` of the Catmull-Rom spline through `points` `[K, …]`; it is closed if `loop`."""
    num = len(points)
    first = min(int(place), num - 1 if loop else max(num - 2, 0))
    t = place - first

    def at(i: int) -> torch.Tensor:
        return points[i % num] if loop else points[min(max(i, 0), num - 1)]

    a, b, c, d = (at(first + i) for i in (-1, 0, 1, 2))
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def between(looks: Sequence[Mapping[str, Any]], place: float, loop: bool) -> dict[str, float]:
    """Return the blend of looks at `place`, see `key_places`."""
    num, first = len(looks), int(place)
    t = place - first
    pair = looks[first % num], looks[(first + 1) % num if loop else min(first + 1, num - 1)]
    names = dict.fromkeys((*pair[0], *pair[1]))
    blend = {n: (1 - t) * cast(float, pair[0].get(n, 0.0)) + t * cast(float, pair[1].get(n, 0.0)) for n in names}
    return cast(dict, without_zeros(blend))
