"""Inception-v3, which judges and never guides; its weights are fetched once by torch-fidelity."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ..data.images import to_bytes
from .base import FeatureNetwork
from .weights import FETCHING, fault_of_cache


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 as published Fréchet distances and Inception Scores see (arXiv 1706.08500), by `torch_fidelity`.

    Pictures are rounded to 8 bits, as from files.

    Args:
        checkpoint: its weights; None: torch-fidelity's, fetched into torch's cache.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError: the weights cannot be fetched.
    """

    resize = "TensorFlow 1 bilinear, to 299 px"

    def __init__(self, checkpoint: str | Path | None = None):
        super().__init__()
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as published
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
        self.sha256 = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
        self.net = published.FeatureExtractorInceptionV3("inception-v3", ["2048"], str(checkpoint))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def pooled(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """The 2048 numbers before the classifier, `[N, 2048]`, of `[N, 3, H, W]` in [-1, 1]."""
        device = self.net.fc.weight.device
        return torch.cat([self.net(to_bytes(chunk.to(device)))[0] for chunk in images.split(batch_size)])

    def logits(self, features: Tensor) -> Tensor:
        """`pooled` features `[N, 2048]` → unbiased logits `[N, 1008]`, for the Inception Score (1606.03498)."""
        return features @ self.net.fc.weight.T.to(features.device)
