"""`FewShotGAN`: a generator with its adapters, loaded, run, saved and shared like any diffusers pipeline."""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import BaseOutput, is_accelerate_available
from PIL import Image

from .adapter_loader import AdapterMixin
from .adapters import BASE, AdapterBank, DomainHyperNetwork, fingerprint
from .data.images import check_range, check_signed, read_squares, to_floats
from .hub import HUB_OPTIONS, PUSH_OPTIONS, embedded_adapters, embedded_bases, resolve_folder
from .hub.base_files import check_index, stored_keys, stored_tensors
from .inversion import Inversion, invert
from .models import AnyDiscriminator, AnyGenerator
from .models.labels import labels_of_images, start_from_w
from .models.latents import check_latents
from .models.network import settle_dtype, stored_weights
from .models.projected import ProjectedDiscriminator
from .ops import dispatch
from .pipeline_base import NetworkPipeline, drawing
from .pipeline_files import finish_base
from .utils.files import expanded, replacing, user_path
from .utils.offloading import is_offloaded
from .utils.random import seeded
from .utils.text import plain

MOST_PSI = 1000  # far beyond any use; larger ones overflow
CARD_FACES = 6  # pictures per row on the card of an adapter
PER_IMAGE = ("latents", "class_labels", "adapter_names")  # options of `__call__` that may be one per image
AdapterName = str | Mapping[str, float] | None


