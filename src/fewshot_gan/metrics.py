"""Distances between image sets and between aligned images: tensors in, numbers out.

Use `kernel_distance` below 1000 images: the Fréchet distance is biased by the sample size, KID is not.
"""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data.images import check_floats
from .features import FeatureNetwork

_BLOCK = 256  # rows whose distances are held at a time
_COLUMNS = 2**18  # of embeddings turned to float64 at a time
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, per image, then averaged; infinite as soon as one pair is equal.

    Args:
        a, b: float `[B, 3, H, W]`, clamped to [-1, 1] (peak-to-peak 2) first.

    Raises:
        ValueError: shapes differ, or they are no floats.
    """
    check_floats(a, b)
    if a.shape != b.shape:
        raise ValueError(f"images have shapes {list(a.shape)} and {list(b.shape)}; resize one set to the other")
    error = (a.double().clamp(-1, 1) - b.double().clamp(-1, 1)).square().flatten(1).mean(1)  # [B]
    return (10 * torch.log10(4 / error)).mean().item()


# ---------------------------------------------------------------------------------------- distances between two sets


class FeatureMoments:
    """Number, mean and covariance of feature vectors that come in batches, in float64; holds `[D, D]` whatever N.

    Batches are merged by their own means (Chan, Golub, LeVeque 1979), so that nothing cancels.
    """

    def __init__(self, features: Tensor | None = None):
        self.count, self._mean, self._scatter = 0, None, None
        if features is not None:
            self.update(features)

    @classmethod
    def of(cls, count: int, mean: Tensor, covariance: Tensor) -> FeatureMoments:
        """Moments that were kept: number, `[D]` and unbiased `[D, D]`."""
        return cls()._merge(count, mean.double(), covariance.double() * (count - 1))

    def update(self, features: Tensor) -> FeatureMoments:
        """Take in `[N, D]`.

        Raises:
            ValueError: another shape or D, or a value that is not finite.
        """
        if features.ndim != 2 or (self.count and features.shape[1] != len(self._mean)):
            wanted = f"[N, {len(self._mean)}]" if self.count else "[N, D]"
            raise ValueError(f"features have shape {list(features.shape)}, not {wanted}; take all from one network")
        if not len(features):
            return self
        features = features.double()
        if not features.isfinite().all():
            raise ValueError("features contain values that are not finite; look at the pictures they were taken from")
        mean = features.mean(0)
        centred = features - mean
        return self._merge(len(features), mean, centred.T @ centred)

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Take in what another process saw."""
        return self if not other.count else self._merge(other.count, other._mean, other._scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> FeatureMoments:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return self
        total, apart = self.count + count, mean - self._mean
        self._scatter += scatter + torch.outer(apart, apart) * (self.count * count / total)
        self._mean += apart * (count / total)
        self.count = total
        return self

    @property
    def mean(self) -> Tensor:
        """`[D]`."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """`[D, D]`, unbiased."""
        return self._scatter / (self.count - 1)


def frechet_distance(fa: Tensor | FeatureMoments, fb: Tensor | FeatureMoments) -> float:
    """Squared Fréchet distance between Gaussians fitted to two feature sets (FID, arXiv 1706.08500), in float64.

    ‖μa-μb‖² + tr A + tr B - 2 tr (A^½ B A^½)^½, with unbiased covariances A, B; the last trace is the sum of the
    square roots of the eigenvalues of a symmetric matrix, so no general matrix root is needed.

    Args:
        fa, fb: `[Na, D]`, `[Nb, D]`, at least two rows each, or their moments. Biased upwards for N near D: say N
            beside the number.

    Raises:
        ValueError: fewer than two rows, or different D.
    """
    a, b = (x if isinstance(x, FeatureMoments) else FeatureMoments(x) for x in (fa, fb))
    if min(a.count, b.count) < 2 or len(a.mean) != len(b.mean):
        raise ValueError(
            f"{a.count} and {b.count} feature vectors of {[0 if m is None else len(m) for m in (a.mean, b.mean)]} "
            "numbers: take both from one network and at least two images"
        )
    mean_a, mean_b, cov_a, cov_b = a.mean, b.mean, a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root_a @ cov_b @ root_a
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel_distance(fa: Tensor, fb: Tensor) -> float:
    """KID: unbiased MMD² with the kernel (x·y/D + 1)³ (arXiv 1801.01401), in float64.

    Differs from the paper's protocol: one estimate over the full sets instead of a mean over random subsets, because
    at a few hundred images subsets only add variance. Unbiased, so two samples of one distribution scatter around 0,
    also below it.

    Args:
        fa, fb: `[Na, D]`, `[Nb, D]`, at least two rows each.

    Raises:
        ValueError: fewer than two rows, or different D.
    """
    fa, fb = _check_features(fa, fb)

    def total(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(rows @ y.T / x.shape[1] + 1).pow_(3).sum() for rows in x.split(_BLOCK)]).sum()

    def within(x: Tensor) -> Tensor:  # mean over ordered pairs of two different rows
        own = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (total(x, x) - own) / (len(x) * (len(x) - 1))

    return (within(fa) + within(fb) - 2 * total(fa, fb) / (len(fa) * len(fb))).item()


def kernel_distance_of_subsets(
    fa: Tensor, fb: Tensor, *, num_subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """KID as published (arXiv 1801.01401 §4): mean and standard deviation over random subsets of equal size.

    Args:
        fa, fb: `[Na, D]`, `[Nb, D]`.
        num_subsets: how many pairs of subsets.
        size: of each, drawn without replacement.
        seed: of the draws, which are NumPy's `RandomState.choice`, from `fa` and `fb` in turn.

    Raises:
        ValueError: a set smaller than `size`, different D, or `size` below 2.
    """
    fa, fb = _check_features(fa, fb)
    if not 2 <= size <= min(len(fa), len(fb)) or num_subsets < 1:
        raise ValueError(
            f"{num_subsets} subsets of {size} from {len(fa)} and {len(fb)} rows: give num_subsets 1 or more and size 2 "
            f"to {min(len(fa), len(fb))}"
        )
    random = np.random.RandomState(seed)
    draws = [[random.choice(len(x), size, replace=False) for x in (fa, fb)] for _ in range(num_subsets)]
    values = [kernel_distance(fa[a], fb[b]) for a, b in draws]
    return float(np.mean(values)), float(np.std(values))


def precision_recall(real: Tensor, generated: Tensor, neighbour: int = 3) -> dict[str, float]:
    """Improved precision and recall (arXiv 1904.06991, Algorithm 1), and density and coverage (arXiv 2002.09797).

    Around every row of a set lies a ball that reaches to its k-th nearest other row. Precision: share of generated rows
    inside a real ball. Recall: share of real rows inside a generated ball. Density: real balls around a generated row,
    over k, on average (beyond 1 where generated rows crowd among real ones). Coverage: share of real balls with a
    generated row inside. Precision, density and coverage use the real balls, which outliers among generated images do
    not enlarge. A row on the edge counts as inside.

    Args:
        real, generated: `[N, D]`, `[M, D]`. Time and memory: N·M distances, a block of rows at a time.
        neighbour: k; published with 3 for the first two and 5 for the last.

    Returns:
        `{"precision", "recall", "density", "coverage"}`.

    Raises:
        ValueError: k below 1 or not below the number of rows, or different D.
    """
    real, generated = _check_features(real, generated)
    if not 1 <= neighbour < min(len(real), len(generated)):
        raise ValueError(
            f"neighbour={neighbour} of {len(real)} and {len(generated)} rows: give 1 to "
            f"{min(len(real), len(generated)) - 1}"
        )

    def reaches(x: Tensor) -> Tensor:  # the first of the k + 1 smallest is the row itself
        return torch.cat([torch.cdist(rows, x).kthvalue(neighbour + 1).values for rows in x.split(_BLOCK)])

    real_reach, generated_reach = reaches(real), reaches(generated)
    around = torch.zeros(len(generated), dtype=torch.float64, device=real.device)  # real balls around each row
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for start in range(0, len(generated), _BLOCK):
        stop = start + _BLOCK
        distances = torch.cdist(generated[start:stop], real)
        inside = distances <= real_reach
        around[start:stop] = inside.sum(1).double()
        covered |= inside.any(0)
        recalled |= (distances <= generated_reach[start:stop, None]).any(0)
    return {
        "precision": (around > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": around.mean().item() / neighbour,
        "coverage": covered.double().mean().item(),
    }


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) (arXiv 1606.03498 §4), mean and standard deviation over consecutive splits, in float64.

    Args:
        logits: `[N, C]` of a classifier; published with Inception-v3 and 1000 classes. Shuffle them where neighbours
            are alike.
        splits: equal parts, each with a marginal p(y) of its own.

    Raises:
        ValueError: fewer rows than splits.
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(
            f"logits of shape {list(logits.shape)} in {splits} splits: give [N, C] with N {splits} or more"
        )
    scores = []
    for i in range(splits):
        chunk = logits[i * len(logits) // splits : (i + 1) * len(logits) // splits].double()
        log_p = chunk.log_softmax(1)
        marginal = log_p.exp().mean(0).log()
        scores.append((log_p.exp() * (log_p - marginal)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


# -------------------------------------------------------------------------------------------------- the second judge

# Square root of each group's total variance over 100 source faces (FFHQ generator, psi 0.7, 256 px): divided by it,
# every group has total variance 1 on those faces. PLAIN_GAIN brings x·y / D near 1, where the kernel of
# `kernel_distance` weighs its linear, square and cubic parts alike. Fixed numbers, never refitted: the feature of an
# image does not depend on the images beside it.
SCALES = {"colour": 0.329, "chroma": 0.389, "magnitude": 0.118, "orientation": 0.0710, "greys": 2.93}
PLAIN_GAIN = 2.5
_PLAIN_SIZE = 256


def plain_features(images: Tensor, batch_size: int = 64) -> Tensor:
    """A judge without a network, that no training signal looks at: colour and gradient histograms, 16x16 greys.

    Groups, all at 256 px (area resize): RGB histograms (16 bins each), Cb and Cr histograms (17 bins each), gradient
    magnitude (16 bins of its square root, 1 = derivative 0.7 of the white-black range), gradient orientation (8 bins
    over 180°, weighted by magnitude), 16x16 greys. Each group is divided by a fixed constant (`SCALES`) so that none
    dominates by its number of bins.

    Args:
        images: float `[N, 3, H, W]`, clamped to [-1, 1].
        batch_size: images per step; the result does not depend on it.

    Returns:
        float `[N, 362]`.
    """
    return torch.cat([_plain(chunk) for chunk in images.split(batch_size)])


def _plain(images: Tensor) -> Tensor:
    check_floats(images)
    x = (images.float().clamp(-1, 1) + 1) / 2
    if x.shape[-2:] != (_PLAIN_SIZE, _PLAIN_SIZE):
        x = F.interpolate(x, size=(_PLAIN_SIZE, _PLAIN_SIZE), mode="area")
    grey = luminance(x)  # [B, 1, S, S] in [0, 1]
    chroma = torch.cat([(x[:, 2:] - grey) * 0.564, (x[:, :1] - grey) * 0.713], 1) + 0.5  # Cb, Cr of BT.601
    gx, gy = sobel(grey)
    magnitude = (gx.square() + gy.square()).sqrt()
    # Orientation in [0, 1), 180° apart is the same line. Exact grey and exact horizontals lie in the *middle* of a bin
    # (odd number of chroma bins, half a bin of offset here): on an edge rounding would choose the bin.
    angle = (torch.atan2(gy, gx) / math.pi + 1 / 16) % 1.0
    groups = {
        "colour": _histogram(x, 16).flatten(1),
        "chroma": _histogram(chroma, 17).flatten(1),
        "magnitude": _histogram((magnitude / 0.7).sqrt(), 16).flatten(1),
        "orientation": _histogram(angle, 8, magnitude).flatten(1),
        "greys": F.interpolate(grey, size=(16, 16), mode="area").flatten(1),
    }
    return PLAIN_GAIN * torch.cat([groups[name] / scale for name, scale in SCALES.items()], 1)


def _histogram(x: Tensor, bins: int, weight: Tensor | None = None) -> Tensor:
    """Share of `x` `[B, C, H, W]` in [0, 1] (clamped) per equal bin -> `[B, C, bins]`, each row summing to 1."""
    index = (x * bins).long().clamp_(0, bins - 1).flatten(2)
    weight = torch.ones_like(x).flatten(2) if weight is None else weight.flatten(2)
    counts = torch.zeros(*index.shape[:2], bins, device=x.device, dtype=torch.float32).scatter_add_(2, index, weight)
    return counts / weight.sum(2, keepdim=True).clamp_min(1e-8)


# ------------------------------------------------------------------------------------------------ aligned image pairs


def luminance(images: Tensor) -> Tensor:
    """BT.601 luminance `[B, 3, H, W] -> [B, 1, H, W]`, in the range of the input."""
    return (images * images.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)


def sobel(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical Sobel derivative of `[B, 1, H, W]` (a unit ramp gives 1), borders replicated."""
    kernel = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    out = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    return out[:, :1], out[:, 1:]


def paired_correlations(adapted: Tensor, true: Tensor, size: int = 256) -> dict[str, float]:
    """Does each adapted image look like the *right* true image? Mean Pearson correlation over aligned pairs.

    Args:
        adapted, true: float `[B, 3, H, W]` in [-1, 1], row i of both from the same latent; resized (area or bilinear)
            to `size`.

    Returns:
        `{"luminance": …, "edge": …}` in [-1, 1]; edge compares Sobel gradient magnitudes. A constant image counts 0.

    Raises:
        ValueError: different numbers of images.
    """
    if len(adapted) != len(true):
        raise ValueError(
            f"{len(adapted)} adapted and {len(true)} true images are not aligned; pass one true image for each"
        )
    check_floats(adapted, true)
    totals = torch.zeros(2, dtype=torch.float64, device="cpu")
    for a, b in zip(adapted.split(32), true.split(32), strict=True):
        greys = [_resize(luminance(x.float().clamp(-1, 1)), size) for x in (a, b)]
        edges = [torch.hypot(*sobel(grey)) for grey in greys]
        totals += torch.stack([_pearson(*greys).sum(), _pearson(*edges).sum()]).cpu()
    return dict(zip(("luminance", "edge"), (totals / max(len(adapted), 1)).tolist(), strict=True))


def _resize(x: Tensor, size: int) -> Tensor:
    if x.shape[-2:] == (size, size):
        return x
    if min(x.shape[-2:]) >= size:
        return F.interpolate(x, size=(size, size), mode="area")
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    # float32 leaves rounding dust of about 1e-6 a pixel in a constant image: nothing to correlate
    return torch.where(norm > 1e-10 * a.shape[1], (a * b).sum(1) / norm.clamp_min(1e-300), 0.0)


# --------------------------------------------------------------------------------------------------------- diversity


@torch.no_grad()
def spatial_embedding(
    images: Tensor, features: FeatureNetwork, size: int | None = None, batch_size: int = 16
) -> Tensor:
    """Vectors whose squared Euclidean distance is `features`' distance of two pictures, see `FeatureNetwork.spatial`.

    Unlike pooled features they know *where* things are, hence notice a collapse.

    Args:
        images: float `[N, 3, H, W]` in [-1, 1].
        size: px to which `features` resizes them; None: what is usual for it.

    Returns:
        float `[N, E]`.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError(f"there are no images to compare in shape {list(images.shape)}")
    device = next(chain(features.parameters(), features.buffers())).device
    found = None
    for start in range(0, len(images), batch_size):
        rows = features.spatial(images[start : start + batch_size].to(device), size)
        if found is None:
            found = rows.new_empty(len(images), rows.shape[1])  # once: of LPIPS it is large
        found[start : start + batch_size] = rows
    return found


def pairwise_distances(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances `[N, E], [M, E] -> [N, M]`, float64; of spatial embeddings: LPIPS-like distances."""
    b = a if b is None else b
    found = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for x, y in zip(a.split(_COLUMNS, 1), b.split(_COLUMNS, 1), strict=True):
        x, y = x.double(), y.double()
        found += x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    return found.clamp_min_(0)


def spatial_distance(images: Tensor, features: FeatureNetwork, size: int | None = None) -> float:
    """Mean LPIPS-like distance over all pairs of different images: near 0 when one image is drawn for every latent.

    Args:
        images: float `[N, 3, H, W]` in [-1, 1], N ≥ 2; the published protocol uses 64.
        features, size: as in `spatial_embedding`.

    Raises:
        ValueError: fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} image has no pair; pass at least 2, 64 for the published protocol")
    return mean_of_pairs(pairwise_distances(spatial_embedding(images, features, size)))


def mean_of_pairs(pairwise: Tensor) -> float:
    """Mean of `[N, N]` distances between different rows."""
    return (pairwise.sum() - pairwise.trace()).item() / (len(pairwise) * (len(pairwise) - 1))


def intra_cluster_distance(to_references: Tensor, pairwise: Tensor, max_members: int = 50) -> float:
    """Diversity around the training images (arXiv 2104.06820): mean distance in a cluster, over the filled ones.

    Args:
        to_references: `[N, K]` distances of N generated images to the K training images; the nearest names the cluster.
        pairwise: `[N, N]` distances among the generated images, any metric.
        max_members: only the first members of a cluster are compared.

    Returns:
        0 when every cluster has copies of one image. A cluster with a single member has no pair and counts 0.

    Raises:
        ValueError: shapes do not fit, or N = 0.
    """
    _, distances, counts = _clusters(to_references, pairwise, max_members)
    return distances[counts > 0].mean().item()


def balanced_intra_cluster_distance(to_references: Tensor, pairwise: Tensor, max_members: int = 50) -> float:
    """B-LPIPS (LFS-GAN, arXiv 2308.11917): Σ_c -p_c log10(p_c) · d_c with shares p_c and mean distances d_c.

    One cluster holding everything gives 0 however varied it is inside; K equal clusters give the mean distance times
    log10 K. Differs from the paper: p_c + 1e-5 is capped at 1, so that the collapsed case is 0 and not slightly
    negative.

    Args, Raises: as `intra_cluster_distance`.
    """
    total, distances, counts = _clusters(to_references, pairwise, max_members)
    share = (counts / total + 1e-5).clamp_max(1.0)
    return (-share * share.log10() * distances).sum().item()


# -------------------------------------------------------------------------------------------- domains named by words


def clip_quality(image_embeddings: Tensor, text_embeddings: Tensor) -> float:
    """Mean cosine of N pictures and K templates of the domain's name (HyperDomainNet, arXiv 2210.08884, §5).

    Published with CLIP ViT-B/16, which was also trained against: give a held-out encoder's number beside it.

    Args:
        image_embeddings, text_embeddings: `[N, D]`, `[K, D]` of one encoder.

    Raises:
        ValueError: no rows, or different D.
    """
    a, b = image_embeddings, text_embeddings
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 1:
        raise ValueError(
            f"embeddings of shapes {list(a.shape)} and {list(b.shape)} are not [N, D] and [K, D]; "
            "take both from one encoder"
        )
    return (F.normalize(a.double(), dim=1).mean(0) @ F.normalize(b.double(), dim=1).mean(0)).item()


def clip_diversity(image_embeddings: Tensor) -> float:
    """Mean of 1 − cosine over all pairs of N pictures `[N, D]`, N ≥ 2 (HyperDomainNet, arXiv 2210.08884, §5).

    Raises:
        ValueError: fewer than two rows.
    """
    n = len(image_embeddings)
    if image_embeddings.ndim != 2 or n < 2:
        raise ValueError(
            f"embeddings of shape {list(image_embeddings.shape)} have no pair; give [N, D] with N 2 or more"
        )
    total = F.normalize(image_embeddings.double(), dim=1).sum(0)
    return (1 - (total.square().sum() - n) / (n * (n - 1))).item()


def _clusters(to_references: Tensor, pairwise: Tensor, max_members: int) -> tuple[int, Tensor, Tensor]:
    """N, mean distance inside each cluster `[K]`, members of each cluster `[K]`."""
    n, k = to_references.shape
    if n == 0 or pairwise.shape != (n, n):
        raise ValueError(
            f"pairwise is {list(pairwise.shape)} for {n} generated images, not [{n}, {n}] with at least one image; "
            "compute both matrices from the same images"
        )
    nearest = to_references.argmin(1)
    distances = torch.zeros(k, dtype=torch.float64, device="cpu")
    for cluster in range(k):
        members = (nearest == cluster).nonzero().flatten()[:max_members]
        if len(members) > 1:
            inside = pairwise[members][:, members].double()
            upper = torch.triu_indices(len(members), len(members), offset=1)
            distances[cluster] = inside[upper[0], upper[1]].mean()
    return n, distances, torch.bincount(nearest, minlength=k).double().cpu()


def _check_features(fa: Tensor, fb: Tensor) -> tuple[Tensor, Tensor]:
    if fa.ndim != 2 or fb.ndim != 2 or fa.shape[1] != fb.shape[1] or min(len(fa), len(fb)) < 2:
        raise ValueError(
            f"feature sets have shapes {list(fa.shape)} and {list(fb.shape)}, not [N ≥ 2, D] with one D; "
            "take both from the same network and at least two images"
        )
    return fa.double(), fb.double()
