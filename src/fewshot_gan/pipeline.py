"""`FewShotGAN`: a generator with its adapters, loaded, run, saved and shared like any diffusers pipeline."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_loading_utils
from diffusers.utils import BaseOutput, is_accelerate_available
from PIL import Image
from safetensors import safe_open

from .adapters import Adapter, AdapterBank
from .hub import embedded_adapters, embedded_bases, resolve_folder

# model_index.json then says ["fewshot_gan", "StyleGAN2Generator"], which loads from folders and from the Hub.
pipeline_loading_utils.LOADABLE_CLASSES.setdefault(
    "fewshot_gan", {"ModelMixin": ["save_pretrained", "from_pretrained"]}
)

BASE = "__base__"


@dataclass
class FewShotGANOutput(BaseOutput):
    """Result of `FewShotGAN`.

    Attributes:
        images: list of PIL images, or `[N, H, W, 3]` numpy / `[N, 3, H, W]` torch float in [0, 1].
        latents: the latents used, on the CPU: z `[N, z_dim]`, or what was passed in.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    latents: torch.Tensor


class FewShotGAN(DiffusionPipeline):
    """Generate images with a pretrained GAN and few-shot adapters.

    Args:
        generator: `MobileStyleGANGenerator` or `StyleGAN2Generator`.
        discriminator: optional; few-shot training starts from it.
        truncation_psi: default ψ of `__call__`.
    """

    _optional_components = ["discriminator"]
    model_cpu_offload_seq = "generator"

    def __init__(self, generator, discriminator=None, truncation_psi: float = 0.7):
        super().__init__()
        self.register_modules(generator=generator, discriminator=discriminator)
        self.register_to_config(truncation_psi=truncation_psi)
        self.bank = AdapterBank(generator)
        self.base_name: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "FewShotGAN":
        """Load a base generator.

        Args:
            pretrained_model_name_or_path: embedded name ("ffhq"), local folder, or Hub repo id.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the Hub, and diffusers'
                own (`dtype`, `variant`, `discriminator=None`, …). The default dtype is float32.

        Raises:
            FileNotFoundError: no such base, or no network; the message says what is embedded.
            ValueError: the weights are damaged.
        """
        hub = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        folder = resolve_folder(pretrained_model_name_or_path, **{k: kwargs.pop(k) for k in hub if k in kwargs})
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{folder} is not a base: it has no model_index.json (fewshot-gan convert makes one)"
            )
        kwargs.setdefault("dtype", torch.float32)
        kwargs.setdefault("low_cpu_mem_usage", is_accelerate_available())  # without it diffusers warns at length
        try:
            pipe = super().from_pretrained(str(folder), **kwargs)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"could not load the base in {folder}: {error}") from error
        for name, module in pipe.components.items():
            if module is None or name in kwargs:
                continue
            own = module.state_dict()
            stored = _stored_keys(folder / name) or {k for k, t in own.items() if not t.is_meta}  # no safetensors: .bin
            if missing := sorted(own.keys() - stored):
                raise ValueError(f"the {name} in {folder} lacks weights: {', '.join(missing[:8])}")
            if unknown := sorted(stored - own.keys()):
                raise ValueError(f"the {name} in {folder} has weights that it does not know: {', '.join(unknown[:8])}")
        pipe.base_name = str(pretrained_model_name_or_path)
        return pipe

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        latent_space: str | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        adapter_names: str | Sequence[str] | None = None,
        output_type: str = "pil",
        batch_size: int = 8,
        return_dict: bool = True,
    ) -> FewShotGANOutput:
        """Generate `num_images` pictures; image i depends on the seed and i only, whatever batch size and device.

        Args:
            num_images: how many; ignored when `latents` is given.
            seed: starts a fresh generator; exclusive with `generator`. Neither: torch's default generator.
            generator: source of latents and noise, on the CPU.
            latents: z `[N, z_dim]`, w `[N, w_dim]` or w+ `[N, num_ws, w_dim]` instead of drawn ones.
            latent_space: of `latents`: "z", "w" or "w+"; None takes "z" for two dimensions and "w+" for three.
            truncation_psi: ψ towards the mean w; None takes the pipeline's.
            truncation_cutoff: number of leading `ws` truncated; None = all.
            noise_mode: "const", "random" or "none".
            adapter_names: None: the active adapters; a name: that one alone; a list: one name per image. "__base__"
                is the unadapted generator.
            output_type: "pil", "np" or "pt".
            batch_size: images per forward.
            return_dict: False returns `(images, latents)`.

        Raises:
            ValueError: a number out of range, an unknown option, or an adapter that is not loaded.
        """
        if latents is not None:
            num_images = len(latents)
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"num_images={num_images} and batch_size={batch_size}: both are at least 1")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"unknown output_type {output_type!r}; known: pil, np, pt")
        if latent_space not in (None, "z", "w", "w+"):
            raise ValueError(f"unknown latent_space {latent_space!r}; known: z, w, w+")
        if seed is not None and generator is not None:
            raise ValueError("give seed or generator, not both")
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
        names = (
            [adapter_names] * num_images if adapter_names is None or isinstance(adapter_names, str) else adapter_names
        )
        if len(names) != num_images:
            raise ValueError(f"adapter_names has {len(names)} entries for {num_images} images; give one per image")
        self.bank.check(sorted(set(names) - {None, BASE}))

        if latents is None:
            # One draw per image: [z, noise seed], so that image i does not depend on how many follow.
            drawn = [self._draw(generator) for _ in range(num_images)]
            latents, seeds = torch.cat([z for z, _ in drawn]), [s for _, s in drawn]
        else:
            latent_space = latent_space or ("z" if latents.ndim == 2 else "w+")
            if latent_space == "z" and latents.shape[1:] != (self.generator.z_dim,):
                raise ValueError(f"latents of shape {tuple(latents.shape)} are not z [N, {self.generator.z_dim}]")
            seeds = [self._noise_seed(generator) for _ in range(num_images)]
        psi = self.config.truncation_psi if truncation_psi is None else truncation_psi

        # rows of one look share a forward
        rows = sorted(range(num_images), key=lambda i: names[i] or "")
        chunks = []
        for i in rows:
            if not chunks or len(chunks[-1]) == batch_size or names[chunks[-1][-1]] != names[i]:
                chunks.append([])
            chunks[-1].append(i)
        network, images = self.generator, [None] * num_images
        for chunk in chunks if len(chunks) < 4 else self.progress_bar(chunks):
            with self._look(names[chunk[0]]):
                batch = network(
                    latents[chunk].to(self.device, network.dtype),
                    latent_space=latent_space or "z",
                    truncation_psi=psi,
                    truncation_cutoff=truncation_cutoff,
                    noise_mode=noise_mode,
                    generator=[torch.Generator().manual_seed(seeds[i]) for i in chunk],
                )
            batch = ((batch.float() + 1) / 2).clamp(0, 1).cpu()
            for i, image in zip(chunk, batch, strict=True):
                images[i] = image
        images = torch.stack(images)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = [Image.fromarray(a) for a in (images * 255).round().astype(np.uint8)]
        return FewShotGANOutput(images, latents.cpu()) if return_dict else (images, latents.cpu())

    def _draw(self, generator) -> tuple[torch.Tensor, int]:
        return torch.randn(1, self.generator.z_dim, generator=generator), self._noise_seed(generator)

    @staticmethod
    def _noise_seed(generator) -> int:
        return int(torch.randint(2**62, (1,), generator=generator))

    def _look(self, name: str | None):
        if name is None:
            return nullcontext()
        return self.bank.using({} if name == BASE else {name: 1.0})

    def load_adapter(
        self, pretrained_model_name_or_path, adapter_name: str | None = None, **hub_kwargs
    ) -> "FewShotGAN":
        """Load an adapter and make it the active one.

        Args:
            pretrained_model_name_or_path: embedded name ("sketch"), local folder, Hub repo id, or an `Adapter`.
            adapter_name: its name in this pipeline; None takes the last part of the path.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

        Returns:
            The pipeline itself, so that calls chain.

        Raises:
            FileNotFoundError: no such adapter, or no network; the message says what is embedded.
            ValueError: damaged, or made for another base.
        """
        if isinstance(pretrained_model_name_or_path, Adapter):
            adapter, name = pretrained_model_name_or_path, adapter_name or "default"
        else:
            adapter = Adapter.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
            name = adapter_name or Path(str(pretrained_model_name_or_path)).absolute().name
        if name == BASE:
            raise ValueError(f"{BASE!r} names the unadapted generator; choose another adapter_name")
        self.bank.add(name, adapter)
        self.bank.activate({name: 1.0})
        return self

    def set_adapters(self, adapter_names: str | Sequence[str], weights: float | Sequence[float] | None = None) -> None:
        """Let exactly these loaded adapters act, blended with `weights` (None: 1 each; any sign and size).

        Raises:
            ValueError: not loaded, or as many weights as names are not given.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = [1.0] * len(names) if weights is None else weights
        weights = [weights] * len(names) if isinstance(weights, int | float) else list(weights)
        if len(weights) != len(names):
            raise ValueError(f"{len(names)} adapters but {len(weights)} weights; give one weight per adapter")
        self.bank.activate(dict(zip(names, weights, strict=True)))

    def active_adapters(self) -> list[str]:
        """Names of the adapters that act now."""
        return list(self.bank.active) if self.bank.enabled else []

    def get_list_adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(self.bank.adapters)

    def disable_adapters(self) -> None:
        """Generate with the base alone until `enable_adapters`."""
        self.bank.enable(False)

    def enable_adapters(self) -> None:
        """Undo `disable_adapters`."""
        self.bank.enable(True)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unload adapters.

        Raises:
            ValueError: one is not loaded.
        """
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.bank.remove(name)

    def save_adapter(self, save_directory, adapter_name: str | None = None) -> None:
        """Write one loaded adapter (None: the active one) to a folder.

        Raises:
            ValueError: not loaded, or several are active and none is named.
        """
        if adapter_name is None:
            if len(self.bank.active) != 1:
                raise ValueError(f"{len(self.bank.active)} adapters are active; say which with adapter_name=")
            (adapter_name,) = self.bank.active
        self.bank.check([adapter_name])
        self.bank.adapters[adapter_name].save_pretrained(save_directory)

    def to(self, *args, **kwargs) -> "FewShotGAN":
        """Move to a device and/or dtype, loaded adapters with it (they keep float32)."""
        super().to(*args, **kwargs)
        self.bank.to(self.device)
        return self

    @staticmethod
    def list_embedded() -> dict[str, list[str]]:
        """What works offline: base name → its adapters."""
        return {base: list(embedded_adapters(base)) for base in embedded_bases()}


def _stored_keys(folder: Path) -> set[str]:
    """Names of the tensors in a component's safetensors files; diffusers itself only warns about those it misses."""
    keys = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys |= set(file.keys())
    return keys
