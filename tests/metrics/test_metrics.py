"""Metrics against brute force, closed forms and the cases they exist for."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.tensors import random_pictures
from torch import nn

from fewshot_gan import metrics
from fewshot_gan.features import FeatureNetwork


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_the_mean_of_per_image_values_on_clamped_images():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 5.0)])  # the second clamps to 1
    expected = (10 * math.log10(4 / 0.04) + 10 * math.log10(4)) / 2
    assert metrics.psnr(a, b) == pytest.approx(expected, rel=1e-6)  # 0.2 is rounded to float32
    assert metrics.psnr(a, a) == math.inf
    with pytest.raises(ValueError, match="resize one set"):
        metrics.psnr(a, b[:1])


def test_frechet_equals_the_general_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(40, 6), normal(50, 6, seed=1) @ normal(6, 6, seed=2) + 1
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.from_numpy(linalg.sqrtm((cov_a @ cov_b).numpy()).real.copy())
    expected = (a.mean(0) - b.mean(0)).square().sum() + (cov_a + cov_b - 2 * root).trace()
    # two float64 algorithms on well-conditioned 6x6 matrices
    assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_of_commuting_gaussians_has_a_closed_form():
    base = normal(30, 4)
    base = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T)).T)  # covariance exactly I
    scale, shift = torch.tensor([1.0, 2.0, 3.0, 0.5]).double(), torch.tensor([1.0, 0.0, -2.0, 0.0]).double()
    expected = shift.square().sum() + (scale - 1).square().sum()
    assert metrics.frechet_distance(base, base * scale + shift) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_of_a_set_with_itself_is_zero_also_when_rank_deficient():
    a = normal(5, 20)
    # eigenvalues that are 0 come out as 1e-16 of the largest; their square roots, 1e-8 each, add up
    assert abs(metrics.frechet_distance(a, a)) < 1e-5
    with pytest.raises(ValueError, match="at least two images"):
        metrics.frechet_distance(a[:1], a)


def test_kernel_distance_equals_a_double_loop():
    a, b = normal(5, 3), normal(4, 3, seed=1) + 0.5

    def k(x, y):
        return ((x @ y).item() / 3 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_b = sum(k(b[i], b[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(k(x, y) for x in a for y in b) / 20
    expected = within_a + within_b - 2 * across
    assert metrics.kernel_distance(a, b) == pytest.approx(expected, rel=1e-10)  # float64 sums in another order


def test_plain_features_do_not_depend_on_the_batch_and_sum_to_one_per_histogram():
    x = random_pictures(5)
    together, apart = metrics.plain_features(x), metrics.plain_features(x, batch_size=2)
    assert together.shape == (5, 362) and torch.equal(together, apart)
    raw = together / metrics.PLAIN_GAIN
    start = 0
    for name, histograms, bins in (("colour", 3, 16), ("chroma", 2, 17), ("magnitude", 1, 16), ("orientation", 1, 8)):
        block = raw[:, start : start + histograms * bins].view(5, histograms, bins) * metrics.SCALES[name]
        torch.testing.assert_close(
            block.sum(2), torch.ones(5, histograms), rtol=0, atol=1e-4
        )  # 65,536 float32 additions
        start += histograms * bins
    greys = F.adaptive_avg_pool2d(metrics.luminance((x + 1) / 2), 16).flatten(1)
    # area means of an enlarged image are the image: only float32 rounding
    torch.testing.assert_close(raw[:, start:] * metrics.SCALES["greys"], greys, rtol=0, atol=1e-5)


def test_plain_features_of_grey_images_do_not_jump_with_rounding():
    grey = random_pictures(1)[:, :1].expand(-1, 3, -1, -1)
    noisy = grey + 1e-6 * torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    chroma = slice(48, 48 + 34)
    assert torch.equal(metrics.plain_features(grey)[:, chroma], metrics.plain_features(noisy)[:, chroma])


def test_sobel_of_a_ramp_and_correlations_of_known_pairs():
    ramp = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 5, 6)
    gx, gy = metrics.sobel(ramp)
    assert torch.equal(gx[..., 1:-1], torch.ones(1, 1, 5, 4)) and torch.equal(gy, torch.zeros(1, 1, 5, 6))
    x = random_pictures(3, 32)
    inverted = metrics.paired_correlations(x, -x, size=32)
    # negation flips luminance and keeps gradient magnitude; float32 luminance is exact to 1e-7
    assert inverted["luminance"] == pytest.approx(-1, abs=1e-6) and inverted["edge"] == pytest.approx(1, abs=1e-6)
    assert metrics.paired_correlations(x, torch.full_like(x, 0.3), size=32) == {"luminance": 0.0, "edge": 0.0}
    with pytest.raises(ValueError, match="not aligned"):
        metrics.paired_correlations(x, x[:2])


def test_luminance_correlation_equals_corrcoef_per_image():
    a, b = random_pictures(2, 8), random_pictures(2, 8, seed=1)
    greys = [metrics.luminance(x).flatten(1).double() for x in (a, b)]
    expected = sum(torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in zip(*greys, strict=True)) / 2
    assert metrics.paired_correlations(a, b, size=8)["luminance"] == pytest.approx(expected, abs=1e-9)  # both float64


class ToyFeatures(FeatureNetwork):
    """Three levels of fixed random convolutions, with the interface of a feature network."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 5, 3, 3, 3, generator=generator))

    def forward(self, images, blocks, resize):
        images = F.interpolate(images, size=(resize, resize), mode="bilinear", antialias=True)
        return [F.conv2d(images, weight, stride=2**i) for i, weight in enumerate(self.weight)]


