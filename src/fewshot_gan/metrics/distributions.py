"""Distances between two sets of pictures, by their feature vectors.

Use `kernel_distance` below 1000 images: the Fréchet distance is biased by the sample size, KID is not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 256  # rows whose distances are computed at a time


class FeatureMoments:
    """Number, mean and covariance of feature vectors, updated in batches, in float64 and with `[D, D]` memory.

    Batches are merged by their own means (Chan, Golub, LeVeque 1979), which avoids cancellation.

    Args:
        features: `[N, D]` to start with, or None.
    """

    _mean: Tensor  # [D]; empty before the first vector
    _scatter: Tensor  # [D, D]: sum of products of deviations from the mean

    def __init__(self, features: Tensor | None = None):
        self.count = 0
        self._mean = torch.empty(0, dtype=torch.float64, device="cpu")
        self._scatter = torch.empty(0, 0, dtype=torch.float64, device="cpu")
        if features is not None:
            self.update(features)

    @classmethod
    def of(cls, count: int, mean: Tensor, covariance: Tensor) -> FeatureMoments:
        """Return moments with a given number of vectors, mean `[D]` and unbiased covariance `[D, D]`."""
        return cls()._merge(count, mean.double(), covariance.double() * (count - 1))

    def update(self, features: Tensor) -> FeatureMoments:
        """Add feature vectors `[N, D]`.

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
        """Add the feature vectors of other moments."""
        return self if not other.count else self._merge(other.count, other._mean, other._scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> FeatureMoments:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return self
        total, difference = self.count + count, mean - self._mean
        self._scatter += scatter + torch.outer(difference, difference) * (self.count * count / total)
        self._mean += difference * (count / total)
        self.count = total
        return self

    @property
    def mean(self) -> Tensor:
        """Mean `[D]`."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance `[D, D]`."""
        return self._scatter / (self.count - 1)


def frechet_distance(fa: Tensor | FeatureMoments, fb: Tensor | FeatureMoments) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to two feature sets (FID, arXiv 1706.08500), in float64.

    ‖μa-μb‖² + tr A + tr B - 2 tr (A^½ B A^½)^½, with unbiased covariances A, B; the last trace is the sum of the
    square roots of the eigenvalues of a symmetric matrix, so no general matrix root is needed.

    Args:
        fa, fb: `[Na, D]`, `[Nb, D]`, at least two rows each, or their moments. The distance is biased upwards for N
            near D: report N with it.

    Raises:
        ValueError: fewer than two rows, or different D.
    """
    a, b = (x if isinstance(x, FeatureMoments) else FeatureMoments(x) for x in (fa, fb))
    if min(a.count, b.count) < 2 or len(a.mean) != len(b.mean):
        raise ValueError(
            f"{a.count} and {b.count} feature vectors of {[len(a.mean), len(b.mean)]} "
            "numbers: take both from one network and at least two images"
        )
    mean_a, mean_b, cov_a, cov_b = a.mean, b.mean, a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root_a @ cov_b @ root_a
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel_distance(fa: Tensor, fb: Tensor) -> float:
    """Return KID: unbiased MMD² with the kernel (x·y/D + 1)³ (arXiv 1801.01401), in float64.

    Differs from the paper's protocol: one estimate over the full sets instead of a mean over random subsets, which only
    add variance at a few hundred images. The estimate is unbiased, so for two samples of one distribution it scatters
    around 0 and may be negative.

    Args:
        fa, fb: `[Na, D]`, `[Nb, D]`, at least two rows each.

    Raises:
        ValueError: fewer than two rows, or different D.
    """
    fa, fb = _check_features(fa, fb)

    def within(x: Tensor) -> Tensor:  # mean over ordered pairs of two different rows
        own = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (sum_of_kernels(x, x) - own) / (len(x) * (len(x) - 1))

    return (within(fa) + within(fb) - 2 * sum_of_kernels(fa, fb) / (len(fa) * len(fb))).item()


def sum_of_kernels(x: Tensor, y: Tensor) -> Tensor:
    """Return Σ (x·y/D + 1)³ over all pairs of rows `[N, D]`, `[M, D]`, a block of rows at a time."""
    return torch.stack([(rows @ y.T / x.shape[1] + 1).pow_(3).sum() for rows in x.split(_BLOCK)]).sum()


def kernel_distance_of_subsets(
    fa: Tensor, fb: Tensor, *, num_subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Return KID as published (arXiv 1801.01401 §4): mean and standard deviation over random subsets of equal size.

    Args:
        fa, fb: `[Na, D]`, `[Nb, D]`.
        num_subsets: number of pairs of subsets.
        size: rows of each subset, drawn without replacement.
        seed: of the draws by NumPy's `RandomState.choice`, from `fa` and `fb` in turn.

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


def _check_features(fa: Tensor, fb: Tensor) -> tuple[Tensor, Tensor]:
    if fa.ndim != 2 or fb.ndim != 2 or fa.shape[1] != fb.shape[1] or min(len(fa), len(fb)) < 2:
        raise ValueError(
            f"feature sets have shapes {list(fa.shape)} and {list(fb.shape)}, not [N ≥ 2, D] with one D; "
            "take both from the same network and at least two images"
        )
    return fa.double(), fb.double()
