"""Ranges of numbers: what 0…1, 0…255 and [-1, 1] mean by their type, and what is refused instead of turning black."""

import numpy as np
import pytest
import torch
from helpers.tensors import smooth_picture
from PIL import Image

from fewshot_gan import FewShotGAN, features, metrics
from fewshot_gan.data.images import (
    check_range,
    check_signed,
    from_array,
    read_image,
    read_squares,
    square,
    to_bytes,
    to_floats,
    upright,
)
from fewshot_gan.features import encoders, lpips


@pytest.mark.parametrize(
    "values, dtype, want",
    [
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),  # black before
        ([0.0, 128.4, 255.0], np.float32, [0, 128, 255]),
        ([0, 128, 255], np.int32, [0, 128, 255]),  # black before
        ([0, 32896, 65535], np.int32, [0, 128, 255]),
        ([0, 257, 65535], np.uint16, [0, 1, 255]),
        ([0, 0, 200], np.uint16, [0, 0, 1]),  # 16 bits by its type
        ([0, 0, 0], np.float32, [0, 0, 0]),
    ],
)
def test_pictures_of_more_than_8_bits_are_scaled_by_what_they_hold(tmp_path, values, dtype, want):
    image = Image.fromarray(np.repeat(np.array(values, dtype), 1024).reshape(3 * 32, 32))
    image.save(tmp_path / "deep.tif")
    for found in (upright(image), read_image(tmp_path / "deep.tif")):
        assert np.asarray(found)[::32, 0].tolist() == [[v] * 3 for v in want]


@pytest.mark.parametrize(
    "value, dtype, message",
    [
        (1.2, np.float32, r"floats from 0 to 1.2; scale them to 0…1 or 0…255"),
        (-1.0, np.float32, "floats from -1 to 0; scale them"),
        (4095, np.int32, "32-bit integers from 0 to 4095; scale them to 0…255 or 0…65535"),  # 12 bits
        (-5, np.int32, "32-bit integers from -5 to 0"),
        (70_000, np.int32, "32-bit integers from 0 to 70000"),
        (float("nan"), np.float32, "not finite"),
        (float("inf"), np.float32, "floats from 0 to inf"),
    ],
)
def test_ranges_that_say_nothing_are_refused(tmp_path, value, dtype, message):
    array = np.zeros((40, 40), dtype)
    array[20, 20] = value
    Image.fromarray(array).save(tmp_path / "deep.tif")
    for read in (lambda: upright(Image.fromarray(array)), lambda: read_image(tmp_path / "deep.tif")):
        with pytest.raises(ValueError, match=message):
            read()


@pytest.mark.parametrize("black", [False, True])
def test_16_bit_png_is_16_bits_however_dark(tmp_path, black):
    values = np.full((32, 32), 0 if black else 257, np.uint16)
    Image.fromarray(values).save(tmp_path / "dark.png")
    assert np.asarray(read_image(tmp_path / "dark.png")).max() == (0 if black else 1)


ARRAYS = [
    (np.uint8, 255, 1),
    (np.uint16, 65535, 1 / 257),
    (np.int64, 255, 1),
    (np.float32, 1, 255),
    (np.float64, 1, 255),
]


@pytest.mark.parametrize("dtype, top, scale", ARRAYS)
@pytest.mark.parametrize("shape", [(40, 48), (40, 48, 1), (40, 48, 3), (40, 48, 4)])
def test_arrays_are_pictures_by_their_type(dtype, top, scale, shape):
    array = (np.random.default_rng(0).random(shape) * top).astype(dtype)
    if shape[-1] == 4:
        array[..., 3] = top  # opaque
    found = np.asarray(from_array(array))
    want = np.broadcast_to(np.atleast_3d(array)[..., :3] * float(scale), (40, 48, 3)).round()
    assert np.array_equal(found, want)


@pytest.mark.parametrize(
    "given, message",
    [
        (np.zeros((3, 40, 40), np.uint8), r"shape \[3, 40, 40\] is no picture; give \[H, W\] or \[H, W, 3\]"),
        (np.zeros((0, 40, 3), np.uint8), "is no picture"),
        (np.full((40, 40, 3), 128.0), "float64 from 128.0 to 128.0 is no picture; give uint8 of 0…255 or floats"),
        (np.full((40, 40, 3), -1.0), "float64 from -1.0"),
        (np.full((40, 40, 3), np.nan), "float64 from nan"),
        (np.full((40, 40, 3), 3000, np.int32), "int32 from 3000 to 3000"),
        (np.full((40, 40, 3), -1, np.int32), "int32 from -1"),
        (np.ones((40, 40, 3), bool), "bool from True"),
        (np.ones((40, 40, 3), complex), "complex128"),
        (torch.zeros(3, 40, 40), "a Tensor is no picture; .* all pictures as one tensor"),
        (None, "a NoneType is no picture"),
        (b"\x89PNG", "a bytes is no picture"),
        ("nothing", "there is no picture; give at least one"),
    ],
)
def test_what_is_no_picture_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_squares([] if isinstance(given, str) else [given], 32)