def brute_force_distance(a, b, network, size):
    total = 0.0
    for fa, fb in zip(network(a[None], None, size), network(b[None], None, size), strict=True):
        fa, fb = (f / f.square().sum(1, keepdim=True).sqrt() for f in (fa, fb))
        total += (fa - fb).square().sum(1).mean().item()
    return total


def test_spatial_distance_equals_the_mean_over_all_pairs():
    x, network = random_pictures(5), ToyFeatures()
    with torch.no_grad():
        loop = torch.tensor([[brute_force_distance(a, b, network, 16) for a in x] for b in x])
    matrix = metrics.pairwise_distances(metrics.spatial_embedding(x, network, 16, batch_size=2))
    torch.testing.assert_close(matrix.float(), loop, rtol=1e-5, atol=1e-6)  # float32 features of order 1
    mean = loop[~torch.eye(5, dtype=torch.bool)].mean().item()
    assert metrics.spatial_distance(x, network, 16) == pytest.approx(mean, rel=1e-5)


def test_spatial_distance_notices_a_collapse():
    x, network = random_pictures(1).expand(4, -1, -1, -1), ToyFeatures()
    assert metrics.spatial_distance(x, network, 16) < 1e-10  # the rows agree up to float32 rounding, squared
    with pytest.raises(ValueError, match="no pair"):
        metrics.spatial_distance(x[:1], network)


def test_intra_cluster_distances_on_a_case_done_by_hand():
    to_references = torch.tensor([[0.0, 1, 9], [0, 1, 9], [0, 1, 9], [1, 0, 9], [1, 0, 9], [0, 2, 9]])
    points = torch.tensor([0.0, 1.0, 3.0, 10.0, 14.0, 100.0])
    pairwise = (points[:, None] - points[None]).abs()
    first = (1 + 3 + 2) / 3  # members 0, 1, 2 (of 0, 1, 2, 5: the fourth is cut by max_members)
    assert metrics.intra_cluster_distance(to_references, pairwise, max_members=3) == pytest.approx((first + 4) / 2)
    p = [4 / 6 + 1e-5, 2 / 6 + 1e-5]
    expected = -p[0] * math.log10(p[0]) * first - p[1] * math.log10(p[1]) * 4
    # counts are exact, shares and logarithms are float64
    assert metrics.balanced_intra_cluster_distance(to_references, pairwise, 3) == pytest.approx(expected, rel=1e-12)


def test_one_cluster_holding_everything_scores_zero_when_balanced():
    to_references = torch.tensor([[0.0, 1.0]]).expand(6, -1)
    pairwise = metrics.pairwise_distances(normal(6, 3))
    assert metrics.intra_cluster_distance(to_references, pairwise) > 1  # varied inside, so the plain metric is content
    assert metrics.balanced_intra_cluster_distance(to_references, pairwise) == 0
    with pytest.raises(ValueError, match="same images"):
        metrics.intra_cluster_distance(to_references, pairwise[:4])


