"""Methods of a pipeline for photos and the people in them."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from .adapters import BASE, BlendAdapter
from .adapters.looks import Look, look_per_image, scaled, with_person, without_zeros
from .faces import Alignment, read_faces
from .features import load_features
from .inversion import Inversion, check_targets, invert
from .models.layers import as_ws
from .pipeline_base import drawing
from .pipeline_inputs import as_floats, check_whole_number
from .utils.offloading import execution_device, fetch_tensor, refuse_hooks

if TYPE_CHECKING:
    from .pipeline_base import NetworkPipeline as Pipeline
else:
    Pipeline = object  # a mixin: the pipeline comes from the other base class


WHOLE = 0.75  # a person's adapter acts wholly up to this part of the way from its photo to the mean face


def nearness(ws: torch.Tensor, photos: torch.Tensor, mean_w: torch.Tensor) -> float:
    """Return how strongly the adapter of a person acts at `ws`: 1 near a photo, 0 where the mean face is nearer.

    It acts wholly up to 0.75 of the distance from the photo to the mean face, and falls evenly to none at the whole
    distance. Of random faces at ψ = 0.7, 99.5 % are farther away from a person than the mean face is.

    Args:
        ws: `[L, D]` of a picture.
        photos: `[M, L, D]`, the latents of the person's photos; the nearest counts.
        mean_w: `[D]`.
    """
    distance = (photos - ws).square().mean((1, 2)).sqrt()
    reach = (photos - mean_w).square().mean((1, 2)).sqrt()
    falling = ((reach - distance) / (reach * (1 - WHOLE))).clamp(0, 1)
    return float(torch.where(distance <= WHOLE * reach, 1.0, falling).max())  # a photo may be the mean face itself


class PersonMixin(Pipeline):
    """Methods of `FewShotGAN` that find photos in the latent space, and draw the person of an adapter."""

    if TYPE_CHECKING:
        generator: Any
        latent_encoder: Any

        def __call__(self, *args, **options) -> Any: ...

    @drawing
    def invert(
        self,
        images,
        *,
        space: str = "w",
        steps: int = 150,
        seed: int = 0,
        align: bool = True,
        face: int | str = 0,
        start: str | torch.Tensor = "auto",
        **options,
    ) -> Inversion:
        """Find latents from which the base draws given pictures: `pipe(latents=pipe.invert(photo).latents)`.

        Args:
            images: a PIL image, a path or a NumPy array `[H, W, 3]` (uint8, or floats of 0…1), several of them, or a
                tensor `[N, 3, R, R]` in [-1, 1] or uint8, which is taken as it is.
            space: "w" stays within what the base has learned; "w+" comes closer to the picture and adapts less well.
            steps: of the optimisation; each takes a second per picture for `ffhq` on two cores, a third for `ffhq-256`.
                0 draws the estimate of the base's `latent_encoder` as it is.
            seed: of the noise that the optimisation adds.
            align: bring a face to where those of the base lie, if the base has `mean_landmarks` and the extra `photo`
                is installed; otherwise the centre square is used.
            face: which of several faces, from 0, the largest; "all": one result for each.
            start: "auto": the estimate of the base's `latent_encoder`, if it has one and its feature network is
                installed; "mean": the mean latent; or w `[N, w_dim]`.
            options: of `inversion.invert`: `learning_rate`, `perceptual`, `batch_size`, `progress`, …

        Returns:
            `latents` w+ `[N, num_ws, w_dim]`, `images` `[N, 3, R, R]` in [-1, 1], `psnr` of each in dB, and
            `alignments`, where each lies in its photo, for `faces.paste`.

        Raises:
            ValueError: pictures or options out of range, or a photo without a face.
            FileNotFoundError: a path without a file.
            ImportError: no perceptual network is installed and `perceptual="none"` was not given.
        """
        if not self.generator.has_styles:
            raise ValueError(
                f"a {type(self.generator).__name__} has no w to search; use a style-based base, e.g. 'ffhq'"
            )
        alignments: list[Alignment | None] = [None] * len(images) if isinstance(images, torch.Tensor) else []
        if not isinstance(images, torch.Tensor):
            landmarks = self.config.mean_landmarks
            images, alignments = read_faces(images, self.generator.resolution, landmarks, align, face)
        images = as_floats(images, self.generator.resolution)
        check_targets(images, self.generator.resolution)
        if isinstance(start, str):
            if start not in ("auto", "mean"):
                raise ValueError(f"unknown start {start!r}; known: auto, mean, or w [N, {self.generator.w_dim}]")
            options["start"] = self.estimate(images) if start == "auto" else None
        else:
            options["start"] = start
        with nullcontext() if self.bank.fused is not None else self.bank.using({}):
            found = invert(self.generator, images, space=space, steps=steps, seed=seed, **options)
        return found._replace(alignments=alignments)

    def estimate(self, images: torch.Tensor) -> torch.Tensor | None:
        """Estimate the w `[N, w_dim]` of pictures `[N, 3, R, R]` in [-1, 1] by the base's `latent_encoder`.

        Returns:
            None if the base has none, or the feature network is not installed.
        """
        encoder = self.latent_encoder
        if encoder is None:
            return None
        device = execution_device(encoder)
        try:
            features = load_features(device=device)
        except ImportError:
            return None
        with torch.no_grad():
            return torch.cat([encoder(image[None].to(device), features) for image in images]).float().cpu()

    def personalize(
        self,
        photos,
        adapter_name: str = "me",
        *,
        steps: int = 120,
        adapter: str = "left",
        output_dir=None,
        inversion_steps: int = 50,
        align: bool = True,
        face: int = 0,
        seed: int = 0,
        progress: bool = True,
        **options,
    ):
        """Learn to draw the person of one or several photos, and load the result as an adapter.

        The photos are aligned and inverted, and an adapter learns what is missing (pivotal tuning, arXiv 2106.05744).
        It acts together with looks: `pipe(person="me", adapter_names="sketch")`. Its file holds the latents. Pipelines
        let it act near these latents only, see `nearness`, so other faces stay as they are. At 1024
        px on a CPU, call `utils.memory.keep_freed_memory` before: the training then takes 0.6 times as long.

        Args:
            photos: 1 to 20 photos of one person, as of `invert`.
            adapter_name: name under which the adapter is loaded; "" does not load it.
            steps: of the training, each on one photo.
            adapter: "left" (0.2 MB), or "full": all weights, closer to the photo and 75 times as large.
            output_dir: folder of the adapter, its latents, checkpoints and `report.html`; an interrupted call with the
                same photos and options goes on there. None: nothing is kept on disk.
            inversion_steps: steps of `invert`.
            align, face: of `invert`.
            seed: of everything random.
            progress: show progress bars.
            options: of `training.personalize.personalize`: `latents`, `config`, `settings`, `on_step`.

        Returns:
            The adapter. The pipeline's active adapters stay the same.

        Raises:
            ValueError: too many photos, a photo without a face, a taken name, or an option that is out of range.
            ImportError: the extra `train` is not installed.
            TrainingDiverged: a loss is not finite.
        """
        if not self.generator.has_styles:
            raise ValueError(
                f"a {type(self.generator).__name__} has no w to search; use a style-based base, e.g. 'ffhq'"
            )
        self.bank.refuse_while_fused("learn a person")
        refuse_hooks(self.generator, "learn a person with")
        if adapter_name:
            self.bank.check_name(adapter_name)
        # the training is built on pipelines, so this module cannot import it
        train = import_module("fewshot_gan.training.personalize").personalize
        trained = train(
            self,
            photos,
            steps=steps,
            adapter=adapter,
            output_dir=output_dir,
            inversion_steps=inversion_steps,
            align=align,
            face=face,
            seed=seed,
            progress=progress,
            **options,
        )
        if adapter_name:
            self.bank.add(adapter_name, trained)
        return trained

    def draw_person(self, person: str | None = None, **options):
        """Draw the person of an adapter of `personalize`: `pipe.load_adapter("me/").draw_person()`.

        Args:
            person: name of the adapter; None: the only loaded one that has latents.
            options: of `__call__`; by default each latent is drawn once.

        Raises:
            ValueError: no loaded adapter has latents, or several have and none is named.
        """
        if person is None:
            people = [name for name, adapter in self.bank.adapters.items() if adapter.latents is not None]
            if len(people) != 1:
                found = f"there are {', '.join(people)}; name one" if people else "no loaded adapter has any"
                raise ValueError(f"a person is drawn by an adapter with latents, and {found}")
            (person,) = people
        options.setdefault("num_images", len(self._latents_of(person)))
        return self(person=person, **options)

    def prepare_person(
        self,
        person: str,
        num_images: int,
        adapter_names: Any = None,
        latents: torch.Tensor | None = None,
        latent_space: str | None = None,
        skip: int = 0,
    ) -> tuple[torch.Tensor, str, Sequence[Look]]:
        """Return latents `[N, num_ws, w_dim]`, "w+" and looks `[N]` of pictures of a person; see `__call__`.

        Args:
            person: name of the adapter.
            num_images: N; a list of `adapter_names` determines it instead.
            adapter_names: see `__call__`.
            latents, latent_space: of `__call__`, which must be None.
            skip: number of the first picture.

        Raises:
            ValueError: the adapter is not loaded or has no latents, or latents are given as well.
        """
        check_whole_number("num_images", num_images)
        if latents is not None or latent_space is not None:
            raise ValueError(f"person={person!r} brings its own latents; leave latents and latent_space out")
        own = self._latents_of(person)
        if isinstance(adapter_names, Sequence) and not isinstance(adapter_names, str):
            num_images = len(adapter_names)
        is_one = isinstance(adapter_names, str | Mapping | None)
        names: Any = [adapter_names] * num_images if is_one else adapter_names
        looks = look_per_image(names, num_images, self.bank.current())
        looks = [look if name == BASE else with_person(look, person) for name, look in zip(names, looks, strict=True)]
        own = as_ws(own, *self._ws_shape())
        return own[(skip + torch.arange(num_images, device="cpu")) % len(own)], "w+", looks

    def fade_persons(
        self, looks: list[Look] | None, latents: torch.Tensor, labels: torch.Tensor | None, options: dict[str, Any]
    ) -> list[Look] | None:
        """Let the adapters of persons act on pictures near their photos only, so that other faces stay as they are.

        An adapter of `personalize` is trained at the latents of its photos. At w it acts by `nearness(w, latents)`.

        Args:
            looks: one per image, or None: the active adapters draw all images.
            latents: z `[N, z_dim]`, w or w+ of the images.
            labels: int64 `[N]`, or None.
            options: of the generator's `forward`: `latent_space`, `truncation_psi`, `truncation_cutoff`, `noise_mode`.

        Returns:
            Looks with the weights that are left; `looks` itself if no such adapter acts, inside a block of
            `AdapterBank.using`, and while adapters are fused into the weights.
        """
        persons = {
            name: adapter.latents
            for name, adapter in list(self.bank.adapters.items())  # other threads may load one meanwhile
            if adapter.latents is not None and not isinstance(adapter, BlendAdapter)  # a blend holds looks as well
        }
        if not persons or self.bank.fused is not None or (looks is None and self.bank.in_block()):
            return looks
        acting = [self.bank.current()] * len(latents) if looks is None else looks
        if not any(persons.keys() & look.keys() for look in acting):
            return looks
        photos = {name: as_ws(own.detach().float().cpu(), *self._ws_shape()) for name, own in persons.items()}
        device = execution_device(self.generator)
        mean_w = fetch_tensor(self.generator.mapping, "w_avg").float().cpu()
        mapped = {name: value for name, value in options.items() if name != "noise_mode"}
        faded = []
        with torch.no_grad(), self.bank.using({}):
            for i, look in enumerate(acting):
                if not photos.keys() & look.keys():
                    faded.append(look)
                    continue
                label = None if labels is None else labels[i : i + 1].to(device)
                row = latents[i : i + 1].to(device, self.generator.dtype)  # alone: another batch rounds otherwise
                ws = self.generator.map_latents(row, class_labels=label, **mapped)[0].float().cpu()
                left = {
                    name: scaled(weight, nearness(ws, photos[name], mean_w)) if name in photos else weight
                    for name, weight in look.items()
                }
                faded.append(without_zeros(left))
        return faded

    def _ws_shape(self) -> tuple[int, int]:
        return self.generator.num_ws, self.generator.w_dim

    def _latents_of(self, person: str) -> torch.Tensor:
        if not isinstance(person, str):
            raise ValueError(f"person={person!r}: give the name of a loaded adapter")
        self.bank.check({person: 1.0})
        latents = self.bank.adapters[person].latents
        if latents is None:
            raise ValueError(
                f"the adapter {person!r} is of a look and has no latents of a person; give adapter_names={person!r}, "
                "or an adapter of personalize"
            )
        return latents.detach().float().cpu()
