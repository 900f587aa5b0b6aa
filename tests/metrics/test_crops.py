"""Native crops: where they are cut, what they hold, and what the distance between them counts."""

import pytest
import torch
import torch.nn.functional as F

from fewshot_gan import metrics


def test_places_depend_on_the_picture_the_seed_and_the_sizes_alone():
    places = metrics.crop_places(50, 40, crops=3, size=32, seed=5)
    assert places.shape == (50, 3, 2) and places.min() == 0 and places.max() == 8  # 40 - 32 + 1 values
    assert torch.equal(metrics.crop_places(7, 40, 3, 32, 5), places[:7])
    assert torch.equal(metrics.crop_places(7, 40, 3, 32, 5, skip=20), places[20:27])
    assert not torch.equal(metrics.crop_places(50, 40, 3, 32, 6), places)
    assert len(places.flatten(1).unique(dim=0)) == 50  # pictures have places of their own
    assert metrics.crop_places(0, 40, 3, 32).shape == (0, 3, 2)
    with pytest.raises(ValueError, match="0 crops of 32 px: give 1 or more of each, typically 2 of 256 px"):
        metrics.crop_places(2, 40, 0, 32)


def test_a_crop_is_a_piece_of_its_picture():
    images = torch.arange(2 * 3 * 40 * 40).view(2, 3, 40, 40)
    places = metrics.crop_places(2, 40, size=32)
    crops = metrics.native_crops(images, places, 32)
    assert crops.shape == (4, 3, 32, 32) and crops.dtype == images.dtype
    top, left = places[1, 0].tolist()
    assert torch.equal(crops[2], images[1, :, top : top + 32, left : left + 32])
    assert metrics.native_crops(images[:0], places[:0], 32).shape == (0, 3, 32, 32)
    with pytest.raises(ValueError, match="2 rows of places for 1 pictures"):
        metrics.native_crops(images[:1], places)


@pytest.mark.parametrize("side", [24, 32])
def test_pictures_no_larger_than_a_crop_are_taken_whole_and_once(side):
    images = torch.rand(3, 3, side, side)
    assert torch.equal(metrics.native_crops(images, metrics.crop_places(3, side, size=32), 32), images)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_distance_of_crops_equals_a_loop_over_pictures_of_different_numbers(monkeypatch):
    a, b = normal(4, 2, 3), normal(6, 2, 3, seed=1) + 0.5

    def mean(x, y):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if i != j]
        kernels = [((p @ q).item() / 3 + 1) ** 3 for i, j in pairs for p in x[i] for q in y[j]]
        return sum(kernels) / len(kernels)

    expected = mean(a, a) + mean(b, b) - 2 * mean(a, b)
    monkeypatch.setattr("fewshot_gan.metrics.distributions._BLOCK", 3)
    assert metrics.crop_kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)  # float64 sums
    for wrong in (b[:, :1], b[:1], b.flatten(0, 1)):
        with pytest.raises(ValueError, match="the same number of crops and at least two pictures"):
            metrics.crop_kernel_distance(a, wrong)


@pytest.mark.parametrize(("of_picture", "of_place"), [(1.2, 0.3), (0.3, 1.2)])
def test_distance_of_crops_is_unbiased_where_crops_of_a_picture_or_a_place_are_alike(of_picture, of_place):
    """Two samples of one distribution, 60 times; KID over all pairs of crops is biased here."""
    found, naive = [], []
    for trial in range(60):
        places = normal(12, 2, 4, seed=3 * trial)  # row i of both sets has the same places
        a, b = (of_picture * normal(12, 1, 4, seed=3 * trial + k) + of_place * places for k in (1, 2))
        found.append(metrics.crop_kernel_distance(a, b))
        naive.append(metrics.kernel_distance(a.flatten(0, 1), b.flatten(0, 1)))
    found, naive = torch.tensor(found), torch.tensor(naive)
    assert found.mean().abs() < 2.5 * found.std() / 60**0.5
    assert naive.mean().abs() > 4 * naive.std() / 60**0.5


def test_native_crops_see_strokes_that_the_reduced_picture_has_lost():
    """Stripes of two pixels at 64 px, crops of 16 px: reduced to 16 px, both sets are the same grey."""
    grey = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(8, 3, 64, 64) * 0.4
    stripes = grey + 0.3 * torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(16)
    whole = [F.interpolate(x, size=(16, 16), mode="area") for x in (grey, stripes)]
    torch.testing.assert_close(*whole)
    places = metrics.crop_places(8, 64, size=16)
    a, b = (
        metrics.native_crops(x, places, 16).diff(dim=-1).abs().flatten(1).unflatten(0, (8, 2)) for x in (grey, stripes)
    )
    assert metrics.crop_kernel_distance(a, b) > 0.01