def fidelity_sets():
    """Feature sets that torch-fidelity judged too: see `FIDELITY`."""
    g = torch.Generator().manual_seed(0)
    a = (torch.randn(1500, 64, generator=g) @ torch.randn(64, 64, generator=g)).relu()
    return a, (torch.randn(1200, 64, generator=g) @ torch.randn(64, 64, generator=g) * 1.1 + 0.3).relu()


# torch-fidelity 0.4.0's numbers for these sets: 20 KID subsets of 500, 3 neighbours, first set generated, no shuffling
FIDELITY = {
    "frechet": 480.39429152069715,  # a general matrix root there
    "kid": (1024.0209, 74.778506),  # in float32 there
    "precision": 0.4846666753292084,
    "recall": 0.11416666954755783,
    "inception": (1.1800446669237394, 0.007688728134569793),
}


def test_equal_to_torch_fidelity():
    a, b = fidelity_sets()
    assert metrics.frechet_distance(a, b) == pytest.approx(FIDELITY["frechet"], rel=2e-7)
    subsets = metrics.kernel_distance_of_subsets(a, b, num_subsets=20, size=500)
    assert subsets == pytest.approx(FIDELITY["kid"], rel=1e-6)
    found = metrics.precision_recall(b, a, 3)
    for name in ("precision", "recall"):
        assert found[name] == pytest.approx(FIDELITY[name], abs=1e-7)
    assert metrics.inception_score(a[:, :50] * 0.1) == pytest.approx(FIDELITY["inception"], rel=1e-9)


def test_moments_of_batches_equal_those_of_the_whole_far_from_zero():
    x = normal(301, 5) * 1e-3 + 1e4  # E[x²] − E[x]² would lose all digits
    moments, second = metrics.FeatureMoments(), metrics.FeatureMoments()
    for i, batch in enumerate(x.split(40)):
        (moments if i % 2 else second).update(batch)
    moments.merge(second).merge(metrics.FeatureMoments())
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-15)
    assert moments.count == 301
    y = normal(60, 5, seed=1)
    assert metrics.frechet_distance(moments, y) == pytest.approx(metrics.frechet_distance(x, y), rel=1e-12)
    with pytest.raises(ValueError, match=r"\[3, 4\], not \[N, 5\]"):
        moments.update(normal(3, 4))
    with pytest.raises(ValueError, match="not finite"):
        moments.update(torch.full((1, 5), math.nan))


def test_moments_hold_no_rows():
    moments = metrics.FeatureMoments()
    for seed in range(20):
        moments.update(normal(1000, 8, seed=seed))
    held = [value for value in vars(moments).values() if isinstance(value, torch.Tensor)]
    assert moments.count == 20_000 and sum(t.untyped_storage().nbytes() for t in held) == 8 * (8 + 64)


@pytest.mark.parametrize("k", [1, 5])
def test_precision_recall_density_coverage_equal_a_double_loop(k, monkeypatch):
    monkeypatch.setattr(metrics.distributions, "_BLOCK", 7)  # blocks that end anywhere
    real, generated = normal(30, 3), normal(22, 3, seed=1) * 0.8 + 0.3

    def reach(x, i):
        return sorted((x[i] - x[j]).norm().item() for j in range(len(x)) if j != i)[k - 1]

    inside = [[(g - r).norm().item() <= reach(real, i) for i, r in enumerate(real)] for g in generated]
    want = {
        "precision": sum(any(row) for row in inside) / 22,
        "recall": sum(any((g - r).norm().item() <= reach(generated, j) for j, g in enumerate(generated)) for r in real)
        / 30,
        "density": sum(map(sum, inside)) / (k * 22),
        "coverage": sum(any(column) for column in zip(*inside, strict=True)) / 30,
    }
    assert metrics.precision_recall(real, generated, k) == pytest.approx(want, abs=1e-12)
    assert len(set(want.values())) > 2


