"""Hypernetwork: from the embedding of a domain to the vector that draws it (HyperDomainNet, arXiv 2210.08884, §4).

Shape legend: B domains, E size of an embedding, C input channels of a layer.
"""

import json
import shutil
import tempfile
from dataclasses import asdict

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file
from torch import nn

from ..hub import PUSH_OPTIONS, portable_name, resolve_folder
from ..models.network import Network, stored_weights
from ..utils.files import replace_file, replace_text, replacing, user_path
from ..utils.hashing import fingerprint
from .base import select_layers
from .domain_vector import DomainVectorAdapter
from .io import compact
from .spec import LayerSpec
from .trainable import Trainable


class Residual(nn.Module):
    """x + BN(Linear(ReLU(BN(Linear(x))))), then ReLU; all of one width."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, width] -> [B, width]
        return F.relu(x + self.layers(x))


class DomainHyperNetwork(Trainable, Network):
    """Embedding of a text or a picture → domain vector of one base: a backbone, and a head per layer.

    For StyleGAN2 at 1024 px 13,913,504 numbers; 14,968,224 with `backbone_depth=6`, which the paper takes for pictures.

    Args:
        target_modules: module path → `LayerSpec` as a dict (JSON) of the convolutions; `for_model` fills it in.
        embedding_dim: E.
        width: of all hidden layers.
        backbone_depth: one linear layer and `backbone_depth − 1` residual blocks.
        head_depth: `head_depth − 1` residual blocks and one linear layer per head.
        placement: where the vectors act; "post_demod" only.
        encoder, encoder_identity: `name` and `identity` of the encoder it was trained with.
        base_model_name_or_path: alias, folder or repo id of the base.
        base_fingerprint: `fingerprint(generator)` of the base.
        training: settings of the run, for the record.

    Raises:
        ValueError: a size below 1, another placement, no layer, or one that is no dense convolution.
    """

    adapter_type = "hypernetwork"  # in the records of runs; it makes adapters and is none

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
        for name, value in {**sizes, "head_depth": head_depth}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number, 1 or more")
        if placement != "post_demod":
            raise ValueError(f"placement={placement!r}: a hypernetwork predicts vectors that act 'post_demod'")
        DomainVectorAdapter(target_modules=target_modules)  # refuses what no domain vector acts on
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
                for path, spec in sorted(target_modules.items())  # as config.json has them
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=0.01)  # δ starts near 0: the base itself
                nn.init.zeros_(module.bias)
        self.register_buffer(
            "input_mean", torch.zeros(embedding_dim, dtype=torch.float32, device="cpu")
        )  # see `standardise`
        self.register_buffer("input_std", torch.ones([], dtype=torch.float32, device="cpu"))

    @classmethod
    def for_model(cls, model: nn.Module, encoder=None, *, embedding_dim: int | None = None, **options):
        """A fresh hypernetwork for the styled convolutions of `model`.

        Args:
            model: the base network.
            encoder: an `Encoder`: gives the size, name and identity of the embeddings.
            embedding_dim: E, without an encoder.
            options: `width`, `backbone_depth`, `head_depth`, `base_model_name_or_path`, `training`.

        Raises:
            ValueError: neither encoder nor size, or options out of range.
        """
        if encoder is not None:
            options |= {"encoder": encoder.name, "encoder_identity": encoder.identity}
            embedding_dim = encoder.dim
        if embedding_dim is None:
            raise ValueError("the size of the embeddings is open: give an encoder, or embedding_dim=512")
        layers = select_layers(model, DomainVectorAdapter.roles)
        targets = {path: asdict(LayerSpec.of(layer)) for path, layer in layers.items()}
        return cls(targets, embedding_dim, base_fingerprint=fingerprint(model), **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **hub_options) -> "DomainHyperNetwork":
        """Load a hypernetwork.

        Args:
            pretrained_model_name_or_path: local folder, or Hub repo id.
            hub_options: `subfolder`, and `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            FileNotFoundError: there is no such folder or repo, or no network.
            ValueError: it holds no hypernetwork, or a damaged one.
        """
        folder = resolve_folder(pretrained_model_name_or_path, kind="hypernetwork", **hub_options)
        try:
            options = {"low_cpu_mem_usage": False, "output_loading_info": True}
            network, info = super().from_pretrained(str(folder), **options)
            if wrong := sorted([*info["missing_keys"], *info["unexpected_keys"]]):
                raise ValueError(f"these numbers are missing or unknown: {', '.join(wrong[:8])}")
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{folder} holds no hypernetwork that can be loaded: {reason}") from error
        return network.float().requires_grad_(False)  # tensors stored as float16 come as such

    def save_pretrained(self, save_directory, *, push_to_hub: bool = False, repo_id=None, **kwargs) -> None:
        """Write `config.json` and the weights, as float16 where that is exact; other options are diffusers' own.

        Args:
            save_directory: folder, made if needed.
            push_to_hub: upload it too, see `push_to_hub`; `repo_id` defaults to the folder's name.
        """
        push_options = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        save_directory = user_path(save_directory)
        gone = stored_weights(save_directory, kwargs.get("variant"))
        with replacing(save_directory, gone) as staged:
            super().save_pretrained(staged, **kwargs)
            config = staged / self.config_name
            # diffusers notes where it was loaded from, a folder of this machine
            kept = {k: v for k, v in json.loads(config.read_text(encoding="utf-8")).items() if k != "_name_or_path"}
            replace_text(config, json.dumps(kept, indent=2) + "\n")
            for path in staged.glob("*.safetensors"):
                tensors = {name: compact(tensor) for name, tensor in load_file(path).items()}
                replace_file(path, lambda temp, tensors=tensors: save_file(tensors, temp, metadata={"format": "pt"}))
                shutil.copymode(config, path)  # safetensors lets only the owner read
        if push_to_hub:
            self.push_to_hub(repo_id or save_directory.absolute().name, **push_options)

    def push_to_hub(self, repo_id: str, *, base: str | None = None, **push_options) -> str:
        """Upload the hypernetwork with its card.

        Args:
            repo_id: `owner/name`, made if it is not there.
            base: what card and config call the base if it was trained on a folder of this machine; None: its name.
            push_options: `token`, `private`, `revision`, `commit_message`, `create_pr`.

        Returns:
            Full id of the repo.

        Raises:
            ValueError: the Hub refused, e.g. without a token, or cannot be reached.
        """
        from ..hub import push_folder
        from ..hub.cards import portable_base, write_hypernetwork_card

        known = {name: self.config[name] for name in ("base_model_name_or_path", "encoder")}
        portable = portable_base(self.config, base), portable_name(self.config.encoder)
        with tempfile.TemporaryDirectory() as temp:
            self.register_to_config(**dict(zip(known, portable, strict=True)))
            try:
                self.save_pretrained(temp)
                write_hypernetwork_card(self, temp, repo_id.rsplit("/", 1)[-1], repo_id=repo_id)
            finally:
                self.register_to_config(**known)
            return push_folder(temp, repo_id, **push_options)

    def num_values(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def round_to_half(self) -> None:
        """Round every trained number to the nearest float16 in place: the file then takes half the bytes."""
        for parameter in self.parameters():
            parameter.copy_(parameter.half())

    @property
    def num_deltas(self) -> int:
        """Numbers of one domain vector."""
        return sum(spec["shape"][1] for spec in self.config.target_modules.values())

    def check_encoder(self, encoder) -> None:
        """Refuse an encoder whose embeddings mean something else.

        Raises:
            ValueError: it is not the one this hypernetwork was trained with.
        """
        wanted = self.config.encoder_identity
        if encoder.dim != self.config.embedding_dim or (wanted is not None and encoder.identity != wanted):
            raise ValueError(
                f"this hypernetwork reads {self.config.embedding_dim} numbers of encoder {self.config.encoder!r} "
                f"({wanted}), not {encoder.dim} of {encoder.name!r} ({encoder.identity}); use the former"
            )

    @torch.no_grad()
    def standardise(self, embeddings: torch.Tensor) -> None:
        """Take from every embedding, from now on, what those of `embeddings` `[N, E]` have in common; not of the paper.

        Embeddings of pictures are nearly parallel. As they are, what tells domains apart is below the ε of the first
        batch norm, and all domains get one vector.
        """
        units = F.normalize(embeddings.to(self.input_mean), dim=1)
        self.input_mean.copy_(units.mean(0))
        self.input_std.copy_((units - self.input_mean).square().mean().sqrt().clamp_min(1e-6))

    def forward(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """`[B, E]`, of any length (they are scaled to 1 here) → module path: δ `[B, C]`.

        Raises:
            ValueError: another shape, or a single row in train mode, of which batch norm has no statistics.
        """
        size = self.config.embedding_dim
        if embeddings.ndim != 2 or embeddings.shape[1] != size:
            raise ValueError(
                f"embeddings of shape {tuple(embeddings.shape)} are not [B, {size}]; use the encoder it was made for"
            )
        if self.training and len(embeddings) == 1:
            raise ValueError(
                "batch norm cannot train on a single domain; give 2 or more at a time, or call eval() first"
            )
        hidden = self.backbone((F.normalize(embeddings.to(self.dtype), dim=1) - self.input_mean) / self.input_std)
        return {path: self.heads[_key(path)](hidden) for path in sorted(self.config.target_modules)}

    @torch.no_grad()
    def adapter(self, embedding: torch.Tensor, **training) -> DomainVectorAdapter:
        """The domain vector of one embedding as an adapter of its own, to be saved, blended and shared.

        Args:
            embedding: `[E]` or `[1, E]`.
            training: for the record, e.g. `text="pencil drawing"`.

        Raises:
            ValueError: another shape.
        """
        embedding = embedding[None] if embedding.ndim == 1 else embedding
        if len(embedding) != 1:
            raise ValueError(f"{len(embedding)} embeddings for one adapter; give one, e.g. their mean")
        c, was_training = self.config, self.training
        try:
            deltas = self.eval()(embedding.to(self.device))
        finally:
            self.train(was_training)
        adapter = DomainVectorAdapter(
            target_modules={path: dict(spec) for path, spec in c.target_modules.items()},
            placement=c.placement,
            base_model_name_or_path=c.base_model_name_or_path,
            base_fingerprint=c.base_fingerprint,
            method="hyperdomainnet",
            training={"encoder": portable_name(c.encoder), **training},  # cards show it
        )
        for path, factors in adapter.factors().items():
            factors.delta.copy_(deltas[path][0])
        adapter.check()
        return adapter.eval().requires_grad_(False)


def _key(path: str) -> str:
    """A module path as the name of one module."""
    return path.replace(".", "-")
