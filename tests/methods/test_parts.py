"""Eyes and mouth by themselves: where they are cut out, and that their statistics are compared."""

import pytest
import torch
from helpers.tensors import seeded_normal

from fewshot_gan.methods.d3t import D3TConfig, D3TObjective
from fewshot_gan.methods.parts import EYES, LIPS, MOUTH, Part, PartStatistics, face_parts

R = 64
LANDMARKS = {
    **{"left_eye_outer": [44.0, 30.0], "left_eye_inner": [36.0, 30.0], "nose": [32.0, 42.0]},
    **{"right_eye_inner": [28.0, 30.0], "right_eye_outer": [20.0, 30.0]},
}


def picture(*spots):
    """A grey picture with white squares of 4 px around (x, y)."""
    image = torch.zeros(1, 3, R, R)
    for x, y in spots:
        image[:, :, y - 2 : y + 2, x - 2 : x + 2] = 1
    return image


def test_the_rectangles_lie_around_eyes_and_mouth():
    eyes, mouth = face_parts(LANDMARKS, R)
    assert ((eyes.left + eyes.right) * R / 2, (eyes.top + eyes.bottom) * R / 2) == pytest.approx((32, 30))
    assert ((eyes.right - eyes.left) * R, (eyes.bottom - eyes.top) * R) == pytest.approx([24 * x for x in EYES])
    assert (mouth.top + mouth.bottom) * R / 2 == pytest.approx(42 + MOUTH * 12)
    assert ((mouth.right - mouth.left) * R, (mouth.bottom - mouth.top) * R) == pytest.approx([24 * x for x in LIPS])
    seen = eyes.of(picture((24, 30), (40, 30)))
    assert seen.shape == (1, 3, 154, 256) and seen.amax() > 0.9  # 40 x 24 px
    assert eyes.of(picture((32, 55))).abs().max() == 0


def test_what_lies_outside_of_the_picture_is_left_out():
    seen = Part(-0.5, 0.75, 0.5, 1.5).of(picture((2, 62)), 32)
    assert seen.shape == (1, 3, 32, 32) and seen.amax() > 0.9


def test_only_eyes_and_mouth_matter(features):
    def observe(x):
        return dict(zip((0, 2), features(x, (0, 2)), strict=True))

    real = torch.cat([picture((24, 30), (40, 30)), picture((25, 31), (41, 31))])
    statistics = PartStatistics(observe, real, LANDMARKS)

    def distance(*spots):
        return statistics.distance(picture(*spots), torch.Generator().manual_seed(0)).item()

    same, moved, blind = distance((24, 30), (40, 30)), distance((26, 33), (38, 33)), distance()
    assert same < blind and moved < 0.6 * blind  # where in the rectangle they lie matters little
    assert distance((24, 30), (40, 30), (6, 6), (8, 58)) == same


def test_the_term_of_the_objective(features):
    def objective(landmarks, **weights):
        config = D3TConfig(
            discriminator="projected",
            feature_weight=0,
            relation_weight=0,
            distillation_weight=0,
            transformed_every=0,
            **weights,
        )
        return D3TObjective(config, seeded_normal(3, 3, R, R).clamp(-1, 1), features=features, landmarks=landmarks)

    assert objective(LANDMARKS, part_weight=0.5)._parts is not None
    assert objective(None, part_weight=0.5)._parts is None and objective(LANDMARKS)._parts is None
    assert "part_weight" not in objective(LANDMARKS).settings()  # those of older versions
    assert objective(LANDMARKS, part_weight=0.5).settings()["part_weight"] == 0.5
    with pytest.raises(ValueError, match="part_weight"):
        D3TConfig(part_weight=-1)