def test_precision_and_recall_tell_collapse_from_scatter():
    real = normal(200, 4)
    collapsed = metrics.precision_recall(real, real[:1] + 1e-3 * normal(200, 4, seed=1))
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.02 and collapsed["coverage"] < 0.2
    scattered = metrics.precision_recall(real, 5 * normal(200, 4, seed=1))
    assert scattered["precision"] < 0.1 and scattered["recall"] > 0.9
    with pytest.raises(ValueError, match="neighbour=200 of 200 and 200 rows: give 1 to 199"):
        metrics.precision_recall(real, real, 200)


def test_inception_score_of_known_distributions():
    sure = torch.eye(4).repeat(5, 1) * 1e3  # each class for sure, all classes alike: as many as there are
    assert metrics.inception_score(sure, 5) == pytest.approx((4, 0))
    assert metrics.inception_score(torch.zeros(20, 4), 5) == pytest.approx((1, 0))
    with pytest.raises(ValueError, match="in 10 splits: give"):
        metrics.inception_score(torch.zeros(3, 4))


def test_kid_of_whole_sets_as_subsets_is_kid():
    a, b = normal(12, 3), normal(12, 3, seed=1)
    mean, std = metrics.kernel_distance_of_subsets(a, b, num_subsets=3, size=12)
    assert mean == pytest.approx(metrics.kernel_distance(a, b), rel=1e-9) and std < 1e-9
    with pytest.raises(ValueError, match="size 2 to 12"):
        metrics.kernel_distance_of_subsets(a, b)


def test_lightness_follows_where_hair_and_cheeks_are():
    def faces(hair, skin):
        pictures = torch.zeros(len(hair), 3, 128, 128)
        pictures[:, :, 8:28, 44:84] = torch.tensor(hair)[:, None, None, None]
        for left in (36, 76):
            pictures[:, :, 72:88, left : left + 16] = torch.tensor(skin)[:, None, None, None]
        return pictures

    source = faces([-0.8, -0.2, 0.5, 0.9], [0.1, 0.3, 0.2, 0.6])
    look = faces([-0.5, -0.2, 0.15, 0.35], [0.6, 0.2, 0.3, 0.1])
    found = metrics.lightness_following(source, look)
    assert found["hair_correlation"] == pytest.approx(1) and found["hair_spread"] == pytest.approx(0.5)
    wanted = torch.corrcoef(torch.tensor([[0.1, 0.3, 0.2, 0.6], [0.6, 0.2, 0.3, 0.1]]))[0, 1]
    assert found["skin_correlation"] == pytest.approx(wanted.item(), abs=1e-4)
    same = metrics.lightness_following(source, source[:1].expand(4, -1, -1, -1))
    assert same["hair_correlation"] == 0 and same["hair_spread"] == 0
    with pytest.raises(ValueError, match="at least two"):
        metrics.lightness_following(source[:1], look[:1])
    with pytest.raises(ValueError, match="4 adapted|3 adapted"):
        metrics.lightness_following(source, look[:3])


def test_order_correlation_is_spearmans():
    spearmanr = pytest.importorskip("scipy.stats").spearmanr

    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    before = torch.cdist(points, points)
    after = torch.cdist(points + 0.5 * torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), points)
    above = torch.triu_indices(7, 7, 1)
    wanted = spearmanr(before[above[0], above[1]], after[above[0], above[1]]).statistic
    assert metrics.order_correlation(before, after) == pytest.approx(wanted)
    assert metrics.order_correlation(before, before.square()) == pytest.approx(1)
    with pytest.raises(ValueError, match="give two \\[N, N\\] with N of 3 or more"):
        metrics.order_correlation(before[:2, :2], after[:2, :2])


def test_equal_distances_share_their_rank():
    """As scipy.stats.spearmanr does."""

    def matrix(*values):
        full = torch.zeros(4, 4)
        full[tuple(torch.triu_indices(4, 4, 1))] = torch.tensor(values)
        return full + full.t()

    before, after = matrix(1.0, 2, 2, 3, 4, 4), matrix(2.0, 1, 3, 3, 3, 5)
    assert metrics.order_correlation(before, after) == pytest.approx(0.7503665, abs=1e-6)
    assert metrics.order_correlation(before, matrix(-1.0, -2, -2, -3, -4, -4)) == pytest.approx(-1)
    assert metrics.order_correlation(before, matrix(*[0.0] * 6)) == 0
