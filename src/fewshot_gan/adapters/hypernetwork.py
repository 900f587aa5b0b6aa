"""Hypernetwork: predicts the domain vector of a text or picture from its embedding (HyperDomainNet, arXiv 2210.08884).

Shape legend: B domains, E size of an embedding, C input channels of a layer.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file
from torch import nn

from ..hub import PUSH_OPTIONS, portable_name, resolve_folder
from ..hub.base_files import stored_keys
from ..models.layers import AdaptableLayer
from ..models.network import Network, stored_weights
from ..utils.files import replace_file, replace_text, replacing, user_path
from ..utils.hashing import fingerprint
from ..utils.meta import on_meta
from .base import Adapter, select_layers
from .domain_vector import DomainVectorAdapter, DomainVectorFactors
from .io import compact
from .spec import LayerSpec
from .trainable import Trainable


class Residual(nn.Module):
    """ReLU(x + BN(Linear(ReLU(BN(Linear(x)))))), all of one width."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, width] -> [B, width]
        return F.relu(x + self.layers(x))


KINDS: dict[str, "type[HyperNetwork]"] = {}  # class name → class; a class enters itself when it is defined
SMALLEST_SPREAD = 1e-4  # of a number of the embedding, by which it is divided


class HyperNetwork(Trainable, Network):
    """Base class of networks that predict adapters of one base from embeddings of texts or pictures.

    Subclasses implement `target_layers`, `forward` and `make_adapter`, and call `add_scales`.
    """

    predicts: ClassVar[str]  # what, for model cards
    adapter_type = "hypernetwork"  # for records of training runs; it makes adapters and is not one
    input_mean: torch.Tensor
    input_std: torch.Tensor

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        KINDS[cls.__name__] = cls

    if TYPE_CHECKING:  # diffusers annotates a plain dict, which has no attributes

        @property
        def config(self) -> Any: ...

    @property
    def num_deltas(self) -> int:
        """Number of values in one predicted adapter."""
        raise NotImplementedError

    @classmethod
    def target_layers(cls, model: nn.Module) -> dict[str, AdaptableLayer]:
        """Return module path → layer for the layers of `model` that the predicted adapters change."""
        raise NotImplementedError

    def make_adapter(self, numbers: Mapping[str, torch.Tensor], **training: Any) -> Adapter:
        """Return an adapter of what `forward` predicts for a single embedding.

        Args:
            numbers: module path → tensor of one row.
            training: recorded in the adapter's config.
        """
        raise NotImplementedError

    @staticmethod
    def check_sizes(**sizes: int) -> None:
        """Refuse sizes that are no whole number, or below 1.

        Raises:
            ValueError: such a size.
        """
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number, 1 or more")

    def add_scales(self, embedding_dim: int, each: bool) -> None:
        """Make the buffers of `standardise`: a standard deviation for each number of an embedding, or one for all."""
        self.register_buffer("input_mean", torch.zeros(embedding_dim, dtype=torch.float32, device="cpu"))
        shape = [embedding_dim] if each else []
        self.register_buffer("input_std", torch.ones(shape, dtype=torch.float32, device="cpu"))

    @classmethod
    def for_model(cls, model: nn.Module, encoder=None, *, embedding_dim: int | None = None, **options):
        """Return a fresh hypernetwork for `model`.

        Args:
            model: the base network.
            encoder: an `Encoder`; size, name and identity of the embeddings are taken from it.
            embedding_dim: E, if no encoder is given.
            options: sizes of the network, `base_model_name_or_path`, `training`.

        Raises:
            ValueError: neither encoder nor size, or options out of range.
        """
        if encoder is not None:
            options |= {"encoder": encoder.name, "encoder_identity": encoder.identity}
            embedding_dim = encoder.dim
        if embedding_dim is None:
            raise ValueError("the size of the embeddings is open: give an encoder, or embedding_dim=512")
        targets = {path: asdict(LayerSpec.of(layer)) for path, layer in cls.target_layers(model).items()}
        make: Any = cls  # the constructors of the kinds have options of their own
        return make(targets, embedding_dim, base_fingerprint=fingerprint(model), **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **hub_options) -> Self:
        """Load a hypernetwork; `HyperNetwork.from_pretrained` loads any kind.

        Args:
            pretrained_model_name_or_path: local folder, or Hub repo id.
            hub_options: `subfolder`, and `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            FileNotFoundError: there is no such folder or repo, or no network connection.
            ValueError: it holds no hypernetwork, or a damaged one.
        """
        folder = resolve_folder(pretrained_model_name_or_path, kind="hypernetwork", **hub_options)
        try:
            config: Any = cls.load_config(str(folder))
            kind = KINDS.get(config.get("_class_name", ""), cls)
            if not issubclass(kind, cls):
                raise ValueError(f"it is a {kind.__name__}, which {kind.__name__}.from_pretrained loads")
            with on_meta():
                empty: Any = kind.from_config(config)
            # before the weights are read: diffusers leaves a missing weight uninitialised
            if wrong := sorted(empty.state_dict().keys() ^ stored_keys(folder)):
                raise ValueError(f"these weights are missing or unknown: {', '.join(wrong[:8])}")
            network: Any = super(HyperNetwork, kind).from_pretrained(str(folder), low_cpu_mem_usage=False)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{folder} holds no hypernetwork that can be loaded: {reason}") from error
        return network.float().requires_grad_(False)  # the file may hold float16

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        self, save_directory, *, push_to_hub: bool = False, repo_id=None, **kwargs
    ) -> None:
        """Write `config.json` and the weights; tensors that float16 holds exactly are stored as float16.

        Args:
            save_directory: folder, made if needed.
            push_to_hub: also upload it, see `push_to_hub`.
            repo_id: repo to upload to; None: the folder's name.
            kwargs: those of diffusers, and the options of `push_to_hub`.
        """
        push_options = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        save_directory = user_path(save_directory)
        outdated = stored_weights(save_directory, kwargs.get("variant"))
        with replacing(save_directory, outdated) as staged:
            super().save_pretrained(staged, **kwargs)  # pyright: ignore[reportArgumentType]  wrapped: self is hidden
            config = staged / str(self.config_name)
            settings = json.loads(config.read_text(encoding="utf-8"))
            settings.pop("_name_or_path", None)  # the local folder that it was loaded from
            replace_text(config, json.dumps(settings, indent=2) + "\n")
            for path in staged.glob("*.safetensors"):
                tensors = {name: compact(tensor) for name, tensor in load_file(path).items()}
                replace_file(path, lambda temp, tensors=tensors: save_file(tensors, temp, metadata={"format": "pt"}))
                shutil.copymode(config, path)  # safetensors writes files that only the owner can read
        if push_to_hub:
            self.push_to_hub(repo_id or save_directory.absolute().name, **push_options)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]  by keyword only, as the other options
        self, repo_id: str, *, base: str | None = None, **push_options
    ) -> str:
        """Upload the hypernetwork with its card.

        Args:
            repo_id: `owner/name`, created if it does not exist.
            base: name of the base in card and config, for a base in a local folder; None: the folder's name.
            push_options: `token`, `private`, `revision`, `commit_message`, `create_pr`.

        Returns:
            Full id of the repo.

        Raises:
            ValueError: the Hub refused, e.g. without a token, or cannot be reached.
        """
        from ..hub import push_folder
        from ..hub.cards import portable_base, write_hypernetwork_card

        local_names = {name: self.config[name] for name in ("base_model_name_or_path", "encoder")}
        portable = portable_base(self.config, base), portable_name(self.config.encoder)
        with tempfile.TemporaryDirectory() as temp:
            self.register_to_config(**dict(zip(local_names, portable, strict=True)))
            try:
                self.save_pretrained(temp)
                write_hypernetwork_card(self, temp, repo_id.rsplit("/", 1)[-1], repo_id=repo_id)
            finally:
                self.register_to_config(**local_names)
            return push_folder(temp, repo_id, **push_options)

    def num_values(self) -> int:
        """Return the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def round_to_half(self) -> None:
        """Round every trained parameter to the nearest float16 in place, so that the file takes half the bytes."""
        for parameter in self.parameters():
            parameter.copy_(parameter.half())

    def check_encoder(self, encoder) -> None:
        """Refuse an encoder whose embeddings differ from those that this hypernetwork was trained on.

        Raises:
            ValueError: it is another encoder than in training.
        """
        wanted = self.config.encoder_identity
        if encoder.dim != self.config.embedding_dim or (wanted is not None and encoder.identity != wanted):
            raise ValueError(
                f"this hypernetwork reads {self.config.embedding_dim} numbers of encoder {self.config.encoder!r} "
                f"({wanted}), not {encoder.dim} of {encoder.name!r} ({encoder.identity}); use the former"
            )

    @torch.no_grad()
    def standardise(self, embeddings: torch.Tensor) -> None:
        """Standardise all later inputs with the mean and standard deviation of some embeddings. Not in the paper.

        Embeddings of pictures are nearly parallel. Without this step the differences between domains are below the ε of
        the first batch norm, and all domains get the same vector.

        Args:
            embeddings: `[N, E]`, e.g. of the training domains.
        """
        units = F.normalize(embeddings.to(self.input_mean), dim=1)
        self.input_mean.copy_(units.mean(0))
        squares = (units - self.input_mean).square()
        spread = squares.mean(0) if self.input_std.ndim else squares.mean()
        self.input_std.copy_(spread.sqrt().clamp_min(SMALLEST_SPREAD if self.input_std.ndim else 1e-6))

    def scaled(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return embeddings `[B, E]` of unit length, standardised.

        Raises:
            ValueError: another shape.
        """
        size = self.config.embedding_dim
        if embeddings.ndim != 2 or embeddings.shape[1] != size:
            raise ValueError(
                f"embeddings of shape {tuple(embeddings.shape)} are not [B, {size}]; use the encoder it was made for"
            )
        return (F.normalize(embeddings.to(self.dtype), dim=1) - self.input_mean) / self.input_std

    @torch.no_grad()
    def adapter(self, embedding: torch.Tensor, **training) -> Adapter:
        """Return the look of one embedding as an adapter, which can be saved, blended and shared.

        Args:
            embedding: `[E]` or `[1, E]`.
            training: recorded in the adapter's config, e.g. `text="pencil drawing"`.

        Raises:
            ValueError: another shape.
        """
        embedding = embedding[None] if embedding.ndim == 1 else embedding
        if len(embedding) != 1:
            raise ValueError(f"{len(embedding)} embeddings for one adapter; give one, e.g. their mean")
        was_training = self.training
        try:
            numbers = self.eval()(embedding.to(self.device))
        finally:
            self.train(was_training)
        adapter = self.make_adapter(numbers, **training)
        adapter.check()
        return adapter.eval().requires_grad_(False)


