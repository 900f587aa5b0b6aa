"""Faces in photos: found where they are, turned or not; aligned to a base's mean face; pasted back at their place."""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import tiny_mobile
from PIL import Image, ImageDraw

from fewshot_gan import FewShotGAN, faces
from fewshot_gan.inversion import Inversion

PHOTO = Path(__file__).parents[1] / "golden" / "astronaut.jpg"  # NASA, public domain: a woman beside a shuttle, 512 px
EYES = np.array([[255, 104], [238, 104.5], [195, 101], [212, 103], [224, 134.5]])  # her landmarks, to a pixel
MEAN = {"left_eye_outer": (171.4, 121.4), "left_eye_inner": (146.8, 122.9)}
MEAN |= {"right_eye_outer": (83.4, 121.8), "right_eye_inner": (108.2, 122.9), "nose": (127.8, 170.2)}
TARGETS = np.array([MEAN[name] for name in faces.LANDMARKS])


@pytest.fixture(scope="module")
def photo():
    return Image.open(PHOTO)


def turned(points, degrees, size=512):
    """Where points of a square picture are after `Image.rotate(degrees)`."""
    angle, centre = math.radians(-degrees), (size - 1) / 2
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return (points - centre) @ turn.T + centre


def test_a_face_is_found_where_it_is(photo):
    (face,) = faces.find_faces(photo)
    assert np.abs(face.landmarks - EYES).max() < 1.5
    left, top, right, bottom = face.box
    assert left < EYES[:, 0].min() and right > EYES[:, 0].max() and top < EYES[:, 1].min() and bottom > 134


@pytest.mark.parametrize("degrees", [10, -20, 35, -40, 60])
def test_a_tilted_face_is_found(photo, degrees):
    face = faces.find_faces(photo.rotate(degrees, Image.Resampling.BICUBIC))[0]
    assert np.abs(face.landmarks - turned(EYES, degrees)).max() < 3


@pytest.mark.parametrize("size", [(320, 320), (2048, 2048), (560, 512)])
def test_the_size_of_a_photo_does_not_matter(photo, size):
    (face,) = faces.find_faces(photo.resize(size, Image.Resampling.LANCZOS))
    assert np.abs((face.landmarks + 0.5) * 512 / np.array(size) - 0.5 - EYES).max() < 2


