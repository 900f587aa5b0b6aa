"""Metrics: functions of tensors that return numbers."""

from ..data.images import LUMINANCE, luminance, sobel
from .clip import clip_diversity, clip_quality
from .crops import CROP_SEED, CROP_SIZE, CROPS, crop_kernel_distance, crop_places, native_crops
from .distributions import (
    FeatureMoments,
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_distance_of_subsets,
    precision_recall,
)
from .diversity import (
    balanced_intra_cluster_distance,
    intra_cluster_distance,
    mean_of_pairs,
    pairwise_distances,
    spatial_distance,
    spatial_embedding,
)
from .images import psnr
from .pairs import FACE_PLACES, FACE_SIDE, lightness_following, order_correlation, paired_correlations
from .plain import PLAIN_GAIN, SCALES, plain_features

__all__ = [
    "LUMINANCE",
    "psnr",
    "luminance",
    "sobel",
    "FeatureMoments",
    "frechet_distance",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "CROP_SEED",
    "CROP_SIZE",
    "CROPS",
    "crop_places",
    "native_crops",
    "crop_kernel_distance",
    "precision_recall",
    "inception_score",
    "SCALES",
    "PLAIN_GAIN",
    "plain_features",
    "paired_correlations",
    "FACE_PLACES",
    "FACE_SIDE",
    "lightness_following",
    "order_correlation",
    "spatial_embedding",
    "pairwise_distances",
    "spatial_distance",
    "mean_of_pairs",
    "intra_cluster_distance",
    "balanced_intra_cluster_distance",
    "clip_quality",
    "clip_diversity",
]
