"""`FewShotGAN`: a generator with its adapters, loaded, called, saved and shared like any diffusers pipeline."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from PIL import Image

from .adapter_loader import AdapterMixin
from .adapters import BASE, AdapterBank
from .adapters.looks import Look, look_per_image, with_person, without_zeros
from .faces import check_landmarks
from .hub import embedded_adapters, embedded_bases
from .models import AnyDiscriminator, AnyGenerator
from .models.labels import labels_of_images, start_from_w
from .models.latent_encoder import LatentEncoder
from .models.latents import check_latents
from .models.projected import ProjectedDiscriminator
from .ops import dispatch
from .pipeline_base import NetworkPipeline, drawing
from .pipeline_inputs import check_psi, check_whole_number, choose_generator, is_per_image, noise_generator
from .pipeline_latents import LatentMixin
from .pipeline_person import PersonMixin
from .utils.offloading import is_offloaded
from .utils.ranges import Range, check_number

OUTPUT_TYPES = ("pil", "np", "pt")
LATENT_SPACES = ("z", "w", "w+")
NOT_FINITE = (
    "the pictures would have values that are not finite: weights of adapters, truncation_psi or latents are too large; "
    "give smaller ones, or load the base in float32 if it is in half precision"
)
PER_IMAGE = ("latents", "class_labels", "adapter_names")  # options of `__call__` that may hold one value per image
AdapterName = str | Look | None


@dataclass
class FewShotGANOutput(BaseOutput):
    """Result of `FewShotGAN`.

    Attributes:
        images: list of PIL images, or `[N, H, W, 3]` numpy / `[N, 3, H, W]` torch float in [0, 1].
        latents: the latents used, on the CPU: z `[N, z_dim]`, or what was passed in.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    latents: torch.Tensor