class DomainHyperNetwork(HyperNetwork):
    """Predict domain vectors of one base from embeddings of texts or pictures (arXiv 2210.08884 §4).

    It has a backbone, and a head per layer: 13,913,504 parameters for StyleGAN2 at 1024 px, 14,968,224 with
    `backbone_depth=6`, which the paper uses for pictures.

    Args:
        target_modules: module path → `LayerSpec` as a dict (JSON) of the convolutions; `for_model` fills it in.
        embedding_dim: E.
        width: of all hidden layers.
        backbone_depth: one linear layer and `backbone_depth − 1` residual blocks.
        head_depth: `head_depth − 1` residual blocks and one linear layer per head.
        placement: where the vectors act; "post_demod" only.
        encoder, encoder_identity: `name` and `identity` of the encoder that it was trained with.
        base_model_name_or_path: alias, folder or repo id of the base.
        base_fingerprint: `fingerprint(generator)` of the base.
        training: settings of the training run, for the record.

    Raises:
        ValueError: a size below 1, another placement, no layer, or a layer that is no dense convolution.
    """

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        embedding_dim: int = 512,
        width: int = 512,
        backbone_depth: int = 4,
        head_depth: int = 2,
        placement: str = "post_demod",
        encoder: str | None = None,
        encoder_identity: str | None = None,
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        sizes = {"embedding_dim": embedding_dim, "width": width, "backbone_depth": backbone_depth}
        self.check_sizes(**sizes, head_depth=head_depth)
        if placement != "post_demod":
            raise ValueError(f"placement={placement!r}: a hypernetwork predicts vectors that act 'post_demod'")
        DomainVectorAdapter(target_modules=target_modules)  # refuses layers that domain vectors cannot act on
        self.backbone = nn.Sequential(
            nn.Linear(embedding_dim, width),
            nn.ReLU(),
            nn.BatchNorm1d(width),
            *(Residual(width) for _ in range(backbone_depth - 1)),
        )
        self.heads = nn.ModuleDict(
            {
                _key(path): nn.Sequential(
                    *(Residual(width) for _ in range(head_depth - 1)), nn.Linear(width, spec["shape"][1])
                )
                for path, spec in sorted(target_modules.items())  # config.json is sorted too
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=0.01)  # δ starts near 0: the base itself
                nn.init.zeros_(module.bias)
        self.add_scales(embedding_dim, each=False)

    @classmethod
    def target_layers(cls, model: nn.Module) -> dict[str, AdaptableLayer]:
        return select_layers(model, DomainVectorAdapter.roles)

    predicts = "domain vectors"

    @property
    def num_deltas(self) -> int:
        """Number of values in one domain vector."""
        return sum(spec["shape"][1] for spec in self.config.target_modules.values())

    def forward(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict domain vectors.

        Args:
            embeddings: `[B, E]` of any norm; they are normalised to unit length.

        Returns:
            Module path → δ `[B, C]`.

        Raises:
            ValueError: another shape, or a single row in train mode, where batch norm needs two.
        """
        embeddings = self.scaled(embeddings)
        if self.training and len(embeddings) == 1:
            raise ValueError(
                "batch norm cannot train on a single domain; give 2 or more at a time, or call eval() first"
            )
        hidden = self.backbone(embeddings)
        return {path: self.heads[_key(path)](hidden) for path in sorted(self.config.target_modules)}

    def make_adapter(self, numbers, **training):
        c = self.config
        adapter = DomainVectorAdapter(
            target_modules={path: dict(spec) for path, spec in c.target_modules.items()},
            placement=c.placement,
            base_model_name_or_path=c.base_model_name_or_path,
            base_fingerprint=c.base_fingerprint,
            method="hyperdomainnet",
            training={"encoder": portable_name(c.encoder), **training},  # cards show it
        )
        for path, factors in adapter.factors().items():
            cast(DomainVectorFactors, factors).delta.copy_(numbers[path][0])
        return adapter


def _key(path: str) -> str:
    """Return a module path in a form that can name one module."""
    return path.replace(".", "-")