def test_photos_without_faces():
    board = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(board)
    for i in range(0, 400, 40):
        draw.rectangle((i, 0, i + 20, 300), fill=(i // 2, 90, 40))
    assert faces.find_faces(board) == []
    assert faces.find_faces(Image.effect_noise((300, 300), 80).convert("RGB")) == []


def test_several_faces_come_by_size(photo):
    wide = Image.new("RGB", (900, 512), "grey")
    wide.paste(photo.crop((100, 0, 360, 300)).resize((156, 180)), (20, 100))
    wide.paste(photo, (388, 0))
    large, small = faces.find_faces(wide)
    assert np.abs(large.landmarks - EYES - (388, 0)).max() < 2
    assert np.abs(small.landmarks - ((EYES - (100, 0)) * 0.6 + (20, 100))).max() < 2
    squares, places = faces.read_faces(wide, 64, scaled(64), face="all")
    assert squares.shape == (2, 3, 64, 64) and places[1].scale < places[0].scale
    one, _ = faces.read_faces(wide, 64, scaled(64), face=1)
    assert torch.equal(one[0], squares[1])
    with pytest.raises(ValueError, match=r"face=2: the photo has 2 faces; give a number below 2, from 0, the largest"):
        faces.read_faces(wide, 64, scaled(64), face=2)
    for odd in (-1, True, 1.5, "every"):
        with pytest.raises(ValueError, match="give a number from 0, the largest face, or 'all'"):
            faces.read_faces(wide, 64, scaled(64), face=odd)


def scaled(size):
    return {name: (x * size / 256, y * size / 256) for name, (x, y) in MEAN.items()}


# ---------------------------------------------------------------------------------------------------------- geometry


def test_the_alignment_is_the_nearest_similarity():
    """Known turns, scales and shifts come back; noise is spread over all points; a mirror image is not mirrored."""
    for angle, scale, shift in ((0.3, 2.5, (40, -7)), (-2.0, 0.2, (0, 0))):
        linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        found = faces.align(TARGETS @ linear.T + shift, TARGETS, 256)
        np.testing.assert_allclose(found.matrix, np.concatenate([linear, np.reshape(shift, (2, 1))], 1), atol=1e-9)
        assert found.scale == pytest.approx(scale)
    random = np.random.default_rng(0)
    noisy = 3 * TARGETS + random.normal(size=TARGETS.shape)
    best = faces.align(noisy, TARGETS, 256).matrix

    def error(matrix):
        return ((TARGETS @ matrix[:, :2].T + matrix[:, 2] - noisy) ** 2).sum()

    for _ in range(50):  # no other similarity near it is better
        a, b, *shift = random.normal(size=4) * (0.01, 0.01, 0.5, 0.5)
        other = best + np.array([[a, -b, shift[0]], [b, a, shift[1]]])
        assert error(best) <= error(other)
    mirrored = faces.align(TARGETS * (-1, 1), TARGETS, 256).matrix
    assert np.linalg.det(mirrored[:, :2]) > 0
    for bad in (np.ones((5, 2)), TARGETS[:3]):
        with pytest.raises(ValueError):
            faces.align(bad, TARGETS, 256)


def ramps(width, height):
    """A picture whose colours say where its pixels are."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 255 / (width - 1), y * 255 / (height - 1), 0 * x + 90], -1).astype(np.uint8))


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.7])
def test_a_cut_square_shows_its_place(scale):
    picture, angle = ramps(600, 500), 0.2
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    place = faces.Alignment(np.concatenate([linear, [[200], [120]]], 1), 64)
    square = np.asarray(faces.cut(picture, place)).astype(float)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    where = np.stack([x, y], -1) @ linear.T + (200, 120)
    inside = (where > 2).all(-1) & (where < (597, 497)).all(-1)
    assert inside.mean() > 0.7
    want = where * (255 / 599, 255 / 499)
    assert np.abs(square[..., :2] - want)[inside].max() < 2.5
    reflected = np.abs(square[..., 2] - 90).max()
    assert reflected <= 1  # the border is filled with the picture, not with black


@pytest.mark.parametrize("scale", [0.3, 1.3])
def test_a_square_is_pasted_at_its_place(scale):
    """What was cut comes back; another colour fills the middle, fades at the border and ends there."""
    picture = ramps(300, 260)
    linear = scale * np.array([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    place = faces.Alignment(np.concatenate([linear, [[60], [-10]]], 1), 128)
    before = picture.tobytes()
    back = np.asarray(faces.paste(picture, faces.cut(picture, place), place)).astype(float)
    assert np.abs(back - np.asarray(picture)).max() < 4 and picture.tobytes() == before
    red = np.asarray(faces.paste(picture, Image.new("RGB", (512, 512), (255, 0, 0)), place))
    x, y = np.meshgrid(np.arange(300), np.arange(260))
    at = (np.stack([x, y], -1) - place.matrix[:, 2]) @ np.linalg.inv(linear).T
    border = np.minimum(at, 127 - at).min(-1)
    pixel = 1 / scale  # of the picture, in px of the square
    assert (red[border > faces.FEATHER * 128 + 2 * pixel] == (255, 0, 0)).all()
    assert (red[border < -2 * pixel] == np.asarray(picture)[border < -2 * pixel]).all()
    middle = np.abs(at - 63.5).min(-1) < 20  # not in a corner of the square, where two borders fade
    half = red[middle & (np.abs(border - faces.FEATHER * 64) < 0.5)][:, 2]  # 90 in the picture, 0 in the square
    assert 30 < half.mean() < 60
    outside = faces.Alignment(place.matrix + [[0, 0, 5000], [0, 0, 0]], 128)
    assert faces.paste(picture, Image.new("RGB", (64, 64)), outside).tobytes() == before


def test_large_photos_are_cut_and_pasted(photo):
    large = photo.resize((4096, 4096), Image.Resampling.BICUBIC)
    squares, (place,) = faces.read_faces(large, 256, MEAN)
    small, _ = faces.read_faces(photo, 256, MEAN)
    assert (squares.float() - small.float()).abs().mean() < 4
    points = (TARGETS @ place.matrix[:, :2].T + place.matrix[:, 2] + 0.5) / 8 - 0.5
    assert np.abs(points - EYES).max() < 4  # her face is not the mean face
    back = faces.paste(large, Image.fromarray(squares[0].permute(1, 2, 0).numpy()), place)
    assert back.size == large.size


def test_photos_of_phones_lie_on_their_side(photo, tmp_path):
    """EXIF says how to turn them, and a transparent part becomes white."""
    want, (place,) = faces.read_faces(photo, 64, scaled(64))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    photo.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    turned, (same,) = faces.read_faces(tmp_path / "turned.png", 64, scaled(64))
    assert torch.equal(turned, want) and np.array_equal(same.matrix, place.matrix)
    clear = photo.convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 255))
    assert torch.equal(faces.read_faces(clear, 64, scaled(64))[0], want)


def test_the_photo_as_pillow_opens_it(photo, tmp_path):
    """What is pasted comes out upright, as it was aligned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.crop((0, 0, 400, 512)).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    opened = Image.open(tmp_path / "turned.png")
    assert np.abs(faces.find_faces(opened)[0].landmarks - EYES).max() < 1.5
    squares, (place,) = faces.read_faces(tmp_path / "turned.png", 128, scaled(128))
    pasted = faces.paste(opened, Image.new("RGB", (64, 64), (255, 0, 0)), place)
    assert pasted.size == (400, 512) and pasted.getpixel((224, 120)) == (255, 0, 0)
    corner = faces.Alignment(np.eye(2, 3) + [[0, 0, 300], [0, 0, 430]], 80)  # below what the lying picture has
    low = faces.paste(opened, Image.new("RGB", (64, 64), (255, 0, 0)), corner)
    assert low.getpixel((340, 470)) == (255, 0, 0)
    grey = Image.fromarray(np.full((80, 80), 257 * 100, np.uint16))
    assert (
        faces.paste(grey, Image.new("RGB", (8, 8)), faces.Alignment(np.eye(2, 3), 8)).getpixel((70, 70)) == (100,) * 3
    )


def test_threads_find_faces_at_once(photo):
    others = [photo, photo.rotate(10), photo.crop((50, 0, 450, 400)), photo.resize((300, 300))]
    want = [[face.landmarks.tolist() for face in faces.find_faces(x)] for x in others]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(faces.find_faces, others))
            assert [[face.landmarks.tolist() for face in one] for one in found] == want


def test_fine_patterns_are_averaged(photo):
    """Stripes of one pixel become grey at any reduction, not a pattern of their own."""
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    for scale in (1.9, 2.3, 3.7):
        place = faces.Alignment(scale * np.eye(2, 3) + [[0, 0, 20], [0, 0, 20]], 80)
        assert np.asarray(faces.cut(Image.fromarray(stripes), place)).std() < 30


def test_heic_photos(photo, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(photo).save(tmp_path / "photo.heic", quality=95)
    squares, _ = faces.read_faces(tmp_path / "photo.heic", 64, scaled(64))
    assert (squares.float() - faces.read_faces(photo, 64, scaled(64))[0].float()).abs().mean() < 6
    content = (tmp_path / "photo.heic").read_bytes()
    (tmp_path / "cut.heic").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut.heic cannot be read as an image \("):
        faces.read_faces(tmp_path / "cut.heic", 64, scaled(64))


# ------------------------------------------------------------------------------------------------------ in a pipeline


@pytest.fixture
def pipe():
    return FewShotGAN(tiny_mobile(), mean_landmarks={name: list(point) for name, point in scaled(32).items()})


def test_a_pipeline_inverts_aligned_faces(pipe, photo, monkeypatch):
    seen, done = [], Inversion(torch.zeros(1), torch.zeros(1), [])
    monkeypatch.setattr(
        "fewshot_gan.pipeline_person.invert", lambda generator, images, **options: seen.append(images) or done
    )
    result = pipe.invert(PHOTO)
    want, places = faces.read_faces(photo, 32, pipe.config.mean_landmarks)
    assert torch.equal(seen[0], want / 127.5 - 1) and result.alignments[0].size == 32
    np.testing.assert_array_equal(result.alignments[0].matrix, places[0].matrix)
    assert pipe.invert(photo, align=False).alignments == [None]
    assert pipe.invert(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).alignments == [None, None]
    assert FewShotGAN(tiny_mobile()).invert(photo).alignments == [None]  # a base that has no landmarks
    for pictures in seen[1:2] + seen[3:]:
        centre = torch.from_numpy(np.array(photo.resize((32, 32), Image.Resampling.LANCZOS))).permute(2, 0, 1)
        assert torch.equal(pictures[0], centre / 127.5 - 1)
    blank = Image.new("RGB", (90, 70))
    with pytest.raises(ValueError, match=r"no face was found in photo 2 of 2 \(90x70 px\); .* or align=False"):
        pipe.invert([photo, blank])


def test_without_the_extra(pipe, photo, monkeypatch, caplog):
    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    faces._detector_and_predictor.cache_clear()
    with pytest.raises(ImportError, match=r"not installed; pip install 'fewshot_gan\[photo\]'"):
        faces.find_faces(photo)
    with caplog.at_level(logging.WARNING):
        squares, places = faces.read_faces(photo, 32, pipe.config.mean_landmarks)
    assert places == [None] and r"fewshot_gan[photo]" in caplog.text
    assert torch.equal(squares, faces.read_faces(photo, 32, None)[0])


def test_outlines_lie_around_the_face():
    """The middle of each side of the square has the outline's colour; the photo elsewhere is as before."""
    photo = Image.new("RGB", (300, 200), "grey")
    alignments = [faces.Alignment(np.array([[1.0, 0, x], [0, 1.0, 40]]), 80) for x in (30, 180)]
    shown = faces.outlined(photo, alignments, 150)
    assert shown.size == (150, 100)
    for left in (15, 90):
        for x, y in ((left + 20, 20), (left + 20, 60), (left, 40), (left + 40, 40)):
            corner = shown.crop((x - 1, y - 1, x + 1, y + 1))
            assert faces.LIGHT in [colour for _, colour in corner.getcolors()]
        assert shown.getpixel((left + 20, 40)) == (128, 128, 128)
    assert photo.getcolors() == [(300 * 200, (128, 128, 128))]
