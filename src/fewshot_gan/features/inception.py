"""Inception-v3, for metrics only, never for training; torch-fidelity downloads its weights once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..data.images import to_bytes
from ..utils.hashing import hash_file
from .base import FeatureNetwork
from .weights import FETCHING, fault_of_cache


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 of `torch_fidelity`, with which Fréchet distances and Inception Scores are published (1706.08500).

    Pictures are rounded to 8 bits, as if they came from files.

    Args:
        checkpoint: path of its weights; None: those of torch-fidelity, downloaded into torch's cache.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError: the weights cannot be downloaded.
    """

    resize = "TensorFlow 1 bilinear, to 299 px"

    def __init__(self, checkpoint: str | Path | None = None):
        super().__init__()
        try:
            from torch_fidelity import (  # pyright: ignore[reportMissingImports]  of the extra metrics
                feature_extractor_inceptionv3 as published,
            )
        except ImportError as error:
            raise ImportError("Inception-v3 needs torch-fidelity: pip install 'fewshot_gan[metrics]'") from error
        if checkpoint is None:
            checkpoint = Path(torch.hub.get_dir(), "checkpoints", Path(published.URL_INCEPTION_V3).name)
            options = {"check_hash": True, "weights_only": True, "progress": False, "map_location": "cpu"}
            there = checkpoint.is_file()
            try:
                torch.hub.load_state_dict_from_url(published.URL_INCEPTION_V3, **options)
            except FETCHING as error:
                what = f"is damaged at {checkpoint}: remove it" if there else fault_of_cache(error)
                what = what or "cannot be fetched: try again with network"
                raise FileNotFoundError(
                    f"Inception-v3 {what}, or choose efficientnet-lite0 ({str(error) or type(error).__name__})"
                ) from error
        self.sha256 = hash_file(Path(checkpoint))
        self.net = published.FeatureExtractorInceptionV3("inception-v3", ["2048"], str(checkpoint))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def pooled(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Return the activations before the classifier `[N, 2048]` of images `[N, 3, H, W]` in [-1, 1]."""
        device = self.net.fc.weight.device
        return torch.cat([self.net(to_bytes(chunk.to(device)))[0] for chunk in images.split(batch_size)])

    def logits(self, features: Tensor) -> Tensor:
        """Return logits `[N, 1008]`, without bias, of `pooled` features, for the Inception Score (arXiv 1606.03498)."""
        return features @ self.net.fc.weight.T.to(features.device)