def test_squares_of_all_kinds_are_the_same(tmp_path):
    image = smooth_picture()
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    want = torch.stack([square(image, 32)] * 4)
    given = [image, tmp_path / "a.png", array, array / np.float32(255)]
    assert torch.equal(read_squares(given, 32), want)
    assert torch.equal(read_squares(np.stack([array] * 4), 32), want)
    assert torch.equal(read_squares(str(tmp_path / "a.png"), 32), want[:1])


def test_tensors_say_what_they_are_by_type_and_range():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    check_signed(images)
    check_signed(torch.zeros(1, 3, 4, 4))  # a grey picture
    for wrong, message in (
        ((images + 1) / 2, r"images lie in .*…1, not in \[-1, 1\]; scale pictures of 0…1 with x \* 2 - 1"),
        (to_bytes(images), "images of torch.uint8 are not in"),
        (to_bytes(images).int(), "images of torch.int32 are not in"),
        (images.bool(), "images of torch.bool"),
        (images * 2, "go beyond"),
        (images / 0, "go beyond"),
    ):
        with pytest.raises(ValueError, match=message):
            check_signed(wrong)
    for wrong in (images, to_bytes(images).int(), to_bytes(images).long(), images.bool()):
        with pytest.raises(ValueError, match="are no bytes; give uint8 of 0…255"):
            to_floats(wrong)
    with pytest.raises(ValueError, match="images of torch.uint8 are not in"):
        to_bytes(to_bytes(images))
    assert torch.equal(to_bytes(to_floats(to_bytes(images))), to_bytes(images))


def test_judges_refuse_bytes():
    """They would clamp or embed 0…255 as if it were [-1, 1], and give a number."""
    pictures = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    network = features.load_features()
    for judge in (
        lambda: metrics.psnr(pictures, pictures),
        lambda: metrics.plain_features(pictures),
        lambda: metrics.paired_correlations(pictures, pictures),
        lambda: metrics.spatial_embedding(pictures, network),
        lambda: network.pooled(pictures),
        lambda: network(pictures),
        lambda: encoders.load_encoder("features").image(pictures),
        lambda: lpips.LPIPSFeatures.spatial(None, pictures),
    ):
        with pytest.raises(ValueError, match="images of torch.uint8 are not in"):
            judge()


def test_a_pipeline_takes_what_it_gave(base_folder):
    """Pictures of all `output_type`s; tensors lie in 0…1, were inverted wrongly, and are refused."""
    pipe = FewShotGAN.from_pretrained(base_folder)
    drawn = {kind: pipe(2, seed=0, output_type=kind).images for kind in ("pil", "np", "pt")}
    options = {"steps": 1, "perceptual": "none", "progress": False}
    want = pipe.invert(drawn["pil"], **options).latents
    eight_bits = torch.from_numpy(np.stack([np.asarray(x) for x in drawn["pil"]])).permute(0, 3, 1, 2)
    for given in (drawn["np"], list(drawn["np"]), eight_bits, to_floats(eight_bits)):
        assert torch.equal(pipe.invert(given, **options).latents, want)
    with pytest.raises(ValueError, match=r"not in \[-1, 1\]; scale pictures of 0…1 with x \* 2 - 1"):
        pipe.invert(drawn["pt"], **options)


def test_bright_pictures_are_pictures(mobile):
    """A white page has no pixel below 0 in [-1, 1]; only floats that somebody gives may mean 0…1."""
    from fewshot_gan import FewShotGAN

    pipe = FewShotGAN(mobile)
    size = pipe.generator.resolution
    check_range(torch.ones(1, 3, 4, 4))
    options = {"steps": 1, "perceptual": "none", "progress": False}
    white = Image.new("RGB", (size, size), "white")
    found = pipe.invert(white, **options)
    assert torch.equal(
        found.latents, pipe.invert(torch.full((1, 3, size, size), 255, dtype=torch.uint8), **options).latents
    )
    with pytest.raises(ValueError, match="give bright ones as uint8 or PIL images"):
        pipe.invert(torch.ones(1, 3, size, size), **options)
