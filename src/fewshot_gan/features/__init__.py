"""Frozen feature networks, for losses, projected discriminators and metrics."""

from .base import FeatureNetwork
from .efficientnet import EfficientNetLiteFeatures
from .registry import load_features

__all__ = ["EfficientNetLiteFeatures", "FeatureNetwork", "load_features"]