@dataclass
class FewShotGANOutput(BaseOutput):
    """Result of `FewShotGAN`.

    Attributes:
        images: list of PIL images, or `[N, H, W, 3]` numpy / `[N, 3, H, W]` torch float in [0, 1].
        latents: the latents used, on the CPU: z `[N, z_dim]`, or what was passed in.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    latents: torch.Tensor


class FewShotGAN(AdapterMixin, NetworkPipeline):
    """Generate images with a pretrained GAN and few-shot adapters.

    Its networks are put in evaluation mode.

    Args:
        generator: of `fewshot_gan.models`.
        discriminator: optional; few-shot training starts from it.
        projected_discriminator: optional; heads on frozen features that know the base's images, likewise.
        truncation_psi: default ψ of `__call__`; None: 0.7 of style-based generators, 1 of others.
    """

    _optional_components = ["discriminator", "projected_discriminator"]
    model_cpu_offload_seq = "generator"

    def __init__(
        self,
        generator: AnyGenerator,
        discriminator: AnyDiscriminator | None = None,
        projected_discriminator: ProjectedDiscriminator | None = None,
        truncation_psi: float | None = None,
    ):
        super().__init__()
        if truncation_psi is None:
            truncation_psi = 0.7 if generator.has_styles else 1.0
        self.register_modules(
            generator=generator, discriminator=discriminator, projected_discriminator=projected_discriminator
        )
        self.register_to_config(truncation_psi=truncation_psi)
        self.bank = AdapterBank(generator)
        self._base_name: str | None = None
        self._compiled = None  # the generator as `compile` made it

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "FewShotGAN":
        """Load a base generator.

        Args:
            pretrained_model_name_or_path: embedded name ("ffhq"), local folder, or Hub repo id.
            kwargs: `subfolder`; for the Hub `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`;
                diffusers' own (`dtype`, `variant`, `discriminator=None`, …). The default dtype is float32;
                `torch_dtype` is another name for it.

        Raises:
            FileNotFoundError: no such base, or no network; the message says what is embedded.
            ValueError: the weights are damaged, or `dtype` is no dtype, or not that of `torch_dtype`.
        """
        folder = resolve_folder(pretrained_model_name_or_path, **{k: kwargs.pop(k) for k in HUB_OPTIONS if k in kwargs})
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{folder} is not a base: it has no model_index.json (fewshot-gan convert makes one)"
            )
        kwargs["dtype"] = settle_dtype(kwargs) or torch.float32
        check_index(folder, kwargs)
        kwargs.setdefault("low_cpu_mem_usage", is_accelerate_available())  # without it diffusers warns at length
        try:
            pipe = super().from_pretrained(str(folder), **kwargs)
        except Exception as error:  # whatever a damaged config makes of diffusers
            raise ValueError(f"could not load the base in {folder}: {plain(error)[:500]}") from error
        for name, module in pipe.components.items():
            if module is None or name in kwargs:
                continue
            own = module.state_dict()
            stored = stored_keys(folder / name) or {k for k, t in own.items() if not t.is_meta}  # no safetensors: .bin
            if missing := sorted(own.keys() - stored):
                raise ValueError(f"the {name} in {folder} lacks weights: {plain(', '.join(missing[:8]))}")
            if unknown := sorted(stored - own.keys()):
                names = plain(", ".join(unknown[:8]))
                raise ValueError(f"the {name} in {folder} has weights that it does not know: {names}")
        pipe.base_name = expanded(pretrained_model_name_or_path)
        if pipe.generator.dtype != torch.float32 and "generator" not in kwargs:
            if stored := stored_tensors(folder / "generator"):  # what adapters were trained on, before the cast
                pipe.bank.remember_fingerprint(fingerprint(pipe.generator, stored))
        return pipe

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
        output_type: str = "pil",
        batch_size: int = 8,
        return_dict: bool = True,
    ) -> FewShotGANOutput:
        """Generate `num_images` pictures; image i depends on the seed and i only, whatever batch size and device.

        Args:
            num_images: how many; ignored when `latents` is given. It is what other pipelines of diffusers call
                `batch_size` where they have no prompts, or `num_images_per_prompt` with one prompt.
            seed: starts a fresh generator; exclusive with `generator`. Neither: torch's default generator.
            generator: source of latents and noise, on the CPU; or a list of one per image.
            latents: z `[N, z_dim]`, w `[N, w_dim]` or w+ `[N, num_ws, w_dim]` instead of drawn ones.
            latent_space: of `latents`: "z", "w" or "w+"; None takes "z" for two dimensions and "w+" for three.
            class_labels: of class-conditional generators: one for all images, or one per image. None with w and w+,
                which have their class in them.
            truncation_psi: ψ towards the mean w; None takes the pipeline's, and 1 for given w and w+, which are wanted
                as they are. Generators without w draw z from a normal cut at ±2, times ψ, if ψ is not 1 (arXiv
                1809.11096 §3.1).
            truncation_cutoff: number of leading `ws` truncated; None = all.
            noise_mode: "const", "random" or "none".
            adapter_names: None: the active adapters; a name: that one alone; `{name: weight}`: a blend; a list: one
                of these per image, drawn together in each batch. "__base__" is the unadapted generator.
            output_type: "pil", "np" or "pt".
            batch_size: images per forward, which decides memory and speed alone; not the number of images, as it is in
                other pipelines.
            return_dict: False returns `(images, latents)`.

        Raises:
            ValueError: a number out of range, an unknown option or one that this generator has no use for, missing
                labels, an adapter that is not loaded, a list of another length than `num_images`, or the pipeline's
                generator was replaced.
        """
        if latents is not None:
            num_images = len(check_latents(latents, self.generator.dtype))
        for name, value in (("num_images", num_images), ("batch_size", batch_size)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number, 1 or more")
        as_given = start_from_w(latents, latent_space)
        psi = truncation_psi
        if psi is None:
            psi = 1.0 if as_given else self.config.truncation_psi
        if not isinstance(psi, Real) or not abs(psi) <= MOST_PSI:  # so is not NaN
            raise ValueError(
                f"truncation_psi={psi!r}: give a number such as 0.7, -{MOST_PSI} to {MOST_PSI}; 1 is no truncation"
            )
        plain = not self.generator.has_styles
        if plain:
            of_styles = {"latent_space": latent_space not in (None, "z"), "noise_mode": noise_mode != "const"}
            of_styles["truncation_cutoff"] = truncation_cutoff is not None
            of_styles["truncation_psi of given latents"] = latents is not None and truncation_psi not in (None, 1)
            if useless := [name for name, given in of_styles.items() if given]:
                kind = type(self.generator).__name__
                raise ValueError(f"{', '.join(useless)}: a {kind} starts from z alone, without w and noise; leave out")
        elif truncation_cutoff is not None and not 0 <= truncation_cutoff <= self.generator.num_ws:
            raise ValueError(f"truncation_cutoff={truncation_cutoff}: give 0 to {self.generator.num_ws}, or None")
        if self.bank.model is not self.generator:
            raise ValueError("the generator was replaced, and adapters are bound to the old one; make a new FewShotGAN")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"unknown output_type {output_type!r}; known: pil, np, pt")
        if latent_space not in (None, "z", "w", "w+"):
            raise ValueError(f"unknown latent_space {latent_space!r}; known: z, w, w+")
        if seed is not None and generator is not None:
            raise ValueError("give seed or generator, not both")
        if seed is not None:
            generator = seeded(seed)
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(f"{len(generator)} generators for {num_images} images; give one, or one per image")
        looks = self._looks(adapter_names, num_images)
        labels = self._labels(class_labels, num_images, latents, latent_space)
        if latents is None:
            latents, generators = self._draw(num_images, generator, self._psi_of_z(psi))
        else:
            latent_space = latent_space or ("z" if latents.ndim == 2 else "w+")
            if latent_space == "z" and latents.shape[1:] != (self.generator.z_dim,):
                raise ValueError(f"latents of shape {tuple(latents.shape)} are not z [N, {self.generator.z_dim}]")
            generators = generator if isinstance(generator, list) else [_branch(generator) for _ in latents]

        rows = list(range(num_images)) if looks is None else self.bank.row_order(looks)
        chunks = [rows[i : i + batch_size] for i in range(0, num_images, batch_size)]
        # noise is drawn from generators that a compiled network cannot hold
        compiled = self._compiled is not None and noise_mode != "random" and not is_offloaded(self.generator)
        device = self._execution_device
        network, images = self._compiled if compiled else self.generator, [None] * num_images
        with self.bank.drawing(looks, compiled) as acting:
            for chunk in chunks if len(chunks) < 4 else self.progress_bar(chunks):
                options = {} if labels is None else {"class_labels": labels[chunk].to(device)}
                if not plain:
                    options |= {"latent_space": latent_space or "z", "truncation_psi": psi, "noise_mode": noise_mode}
                    sources = None if compiled else [generators[i] for i in chunk]
                    options |= {"truncation_cutoff": truncation_cutoff, "generator": sources}
                with acting(chunk):
                    batch = network(latents[chunk].to(device, self.generator.dtype), **options)
                batch = ((batch.float() + 1) / 2).clamp(0, 1).cpu()
                for i, image in zip(chunk, batch, strict=True):
                    images[i] = image
        images = torch.stack(images)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = [Image.fromarray(a) for a in (images * 255).round().astype(np.uint8)]
        return FewShotGANOutput(images, latents.cpu()) if return_dict else (images, latents.cpu())

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
        """The pictures of `pipe(skip + num_images, seed=seed)` from `skip` on, in order, a batch at a time.

        Only the batch is held. `fewshot_gan.apps.generation.write_pictures` makes files of a stream.

        Args:
            num_images: how many.
            skip: pictures to pass over first, undrawn: 20 µs each.
            seed, generator: as in `__call__`; a generator is left where the next stream goes on.
            batch_size: pictures per forward, and per item.
            options: of `__call__`; what is given per image is given for the `num_images`.

        Raises:
            ValueError: what `__call__` refuses.
        """
        for name, value, least in (("num_images", num_images, 1), ("skip", skip, 0), ("batch_size", batch_size, 1)):
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number, {least} or more")
        if seed is not None and generator is not None:
            raise ValueError("give seed or generator, not both")
        if isinstance(generator, list):
            raise ValueError("a stream has one generator for all images; a list of them is for a single call")
        generator = generator if seed is None else seeded(seed)
        per_image = {name: options.pop(name) for name in PER_IMAGE if _per_image(options.get(name))}
        for name, values in per_image.items():
            if len(values) != num_images:
                raise ValueError(f"{name} has {len(values)} entries for {num_images} images; give one per image")
        if (latents := options.get("latents", per_image.get("latents"))) is not None:
            check_latents(latents, self.generator.dtype)
        for _ in range(skip):
            if "latents" in per_image:
                _branch(generator)
            else:
                self._draw(1, generator, self._psi_of_z(options.get("truncation_psi")))
        for start in range(0, num_images, batch_size):
            stop = min(start + batch_size, num_images)
            own = {name: values[start:stop] for name, values in per_image.items()}
            yield self(stop - start, generator=generator, batch_size=batch_size, **own, **options)

    def _labels(self, labels, num_images: int, latents=None, latent_space: str | None = None) -> torch.Tensor | None:
        """See `labels_of_images`."""
        return labels_of_images(self.generator, labels, num_images, latents, latent_space)

    def some_labels(self, num_images: int) -> list[int] | None:
        """`class_labels` that go through the classes in turn; None of a generator without."""
        classes = getattr(self.generator, "num_classes", None)
        return None if classes is None else [i % classes for i in range(num_images)]

    def _psi_of_z(self, psi: float | None) -> float:
        """ψ of drawn z; style-based generators truncate w instead."""
        if self.generator.has_styles:
            return 1.0
        return self.config.truncation_psi if psi is None else psi

    def _draw(self, num_images: int, generator, psi: float) -> tuple[torch.Tensor, list[torch.Generator]]:
        """z `[N, z_dim]` and the generators of the noise, image by image, so that one does not depend on the next."""
        sources = generator if isinstance(generator, list) else [generator] * num_images
        latents, generators = [], []
        for source in sources:
            z = torch.randn(1, self.generator.z_dim, generator=source, dtype=torch.float32, device="cpu")
            latents.append(z if psi == 1 else psi * torch.nn.init.trunc_normal_(z, generator=source))  # cut at ±2
            generators.append(source if isinstance(generator, list) else _branch(source))
        return torch.cat(latents), generators

    @drawing
    def invert(self, images, *, space: str = "w", steps: int = 150, seed: int = 0, **options) -> Inversion:
        """Latents from which the base draws given pictures: `pipe(latents=pipe.invert(photo).latents)`.

        Args:
            images: a PIL image, a path or a NumPy array `[H, W, 3]` (uint8, or floats of 0…1), several of them, or a
                tensor `[N, 3, R, R]` in [-1, 1] or uint8. Pictures that are no tensors are cropped to the centre
                square and resized; a face should fill it as those of the base do.
            space: "w" keeps to what the base knows, "w+" comes closer and adapts less well.
            steps: of the optimisation; a third of a second each and per picture for `ffhq` on two cores.
            seed: of its noise.
            options: of `inversion.invert`: `learning_rate`, `perceptual`, `batch_size`, `progress`, …

        Returns:
            `latents` w+ `[N, num_ws, w_dim]`, `images` `[N, 3, R, R]` in [-1, 1] and `psnr` of each in dB.

        Raises:
            ValueError: pictures or options out of range.
            FileNotFoundError: a path without a file.
            ImportError: no perceptual network is installed and `perceptual="none"` was not given.
        """
        if not self.generator.has_styles:
            raise ValueError(
                f"a {type(self.generator).__name__} has no w to search; use a style-based base, e.g. 'ffhq'"
            )
        images = _as_floats(images, self.generator.resolution)
        with nullcontext() if self.bank.fused is not None else self.bank.using({}):
            return invert(self.generator, images, space=space, steps=steps, seed=seed, **options)

    def _looks(self, adapter_names, num_images: int) -> list[Mapping] | None:
        """One look per image, or None where the active adapters draw all of them."""
        if adapter_names is None:
            return None
        if isinstance(adapter_names, str | Mapping):
            adapter_names = [adapter_names] * num_images
        if not isinstance(adapter_names, Sequence):
            raise ValueError(f"adapter_names={adapter_names!r}: give a name, a {{name: weight}}, or a list of these")
        if len(adapter_names) != num_images:
            raise ValueError(
                f"adapter_names has {len(adapter_names)} entries for {num_images} images; give one per image"
            )
        looks = []
        for entry in adapter_names:
            if entry is None:
                looks.append(self.bank.current())
            elif isinstance(entry, Mapping):
                looks.append({name: weight for name, weight in entry.items() if name != BASE})
            elif isinstance(entry, str):
                looks.append({} if entry == BASE else {entry: 1.0})
            else:
                raise ValueError(f"adapter_names has {entry!r}: each entry is a name, a {{name: weight}} or None")
            self.bank.check(looks[-1])
        return looks

    @torch.no_grad()
    def interpolate(
        self, adapter_a: str, adapter_b: str, steps: int = 5, *, num_images: int = 1, **options
    ) -> FewShotGANOutput:
        """Pictures on the way from one look to another: weights 1 − t and t, t from 0 to 1 in equal steps.

        Args:
            adapter_a, adapter_b: loaded adapters; "__base__" for the unadapted generator.
            steps: pictures per strip, both ends included; at least 2.
            num_images: strips, each of its own latent and noise; ignored when `latents` are given.
            options: of `__call__`, but for `adapter_names`.

        Returns:
            `num_images · steps` pictures, strip after strip.

        Raises:
            ValueError: too few steps, an adapter that is not loaded, or what `__call__` refuses.
        """
        if not isinstance(steps, Integral) or steps < 2:
            raise ValueError(f"steps={steps!r}: a strip has at least its two ends; give 2 or more")
        if not isinstance(num_images, Integral) or num_images < 1:
            raise ValueError(f"num_images={num_images!r}: give a whole number, 1 or more")
        for name in (adapter_a, adapter_b):
            self.bank.check({} if name == BASE else {str(name): 1.0})
        if "adapter_names" in options:
            raise ValueError("interpolate chooses adapter_names itself; give adapter_a and adapter_b")
        seed, generator, latents = (options.pop(name, None) for name in ("seed", "generator", "latents"))
        if seed is not None and generator is not None:
            raise ValueError("give seed or generator, not both")
        generator = generator if seed is None else seeded(seed)
        if latents is None:
            latents, generators = self._draw(num_images, generator, self._psi_of_z(options.get("truncation_psi")))
        else:
            check_latents(latents, self.generator.dtype)
            generators = generator if isinstance(generator, list) else [_branch(generator) for _ in latents]
        strip = [t / (steps - 1) for t in range(steps)]
        looks = [{adapter_a: 1 - t, adapter_b: t} if adapter_a != adapter_b else {adapter_a: 1.0} for t in strip]
        looks = [{name: weight for name, weight in look.items() if weight} for look in looks]
        options["latents"] = latents.repeat_interleave(steps, 0)
        labels = options.pop("class_labels", None), len(latents), latents, options.get("latent_space")
        if (labels := self._labels(*labels)) is not None:
            options["class_labels"] = labels.repeat_interleave(steps, 0)
        # the same noise along a strip: only the look changes
        options["generator"] = [
            torch.Generator(device="cpu").set_state(g.get_state()) for g in generators for _ in strip
        ]
        return self(adapter_names=looks * len(latents), **options)

    def adapter_from_text(
        self, text: str, hypernetwork, adapter_name: str | None = None, encoder=None, **hub_options
    ) -> "FewShotGAN":
        """Let a hypernetwork draw the look that words name: a domain vector, loaded and made the active adapter.

        Args:
            text: e.g. "pencil drawing".
            hypernetwork: a `DomainHyperNetwork` of this base, local folder, or Hub repo id.
            adapter_name: its name in this pipeline; None: the text's letters and digits.
            encoder: an `Encoder`; None: the one the hypernetwork was trained with.
            hub_options: of the hypernetwork's folder or repo, as in `load_adapter`.

        Returns:
            The pipeline itself, so that calls chain; `save_adapter` and the others know the new one by its name.

        Raises:
            FileNotFoundError: no such hypernetwork or encoder, or no network.
            ValueError: an encoder that reads no text or is another one, a hypernetwork of another base, or a name
                that is taken.
        """
        network, encoder = self._hypernetwork(hypernetwork, encoder, **hub_options)
        adapter = network.adapter(encoder.text([text])[0], text=text)
        return self.load_adapter(adapter, adapter_name or _name_from(text))

    @torch.no_grad()
    def adapter_from_image(
        self, images, hypernetwork, adapter_name: str | None = None, encoder=None, **hub_options
    ) -> "FewShotGAN":
        """Let a hypernetwork draw the look of pictures; several are taken for one look, by their mean embedding.

        Args:
            images: as in `invert`, but tensors may have any H and W.
            adapter_name: its name in this pipeline; None: that of the first file, else "image".
            hypernetwork, encoder, hub_options: as in `adapter_from_text`.

        Returns:
            The pipeline itself.

        Raises:
            FileNotFoundError: a path without a file, or as `adapter_from_text`.
            ValueError: no picture, or as `adapter_from_text`.
        """
        network, encoder = self._hypernetwork(hypernetwork, encoder, **hub_options)
        first = images[0] if isinstance(images, list | tuple) and images else images
        images = _as_floats(images, self.generator.resolution)
        if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise ValueError(f"images of shape {tuple(images.shape)} are not [N, 3, H, W]; give at least one picture")
        check_range(images)
        adapter = network.adapter(encoder.image(images.to(self._execution_device)).mean(0), images=len(images))
        return self.load_adapter(
            adapter, adapter_name or _name_from(Path(first).stem if isinstance(first, str | Path) else "image")
        )

    def _hypernetwork(self, hypernetwork, encoder, **hub_options):
        """The hypernetwork and its encoder, loaded and known to fit each other."""
        from .features.encoders import load_encoder

        self.bank.refuse_while_fused("load an adapter")
        if unknown := hub_options.keys() - (() if isinstance(hypernetwork, DomainHyperNetwork) else HUB_OPTIONS):
            raise ValueError(f"unknown options for this hypernetwork: {', '.join(sorted(unknown))}")
        if not isinstance(hypernetwork, DomainHyperNetwork):
            hypernetwork = DomainHyperNetwork.from_pretrained(hypernetwork, **hub_options)
        if encoder is None:
            if hypernetwork.config.encoder is None:
                raise ValueError("the hypernetwork does not say which encoder it was trained with; give encoder=")
            encoder = load_encoder(hypernetwork.config.encoder, self._execution_device)
        hypernetwork.check_encoder(encoder)
        return hypernetwork, encoder

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Write the base: `model_index.json`, `generator/`, `discriminator/`. With fused adapters, the fused one.

        A base that lies in the folder is replaced all at once: a killed process leaves the old one or the new one.

        Small Python files beside them let plain `DiffusionPipeline.from_pretrained(…, trust_remote_code=True)` load it.

        Args:
            save_directory: folder, made if needed.
            kwargs: diffusers' own, and `push_to_hub`, `repo_id` and the options of `push_to_hub`.

        Raises:
            ValueError: part of what is fused has no equal in the weights.
        """
        if self.bank.fused:
            raise ValueError(
                f"{', '.join(map(repr, self.bank.active))} acts at {len(self.bank.fused)} layers that normalise their "
                "weights as they run (demodulation, spectral norm), which no weights can hold; save the adapter with "
                "save_adapter instead"
            )
        push_to_hub, repo_id = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", None)
        push_options = {k: kwargs.pop(k) for k in PUSH_OPTIONS if k in kwargs}
        folder, variant = user_path(save_directory), kwargs.get("variant")
        saved = [name for name, network in self.components.items() if network is not None]
        gone = [f"{name}/{file}" for name in saved for file in stored_weights(folder / name, variant)]
        with replacing(folder, gone) as staged:
            super().save_pretrained(staged, **kwargs)
            finish_base(staged, self)
        if push_to_hub:
            self.push_to_hub(repo_id or folder.absolute().name, adapter_name=BASE, variant=variant, **push_options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        adapter_name: str | None = None,
        variant: str | None = None,
        token: bool | str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload an adapter or the base, with a card that shows pictures of it.

        Args:
            repo_id: `owner/name`; made if it is not there.
            adapter_name: which adapter; None: the active one, or the base if no adapter is loaded. "__base__": the
                base in any case.
            variant: of the weights files, e.g. "fp16"; cast first.
            token: to write with; None: the one of `hf auth login`.
            private: of a new repo.
            revision: branch, made if it is not there; None: main.
            commit_message: None: says what was uploaded.
            create_pr: as a pull request.

        Returns:
            Full id of the repo.

        Raises:
            ValueError: not loaded, several active and none named, no token, or the Hub refused or cannot be reached.
        """
        from .data.grids import make_grid
        from .hub import push_folder
        from .hub.cards import write_base_card

        if adapter_name is None and not self.bank.adapters:
            adapter_name = BASE
        name = repo_id.rsplit("/", 1)[-1]
        options = {"token": token, "private": private, "revision": revision, "create_pr": create_pr}
        options["commit_message"] = commit_message or f"Upload {name} with fewshot_gan"
        if adapter_name != BASE:
            adapter_name = self._one_adapter(adapter_name)
            grid = None
            if self.bank.fused is None:
                same = {"seed": 0, "class_labels": self.some_labels(CARD_FACES)}
                rows = [self(CARD_FACES, adapter_names=look, **same).images for look in (BASE, adapter_name)]
                grid = make_grid([image for row in rows for image in row], CARD_FACES)
            options |= {"base": self.base_name, "grid": grid, "variant": variant}
            return self.bank.adapters[adapter_name].push_to_hub(repo_id, **options)
        with tempfile.TemporaryDirectory() as temp:
            self.save_pretrained(temp, variant=variant)
            write_base_card(self, temp, name, repo_id=repo_id)
            pushed = push_folder(temp, repo_id, **options)
        if self.bank.fused is None and (self.base_name is None or Path(self.base_name).exists()):
            self.base_name = pushed  # what adapters pushed next will name as their base
        return pushed

    def to(self, *args, **kwargs) -> "FewShotGAN":
        """Move to a device and/or dtype, loaded adapters with it (they keep float32)."""
        others = [value for value in (*args, *kwargs.values()) if value != self.generator.dtype]
        cast = any(isinstance(value, torch.dtype) for value in others)
        kept = self.bank.fingerprint() if cast and self.bank.fused is None else None  # adapters know the stored weights
        super().to(*args, **kwargs)
        self.bank.to(self._execution_device)
        if kept is not None:
            self.bank.remember_fingerprint(kept)
        return self

    def compile(self, **options) -> "FewShotGAN":
        """Compile the generator for this machine with `torch.compile`; calls of the pipeline then use that.

        The first picture of each batch size, and of each combination of looks in a batch, takes a minute or so; to
        switch between adapters of one kind compiles nothing anew. On a CPU it needs a C++ compiler, and may be slower
        than without: measure. Random noise is drawn uncompiled. `generator` itself stays as it is.

        Args:
            options: of `torch.compile`, e.g. `mode="max-autotune"` for one batch size on a GPU.

        Returns:
            The pipeline.
        """
        self._compiled = torch.compile(self.generator, **options)
        return self

    @staticmethod
    def set_kernels(kernels: str | None, **options) -> None:
        """Choose what the networks of this process compute with: see `ops.set_kernels`, which has the options too.

        Args:
            kernels: "hub" (downloads a kernel package), "local" (the one that fewshot_gan brings), "off" (plain torch),
                or None: "local" on a GPU if triton and kernels are installed. The environment variable
                `FEWSHOT_GAN_KERNELS` does the same.
            options: of "hub": `version`, `repo_id` and `trust_remote_code`.

        Raises:
            ValueError: an unknown choice, or no version number.
        """
        dispatch.set_kernels(kernels, **options)

    @staticmethod
    def list_embedded() -> dict[str, list[str]]:
        """What works offline: base name → its adapters."""
        return {base: list(embedded_adapters(base)) for base in embedded_bases()}


def _as_floats(images, resolution: int) -> torch.Tensor:
    """Pictures as `FewShotGAN.invert` takes them → `[N, 3, H, W]`; floats of a tensor are as they were."""
    if not isinstance(images, torch.Tensor):
        images = read_squares(images, resolution)
    elif images.dtype != torch.uint8 and images.numel():
        check_signed(images)
    return to_floats(images) if images.dtype == torch.uint8 else images


def _per_image(value) -> bool:
    """Whether an option of `__call__` is one of several, one per image."""
    return value.ndim > 0 if isinstance(value, torch.Tensor) else isinstance(value, Sequence) and type(value) is not str


def _branch(generator: torch.Generator | None) -> torch.Generator:
    """A generator of its own for one image's noise, seeded from `generator`."""
    return seeded(torch.randint(2**62, (), generator=generator, dtype=torch.int64, device="cpu"))


def _name_from(text: str) -> str:
    """A valid adapter name: the words of `text`, joined by dashes."""
    return "-".join(re.findall(r"\w+", text.lower()))[:64] or "default"
