"""Training images: the squaring rule, messages for bad input, an exactly resumable sampler, aligned augmentation."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_gan.data.datasets import InfiniteBatches, load_images
from fewshot_gan.training.augment import DiffAugment, FewShotAugment, random_zoom


def random_image(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    random_image(64, 48, 0).save(tmp_path / "b.png")
    random_image(40, 56, 1).save(tmp_path / "a.bmp")
    (tmp_path / "notes.txt").write_text("not an image", encoding="utf-8")
    (tmp_path / ".hidden.png").write_text("not an image either", encoding="utf-8")
    return tmp_path


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=3, size=16, seed=0):
    return torch.rand(count, 3, size, size, generator=generator(seed)) * 2 - 1


# ----------------------------------------------------------------------------------------------------------- loading


def test_centre_crop_then_lanczos_in_the_order_of_names(folder, caplog):
    with caplog.at_level(logging.INFO):
        images = load_images(folder, 32)
    expected = [
        random_image(40, 56, 1).crop((0, 8, 40, 48)).resize((32, 32), Image.Resampling.LANCZOS),
        random_image(64, 48, 0).crop((8, 0, 56, 48)).resize((32, 32), Image.Resampling.LANCZOS),
    ]
    expected = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in expected])
    assert images.dtype == torch.uint8 and torch.equal(images, expected)
    assert [r.levelname for r in caplog.records] == ["INFO"] and "centre crop" in caplog.text  # once, not once a file


def test_enlarging_is_done_and_named(folder, caplog):
    assert load_images(str(folder), 52).shape == (2, 3, 52, 52)
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and "a.bmp (40x56)" in warnings[0] and "b.png (64x48)" in warnings[0]


def test_imagefolder_reads_the_same_pixels(folder):
    pytest.importorskip("datasets")
    (folder / ".hidden.png").unlink()
    (folder / "notes.txt").unlink()
    assert torch.equal(load_images(f"imagefolder:{folder}", 32), load_images(folder, 32))


def test_transparency_16_bit_and_rotation(tmp_path):
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((32, 32), 0x8080, np.uint16)).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned by 90° clockwise
    tall = Image.new("RGB", (32, 32))
    tall.paste((255, 255, 255), (0, 0, 16, 32))  # left half white -> top half white when upright
    tall.save(tmp_path / "turned.png", exif=exif)
    clear, deep, turned = load_images(tmp_path, 32)
    assert torch.equal(clear, torch.full_like(clear, 255))
    assert torch.equal(deep, torch.full_like(deep, 0x80))
    assert torch.equal(turned[:, :16], torch.full((3, 16, 32), 255).byte()) and not turned[:, 16:].any()


def test_bad_folders_are_explained(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="does not exist; pass an existing folder"):
        load_images(folder / "missing", 32)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_images("./no/such/place", 32)
    with pytest.raises(FileNotFoundError, match="after imagefolder:"):
        load_images("imagefolder:no/such/place", 32)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        load_images(folder / "notes.txt", 32)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="has no image; put png"):
        load_images(empty, 32)
    (empty / "readme.txt").write_text("still no image", encoding="utf-8")
    with pytest.raises(ValueError, match="has no image"):
        load_images(empty, 32)
    random_image(32, 32).save(empty / "one.png")
    with pytest.raises(ValueError, match="only one image; this method needs at least 2, typically 10"):
        load_images(empty, 32)
    with pytest.raises(ValueError, match="resolution 0 is below 1"):
        load_images(folder, 0)


def test_bad_files_are_named(folder):
    random_image(200, 31).save(folder / "thin.png")
    with pytest.raises(ValueError, match="thin.png is 200x31 px, below the limit of 32 px; use a larger copy"):
        load_images(folder, 32)
    (folder / "thin.png").write_bytes((folder / "b.png").read_bytes()[:200])  # a download that broke off
    with pytest.raises(ValueError, match="thin.png cannot be read as an image"):
        load_images(folder, 32)


# ---------------------------------------------------------------------------------------------------------- sampling


def pixels(count=5):
    return torch.randint(0, 256, (count, 3, 4, 4), generator=generator()).byte()


def test_every_epoch_visits_every_image_once_and_orders_differ():
    batches = InfiniteBatches(pixels(5), batch_size=2, seed=3)
    indices = torch.cat([next(batches)[1] for _ in range(10)]).view(4, 5)  # four epochs
    assert torch.equal(indices.sort(1).values, torch.arange(5).expand(4, 5))
    assert len({tuple(epoch) for epoch in indices.tolist()}) > 1


def test_images_are_the_indexed_ones_in_range():
    data = pixels(3)
    images, indices = next(InfiniteBatches(data, batch_size=7, seed=0))  # more than there are
    assert images.dtype == torch.float32 and torch.equal(images, data[indices].float() / 127.5 - 1)
    ends = torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), 255)]).byte()
    images, indices = next(InfiniteBatches(ends, 2))
    assert images[indices == 0].unique().tolist() == [-1] and images[indices == 1].unique().tolist() == [1]


@pytest.mark.parametrize("before", [0, 1, 3])
def test_resumes_exactly_in_the_middle_of_an_epoch(before):
    first = InfiniteBatches(pixels(), batch_size=2, seed=1)
    for _ in range(before):
        next(first)
    state = first.state_dict()
    expected = [next(first) for _ in range(6)]
    second = InfiniteBatches(pixels(), batch_size=2, seed=99)
    next(second)
    second.load_state_dict(state)
    for (images, indices), (images_again, indices_again) in zip(
        expected, (next(second) for _ in range(6)), strict=True
    ):
        assert torch.equal(indices, indices_again) and torch.equal(images, images_again)


def test_sampler_leaves_the_global_generator_alone_and_checks_its_input():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    next(InfiniteBatches(pixels(), 2))
    assert torch.equal(torch.rand(1), expected)
    with pytest.raises(ValueError, match="had 4 images, this one has 5"):
        InfiniteBatches(pixels(5), 2).load_state_dict(InfiniteBatches(pixels(4), 2).state_dict())
    with pytest.raises(ValueError, match="use load_images"):
        InfiniteBatches(pixels().float(), 2)
    with pytest.raises(ValueError, match="batch size 0"):
        InfiniteBatches(pixels(), 0)


# ------------------------------------------------------------------------------------------------------ augmentation


def brute_force_geometry(image, flip, shift):
    """Pixel by pixel: mirror, then move by rounded pixels, reflecting at the border without repeating it."""
    size = image.shape[-1]
    dy, dx = (round(float(s) * (size // 8)) for s in shift)
    out = torch.empty_like(image)
    for y in range(size):
        for x in range(size):
            sy, sx = ((v if 0 <= v < size else -v if v < 0 else 2 * (size - 1) - v) for v in (y - dy, x - dx))
            out[:, y, x] = image[:, sy, size - 1 - sx if flip else sx]
    return out


def test_geometry_equals_brute_force_and_is_the_same_with_and_without_colour():
    augment, x = FewShotAugment(), batch(4)
    params = augment.sample(4, generator(5))
    params["flip"] = torch.tensor([True, False, True, False])
    params["shift"][:2] = torch.tensor([[1.0, -1.0], [-1.0, 0.6]])  # the extremes too
    expected = torch.stack([brute_force_geometry(*row) for row in zip(x, params["flip"], params["shift"], strict=True)])
    assert torch.equal(augment.apply(x, params, colour=False), expected)
    still = params | {"brightness": torch.zeros(4), "saturation": torch.ones(4), "contrast": torch.ones(4)}
    # factors of 1 only re-add the mean: float32 rounding
    torch.testing.assert_close(augment.apply(x, still), expected, rtol=0, atol=1e-6)


def test_colour_commutes_with_geometry_so_pairs_stay_aligned():
    augment, x = FewShotAugment(translation=0.0), batch(3)  # without translation no pixel is lost at the border
    params = augment.sample(3, generator(2))
    unflipped = params | {"flip": torch.zeros(3, dtype=torch.bool)}
    geometry_of_coloured = augment.apply(augment.apply(x, unflipped), params, colour=False)
    # the same sums over mirrored pixels: float32 rounding
    torch.testing.assert_close(augment.apply(x, params), geometry_of_coloured, rtol=0, atol=1e-6)


def test_draws_stay_in_their_ranges_and_follow_the_generator():
    augment = FewShotAugment()
    params = augment.sample(2000, generator(1))
    again = augment.sample(2000, generator(1))
    assert all(torch.equal(params[key], again[key]) for key in params)
    for key, low, high in (
        ("shift", -1, 1),
        ("brightness", -0.1, 0.1),
        ("saturation", 0.7, 1.3),
        ("contrast", 0.85, 1.15),
    ):
        spread = 0.01 * (high - low)  # of 2000 uniform draws one comes this near to each end (missed with p = 2e-9)
        assert low <= params[key].min() < low + spread and high - spread < params[key].max() <= high
    assert 900 < params["flip"].sum() < 1100  # 1000 ± 4.5 standard deviations
    assert not FewShotAugment(flip=False).sample(50, generator())["flip"].any()
    with pytest.raises(ValueError, match="params are for 2000 images, not 3"):
        augment.apply(batch(3), params)


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "color,translation,cutout"])
def test_diffaugment_is_linear_enough_to_have_the_right_gradient(policy):
    """Every policy is affine in the image for a fixed draw, so a finite difference is exact up to rounding."""
    augment, x, direction = DiffAugment(policy), batch().double().requires_grad_(), batch(seed=1).double()
    weight = batch(seed=2).double()
    out = (augment(x, generator(3)) * weight).sum()
    (grad,) = torch.autograd.grad(out, x)
    moved = (augment(x + direction, generator(3)) * weight).sum()
    assert (moved - out).item() == pytest.approx((grad * direction).sum().item(), rel=1e-9)  # float64
    assert not torch.equal(augment(x, generator(4)), augment(x, generator(3)))


def spans(kept):
    """First and one past the last True of each row of `[N, side]`, which has one run of them."""
    first = kept.int().argmax(1)
    assert (kept.int().diff(dim=1) == 1).sum(1).max() <= 1
    return list(zip(first.tolist(), (first + kept.sum(1)).tolist(), strict=True))


@pytest.mark.parametrize("shape", [(16, 16), (10, 24), (9, 17)])
def test_translation_is_uniform_over_whole_pixels(shape):
    """DiffAugment (arXiv 2006.10738) as published: integers of [-r, r], r = side / 8 rounded, zeros at the border."""
    count = 4000
    ramp = torch.arange(1, shape[0] * shape[1] + 1, dtype=torch.float32).view(1, 1, *shape).expand(count, 3, *shape)
    moved = DiffAugment("translation")(ramp, generator())
    seen = moved[:, 0] != 0
    for axis, side in enumerate(shape):
        reach = int(side / 8 + 0.5)
        kept = spans(seen.any(2 - axis))
        for low, high in set(kept):  # what is left of the picture reaches one of the borders
            assert 0 in (low, side - high) and side - reach <= high - low <= side
        shifts = torch.tensor([low if low else high - side for low, high in kept])
        values, counts = shifts.unique(return_counts=True)
        assert values.tolist() == list(range(-reach, reach + 1))
        expected = count / len(values)
        # five standard deviations of a binomial count; ends half as likely as the rest are some twenty away
        assert (counts - expected).abs().max() < 5 * (expected * (1 - 1 / len(values))) ** 0.5
    for image, out in zip(ramp[:20], moved[:20], strict=True):
        (y0, y1), (x0, x1) = (spans((out[0] != 0).any(1 - axis)[None])[0] for axis in (0, 1))
        sy, sx = (0 if low else side - (high - low) for low, high, side in ((y0, y1, shape[0]), (x0, x1, shape[1])))
        assert torch.equal(out[:, y0:y1, x0:x1], image[:, sy : sy + y1 - y0, sx : sx + x1 - x0])


@pytest.mark.parametrize("shape", [(16, 16), (10, 12), (9, 32)])
def test_cutout_is_an_exact_window_around_a_uniform_pixel(shape):
    """As published: a window of half the side, centre of size + (1 - window % 2) places, cut off at the borders."""
    count = 6000
    cut = DiffAugment("cutout")(torch.ones(count, 3, *shape), generator()) == 0
    assert torch.equal(cut[:, 0], cut[:, 2])
    for axis, side in enumerate(shape):
        window = int(side / 2 + 0.5)
        places = range(side + (1 - window % 2))
        wanted = [(max(0, c - window // 2), min(side, c - window // 2 + window)) for c in places]
        found = spans(cut[:, 0].any(2 - axis))
        assert sorted(set(found)) == sorted(set(wanted))
        expected = count / len(places)
        for span in set(wanted):
            times = wanted.count(span)
            assert abs(found.count(span) - times * expected) < 5 * (times * expected) ** 0.5  # five deviations
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].flatten(1).sum(1), rows * columns)  # a rectangle


def test_augmentation_draws_are_the_same_whatever_torchs_default_dtype():
    augment, x = FewShotAugment(), batch(4)

    def everything():
        moved = augment.apply(x, augment.sample(4, generator()))
        return [DiffAugment()(x, generator()), moved, random_zoom(x, 1.5, generator())]

    expected = everything()
    torch.set_default_dtype(torch.float64)
    try:
        found = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_zoom_shows_a_part_of_each_image():
    """A ramp stays a ramp, over a part of its range that is `1 / factor` long and lies inside."""
    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64)
    zoomed = random_zoom(ramp, 2.0, torch.Generator().manual_seed(0))
    low, high = zoomed[:, 0, 0, 0], zoomed[:, 0, 0, -1]
    assert low.min() >= -1 and high.max() <= 1 and zoomed.shape == ramp.shape
    length = (high - low) / 2
    assert length.min() > 0.47 and length.max() > 0.95 and length.std() > 0.1  # pixels round: half of 64
    slopes = zoomed[:, 0, 10].diff(dim=1)
    assert (slopes > 0).all() and (slopes[:, 3:-3].std(1) < 0.004).all()
    assert torch.equal(zoomed, random_zoom(ramp, 2.0, torch.Generator().manual_seed(0)))
    assert len({round(float(x), 3) for x in low}) > 20  # places differ, of 33
    torch.testing.assert_close(random_zoom(ramp, 1.0), ramp)
    with pytest.raises(ValueError, match="zoom 0.5 is below 1"):
        random_zoom(ramp, 0.5)


def test_diffaugment_names():
    x = batch()
    assert torch.equal(DiffAugment("")(x, generator()), x)
    with pytest.raises(ValueError, match="'rotate' is not known; join some of color, translation, cutout"):
        DiffAugment("color,rotate")