class FewShotGAN(AdapterMixin, PersonMixin, LatentMixin, NetworkPipeline):
    """Generate images with a pretrained GAN and few-shot adapters.

    Its networks are put in evaluation mode.

    Args:
        generator: one of `fewshot_gan.models`.
        discriminator: optional; few-shot training starts from it.
        projected_discriminator: optional; heads on frozen features, trained on images of the base. Few-shot training
            starts from it likewise.
        latent_encoder: optional; estimates the w of a picture, from which `invert` starts.
        truncation_psi: default ψ of `__call__`; None: 0.7 for style-based generators, 1 for others.
        mean_landmarks: of a base of faces, where they lie on average: the names in `faces.LANDMARKS` →
            `[x, y]` in px of a picture of this generator (x to the right, y down, centres of pixels at whole numbers).
            `pipe.config.mean_landmarks` returns them. None: not known.

    Raises:
        ValueError: `mean_landmarks` lacks a point, or has another one, or one that is no pair of finite numbers.
    """

    _optional_components = ["discriminator", "projected_discriminator", "latent_encoder"]
    model_cpu_offload_seq = "generator"

    def __init__(
        self,
        generator: AnyGenerator,
        discriminator: AnyDiscriminator | None = None,
        projected_discriminator: ProjectedDiscriminator | None = None,
        latent_encoder: LatentEncoder | None = None,
        truncation_psi: float | None = None,
        mean_landmarks: dict[str, list[float]] | None = None,
    ):
        super().__init__()
        check_landmarks(mean_landmarks)
        if truncation_psi is None:
            truncation_psi = 0.7 if generator.has_styles else 1.0
        check_psi(truncation_psi)
        self.register_modules(
            generator=generator,
            discriminator=discriminator,
            projected_discriminator=projected_discriminator,
            latent_encoder=latent_encoder,
        )
        self.register_to_config(truncation_psi=truncation_psi, mean_landmarks=mean_landmarks)
        self.bank = AdapterBank(generator)
        self._base_name = None
        self._compiled = None

    @torch.no_grad()
    @drawing
    def __call__(
        self,
        num_images: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        latent_space: str | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        adapter_names: AdapterName | Sequence[AdapterName] = None,
        person: str | None = None,
        output_type: str = "pil",
        batch_size: int = 8,
        return_dict: bool = True,
    ) -> FewShotGANOutput:
        """Generate `num_images` pictures; image i depends on the seed and i only, not on batch size and device.

        Args:
            num_images: number of images; ignored when `latents` is given. Other pipelines of diffusers call it
                `batch_size` where they have no prompts, and `num_images_per_prompt` with one prompt.
            seed: seeds a fresh generator; exclusive with `generator`. Neither: torch's default generator.
            generator: source of latents and noise, on the CPU; or a list of one per image.
            latents: z `[N, z_dim]`, w `[N, w_dim]` or w+ `[N, num_ws, w_dim]`; None: z is drawn.
            latent_space: of `latents`: "z", "w" or "w+"; None takes two dimensions for z and three for w+.
            class_labels: for class-conditional generators: one for all images, or one per image. None for w and w+,
                which contain their class.
            truncation_psi: ψ towards the mean w. None: 1 for given w and w+, which are drawn as they are, else the
                pipeline's. Generators without w draw z from a normal distribution cut at ±2, times ψ, if ψ is not 1
                (arXiv 1809.11096 §3.1).
            truncation_cutoff: number of leading `ws` that are truncated; None = all.
            noise_mode: "const", "random" or "none".
            adapter_names: None: the active adapters; a name: that adapter alone; `{name: weight}`: a blend; a list: one
                of these per image, drawn together in each batch. "__base__" is the unadapted generator.
            person: a loaded adapter of `personalize`: draw the person of its photos. Its latents are used in turn, and
                it acts in every look that does not name it: at weight 1 alone, at 0.7 beside a look of weight 1. A list
                of looks draws one image each.
                "__base__" draws its latents without it.
            output_type: "pil", "np" or "pt".
            batch_size: images per forward pass; changes memory and speed only. It is not the number of images, as in
                other pipelines.
            return_dict: False returns `(images, latents)`.

        Raises:
            ValueError: a number is out of range, an option is unknown or has no effect on this generator, labels are
                missing, an adapter is not loaded, a list has another length than `num_images`, or the pipeline's
                generator was replaced.
        """
        if person is not None:
            of_person = self.prepare_person(person, num_images, adapter_names, latents, latent_space)
            latents, latent_space, adapter_names = of_person
        if latents is not None:
            num_images = len(check_latents(latents, self.generator.dtype))
        self.check_inputs(
            num_images,
            batch_size,
            latents=latents,
            latent_space=latent_space,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            noise_mode=noise_mode,
            output_type=output_type,
        )
        generator = choose_generator(seed, generator)
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(f"{len(generator)} generators for {num_images} images; give one, or one per image")
        psi = self._default_psi(truncation_psi, latents, latent_space)
        looks = self.prepare_looks(adapter_names, num_images)
        labels = self.prepare_class_labels(class_labels, num_images, latents, latent_space)
        latents, generators = self.prepare_latents(num_images, generator, latents, latent_space, psi)
        options = {}
        if self.generator.has_styles:
            space = latent_space or ("w+" if latents.ndim == 3 else "z")
            options = {"latent_space": space, "truncation_psi": psi, "noise_mode": noise_mode}
            options["truncation_cutoff"] = truncation_cutoff
            looks = self.fade_persons(looks, latents, labels, options)
        images = self._draw_images(latents, generators, labels, looks, options, batch_size)
        latents = latents.cpu()
        images = _as_output_type(images, output_type)
        return FewShotGANOutput(images, latents) if return_dict else (images, latents)  # pyright: ignore[reportReturnType]

    def check_inputs(
        self,
        num_images: int,
        batch_size: int = 8,
        *,
        latents: torch.Tensor | None = None,
        latent_space: str | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        output_type: str = "pil",
    ) -> None:
        """Refuse options of `__call__` that are out of range, unknown, or without effect on this generator.

        Raises:
            ValueError: names the option, its value and what is allowed.
        """
        check_whole_number("num_images", num_images)
        check_whole_number("batch_size", batch_size)
        psi = self._default_psi(truncation_psi, latents, latent_space)
        check_psi(psi)
        if not self.generator.has_styles:
            needs_styles = {
                "latent_space": latent_space not in (None, "z"),
                "noise_mode": noise_mode != "const",
                "truncation_cutoff": truncation_cutoff is not None,
                "truncation_psi of given latents": latents is not None and truncation_psi not in (None, 1),
            }
            if useless := [name for name, is_given in needs_styles.items() if is_given]:
                kind = type(self.generator).__name__
                raise ValueError(f"{', '.join(useless)}: a {kind} starts from z alone, without w and noise; leave out")
        elif truncation_cutoff is not None and truncation_psi is None and psi == 1:
            raise ValueError(f"truncation_cutoff={truncation_cutoff}: nothing is truncated; give truncation_psi, too")
        elif truncation_cutoff is not None:
            check_number("truncation_cutoff", truncation_cutoff, Range(0, self.generator.num_ws), whole=True)
        if self.bank.model is not self.generator:
            raise ValueError("the generator was replaced, and adapters are bound to the old one; make a new FewShotGAN")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}")
        if latent_space not in (None, *LATENT_SPACES):
            raise ValueError(f"unknown latent_space {latent_space!r}; known: {', '.join(LATENT_SPACES)}")

    def prepare_looks(self, adapter_names, num_images: int) -> list[Look] | None:
        """Return one look per image, or None if the active adapters draw all images.

        Args:
            adapter_names: see `__call__`.
            num_images: number of images.

        Raises:
            ValueError: not one entry per image, an entry of another type, an adapter that is not loaded, or a weight
                that is no number or schedule.
        """
        if adapter_names is None:
            return None
        looks = look_per_image(adapter_names, num_images, self.bank.current())
        for look in looks:
            self.bank.check(look)
        return looks

    def prepare_class_labels(
        self, class_labels, num_images: int, latents: torch.Tensor | None = None, latent_space: str | None = None
    ) -> torch.Tensor | None:
        """Return labels int64 `[N]`, or None for a generator without classes, see `models.labels.labels_of_images`."""
        return labels_of_images(self.generator, class_labels, num_images, latents, latent_space)

    def prepare_latents(
        self,
        num_images: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        latent_space: str | None = None,
        truncation_psi: float | None = None,
    ) -> tuple[torch.Tensor, list[torch.Generator]]:
        """Return the latents of all images, and a random generator per image for its noise.

        They are drawn image by image, so that an image does not depend on those after it.

        Args:
            num_images: N; ignored when `latents` is given.
            generator: source of both, or a list of one per image.
            latents: None: draw z `[N, z_dim]`.
            latent_space: of `latents`, see `__call__`.
            truncation_psi: ψ of z for a generator without styles; None: the pipeline's. Style-based generators truncate
                w instead.

        Raises:
            ValueError: latents that are said to be z have another size.
        """
        if latents is not None:
            is_z = not start_from_w(latents, latent_space)
            if is_z and latents.shape[1:] != (self.generator.z_dim,):
                raise ValueError(f"latents of shape {tuple(latents.shape)} are not z [N, {self.generator.z_dim}]")
            return latents, generator if isinstance(generator, list) else [noise_generator(generator) for _ in latents]
        psi = self.config.truncation_psi if truncation_psi is None else truncation_psi
        psi = 1.0 if self.generator.has_styles else psi
        rows, generators = [], []
        for source in generator if isinstance(generator, list) else [generator] * num_images:
            z = torch.randn(1, self.generator.z_dim, generator=source, dtype=torch.float32, device="cpu")
            rows.append(z if psi == 1 else psi * torch.nn.init.trunc_normal_(z, generator=source))  # cut at ±2
            generators.append(source if isinstance(generator, list) else noise_generator(source))
        return torch.cat(rows), generators

    def _default_psi(self, truncation_psi: float | None, latents=None, latent_space: str | None = None) -> float:
        """Return the ψ that is given, else 1 for given w and w+, else the pipeline's."""
        if truncation_psi is not None:
            return truncation_psi
        return 1.0 if start_from_w(latents, latent_space) else self.config.truncation_psi

    def _draw_images(
        self,
        latents: torch.Tensor,
        generators: list[torch.Generator],
        labels: torch.Tensor | None,
        looks: list[Look] | None,
        options: dict[str, Any],
        batch_size: int,
    ) -> torch.Tensor:
        """Draw all images in batches; rows that can share convolutions are put into one batch.

        Args:
            latents: of all images.
            generators: of the noise, one per image.
            labels: int64 `[N]`, or None.
            looks: one per image; None: the active adapters draw all of them.
            options: of the generator's `forward`.
            batch_size: images per forward pass.

        Returns:
            Float `[N, 3, R, R]` in [0, 1] on the CPU.

        Raises:
            ValueError: a picture has values that are not finite.
        """
        num_images, device = len(latents), self._execution_device
        rows = list(range(num_images)) if looks is None else self.bank.row_order(looks)
        batches = [rows[i : i + batch_size] for i in range(0, num_images, batch_size)]
        network, compiled = cast(Callable, self.generator), False
        # a compiled network cannot take torch generators, from which random noise is drawn
        if self._compiled is not None and options.get("noise_mode") != "random" and not is_offloaded(self.generator):
            network, compiled = self._compiled, True
        images = torch.empty(0)
        with self.bank.drawing(looks, compiled) as batch_context:
            for batch in batches if len(batches) < 4 else cast(Any, self).progress_bar(batches):
                batch_options = dict(options)
                if labels is not None:
                    batch_options["class_labels"] = labels[batch].to(device)
                if self.generator.has_styles:
                    batch_options["generator"] = None if compiled else [generators[i] for i in batch]
                with batch_context(batch):
                    drawn = network(latents[batch].to(device, self.generator.dtype), **batch_options)
                if not torch.isfinite(drawn).all():
                    raise ValueError(NOT_FINITE)
                drawn = ((drawn.float() + 1) / 2).clamp(0, 1).cpu()
                images = images if len(images) else drawn.new_empty(num_images, *drawn.shape[1:])
                images[batch] = drawn
        return images

    def stream(
        self,
        num_images: int,
        *,
        skip: int = 0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = 8,
        **options,
    ) -> Iterator[FewShotGANOutput]:
        """Yield the pictures of `pipe(skip + num_images, seed=seed)` from number `skip` on, a batch at a time.

        Only one batch is held in memory. `fewshot_gan.apps.generation.write_pictures` writes such pictures to files.

        Args:
            num_images: number of images.
            skip: number of images to pass over first; they are not drawn, and take 20 µs each.
            seed, generator: as in `__call__`, but no list of generators. A generator is left in the state from which
                another stream draws the images that follow.
            batch_size: images per forward pass, and per item of the stream.
            options: of `__call__`; values per image are given for the `num_images` that are drawn.

        Raises:
            ValueError: an option that `__call__` refuses.
        """
        check_whole_number("num_images", num_images)
        check_whole_number("skip", skip, 0)
        check_whole_number("batch_size", batch_size)
        generator = choose_generator(seed, generator)
        if isinstance(generator, list):
            raise ValueError("a stream has one generator for all images; a list of them is for a single call")
        if (person := options.pop("person", None)) is not None:
            given = (options.pop(name, None) for name in ("adapter_names", "latents", "latent_space"))
            latents, options["latent_space"], looks = self.prepare_person(person, num_images, *given, skip=skip)
            options |= {"latents": latents, "adapter_names": looks}
            if len(latents) != num_images:
                raise ValueError(
                    f"adapter_names has {len(latents)} entries for {num_images} images; give one per image"
                )
        per_image = {name: options.pop(name) for name in PER_IMAGE if is_per_image(options.get(name))}
        for name, values in per_image.items():
            if len(values) != num_images:
                raise ValueError(f"{name} has {len(values)} entries for {num_images} images; give one per image")
        if (latents := options.get("latents", per_image.get("latents"))) is not None:
            check_latents(latents, self.generator.dtype)
        for _ in range(skip):  # draw the random numbers of the skipped images
            if "latents" in per_image:
                noise_generator(generator)
            else:
                self.prepare_latents(1, generator, truncation_psi=options.get("truncation_psi"))
        for start in range(0, num_images, batch_size):
            stop = min(start + batch_size, num_images)
            batch_values = {name: values[start:stop] for name, values in per_image.items()}
            yield self(stop - start, generator=generator, batch_size=batch_size, **batch_values, **options)

    def some_labels(self, num_images: int) -> list[int] | None:
        """Return `class_labels` that go through all classes in turn; None for a generator without classes."""
        classes = getattr(self.generator, "num_classes", None)
        return None if classes is None else [i % classes for i in range(num_images)]

    @torch.no_grad()
    def interpolate(
        self, adapter_a: str, adapter_b: str, steps: int = 5, *, num_images: int = 1, **options
    ) -> FewShotGANOutput:
        """Draw strips of pictures from one look to another: weights 1 − t and t, t from 0 to 1 in equal steps.

        Args:
            adapter_a, adapter_b: loaded adapters; "__base__" for the unadapted generator, or for the person alone.
            steps: pictures per strip, both ends included; at least 2.
            num_images: number of strips, each with its own latent and noise; ignored when `latents` are given.
            options: of `__call__`, except `adapter_names`.

        Returns:
            `num_images · steps` pictures, strip after strip.

        Raises:
            ValueError: too few steps, an adapter that is not loaded, or an option that `__call__` refuses.
        """
        if not isinstance(steps, Integral) or steps < 2:
            raise ValueError(f"steps={steps!r}: a strip has at least its two ends; give 2 or more")
        check_whole_number("num_images", num_images)
        for name in (adapter_a, adapter_b):
            self.bank.check({} if name == BASE else {str(name): 1.0})
        if "adapter_names" in options:
            raise ValueError("interpolate chooses adapter_names itself; give adapter_a and adapter_b")
        seed, generator, latents = (options.pop(name, None) for name in ("seed", "generator", "latents"))
        if (person := options.pop("person", None)) is not None:
            space = options.pop("latent_space", None)
            latents, options["latent_space"], _ = self.prepare_person(person, num_images, None, latents, space)
        generator = choose_generator(seed, generator)
        if isinstance(generator, list) and len(generator) != (num_images if latents is None else len(latents)):
            raise ValueError(f"{len(generator)} generators: give one, or one per strip")
        if latents is not None:
            check_latents(latents, self.generator.dtype)
        given, space, psi = latents is not None, options.get("latent_space"), options.get("truncation_psi")
        latents, generators = self.prepare_latents(num_images, generator, latents, space, psi)
        if not given and not self.generator.has_styles:
            options.pop("truncation_psi", None)  # it is in the z
        ts = [step / (steps - 1) for step in range(steps)]
        looks = [{adapter_a: 1 - t, adapter_b: t} if adapter_a != adapter_b else {adapter_a: 1.0} for t in ts]
        looks = [without_zeros(look) for look in looks]
        if person is not None:  # it stays while the looks change
            looks = [with_person({k: v for k, v in look.items() if k != person}, person) for look in looks]
        labels = self.prepare_class_labels(options.pop("class_labels", None), len(latents), latents, space)
        if labels is not None:
            options["class_labels"] = labels.repeat_interleave(steps, 0)
        options["latents"] = latents.repeat_interleave(steps, 0)
        # the noise of a strip stays the same: only the look changes
        options["generator"] = [torch.Generator(device="cpu").set_state(g.get_state()) for g in generators for _ in ts]
        return self(adapter_names=looks * len(latents), **options)

    @staticmethod
    def set_kernels(kernels: str | None, **options) -> None:
        """Choose the kernels with which all networks of this process compute: see `ops.set_kernels`.

        Args:
            kernels: "hub" (downloads a kernel package), "local" (the one in fewshot_gan), "off" (plain torch), or None:
                "local" on a GPU if triton and kernels are installed. The environment variable `FEWSHOT_GAN_KERNELS`
                does the same.
            options: of "hub": `version`, `repo_id` and `trust_remote_code`.

        Raises:
            ValueError: an unknown choice, or no version number.
        """
        dispatch.set_kernels(kernels, **options)

    @staticmethod
    def list_embedded() -> dict[str, list[str]]:
        """Return base name → names of its adapters, for all that ship with the package and work offline."""
        return {base: list(embedded_adapters(base)) for base in embedded_bases()}


def _as_output_type(images: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Return pictures `[N, 3, H, W]` in [0, 1] as "pt", "np" or "pil"."""
    if output_type == "pt":
        return images
    arrays = images.permute(0, 2, 3, 1).numpy()
    if output_type == "np":
        return arrays
    return [Image.fromarray((array * 255).round().astype(np.uint8)) for array in arrays]  # one by one: less memory
