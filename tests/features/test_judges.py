"""Judges of other packages: features as the package itself computes them, LPIPS as vectors, honest errors.

The tests of torch-fidelity's and lpips' own code run where they are installed: pip install 'fewshot_gan[metrics]', then
pytest tests/features/test_judges.py. Elsewhere small stand-ins of the same interface take their place.
"""

import errno
import functools
import hashlib
import json
import sys
from types import ModuleType
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers.hub_server import connected
from helpers.networks import tiny_mobile
from helpers.saved_models import without_tensors
from helpers.tensors import random_pictures
from PIL import Image
from torch import nn

from fewshot_gan import features, metrics
from fewshot_gan.apps import evaluation
from fewshot_gan.data.datasets import load_images
from fewshot_gan.data.images import to_bytes, to_floats
from fewshot_gan.features import load_features
from fewshot_gan.features.backbone import BackboneFeatures
from fewshot_gan.features.encoders import load_encoder
from fewshot_gan.features.inception import InceptionFeatures
from fewshot_gan.features.lpips import LPIPSFeatures, load_lpips
from fewshot_gan.inversion import lpips_network
from fewshot_gan.pipeline import FewShotGAN

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


@pytest.fixture(autouse=True)
def nothing_cached():
    features.registry._load.cache_clear()
    yield
    features.registry._load.cache_clear()


# ----------------------------------------------------------------------------------------- any backbone of transformers

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = SIZE | {"image_size": 24, "patch_size": 8}


def backbone(folder, kind="Dinov2", preprocessor=None, **config):
    """A saved model of transformers with its preprocessor's settings."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**({"num_labels": 2} | (config or VIT)))
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    stored = {"size": {"height": 24, "width": 24}, "image_mean": MEAN, "image_std": STD} | (preprocessor or {})
    (folder / "preprocessor_config.json").write_text(json.dumps(stored), encoding="utf-8")
    return folder


def normalised(images):
    return ((images + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


KINDS = {
    "Dinov2": (VIT, lambda net, x: net(pixel_values=x).pooler_output),
    "ResNet": (
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]},
        lambda net, x: net(pixel_values=x).pooler_output[:, :, 0, 0],
    ),
    "ConvNext": (
        {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
        lambda net, x: net(pixel_values=x).pooler_output,
    ),
    "ViTMAE": (  # it has no pooled output; masking would hide patches
        VIT | {"mask_ratio": 0.0},
        lambda net, x: net(pixel_values=x, noise=torch.arange(9.0).expand(len(x), 9)).last_hidden_state.mean(1),
    ),
    "Siglip": (
        {"text_config": SIZE | {"vocab_size": 9}, "vision_config": VIT},
        lambda net, x: net.vision_model(pixel_values=x).pooler_output,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_gives_what_transformers_gives(tmp_path, kind):
    config, direct = KINDS[kind]
    network, x = BackboneFeatures(str(backbone(tmp_path, kind, **config))), random_pictures(3, 24)
    with torch.no_grad():
        want = direct(network.net, normalised(x))
    got = network.pooled(x, batch_size=2)
    assert got.ndim == 2 and got.std() > 1e-4
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


def test_a_backbone_whose_pooler_was_never_trained(tmp_path):
    whole = BackboneFeatures(str(backbone(tmp_path, "ViT")))
    without_tensors(tmp_path, "pooler")
    network, x = BackboneFeatures(str(tmp_path)), random_pictures(2, 24)
    with torch.no_grad():
        want = network.net(pixel_values=normalised(x)).last_hidden_state.mean(1)
    torch.testing.assert_close(network.pooled(x), want)
    assert (whole.pooled(x) - want).abs().max() > 0.01 and whole.sha256 != network.sha256


def test_what_was_never_trained_is_not_in_the_hash(tmp_path):
    backbone(tmp_path, "ViT")
    without_tensors(tmp_path, "pooler")
    hashes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        hashes.add(BackboneFeatures(str(tmp_path)).sha256)
    assert len(hashes) == 1
    backbone(tmp_path / "other", "ViT", num_hidden_layers=1, **{k: v for k, v in VIT.items() if "layers" not in k})
    assert BackboneFeatures(str(tmp_path / "other")).sha256 not in hashes


@pytest.mark.parametrize(
    "stored, shorter, side",
    [
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}}, 32, 24),
        ({"size": 32, "crop_size": 24}, 32, 24),
        ({"size": {"shortest_edge": 24}, "crop_size": 20, "do_center_crop": False}, 24, 24),
        ({"size": {"height": 24, "width": 24}, "do_normalize": False}, 24, 24),
        ({"size": {"shortest_edge": 24}, "crop_pct": 0.875, "resample": 3}, 27, 24),
        ({"size": {"shortest_edge": 24}, "resample": 2}, 24, 24),
    ],
)
def test_a_backbone_is_shown_what_its_preprocessor_says(tmp_path, stored, shorter, side):
    network, x = BackboneFeatures(str(backbone(tmp_path, preprocessor=stored))), random_pictures(2, 48)
    mode = "bilinear" if stored.get("resample") == 2 else "bicubic"
    shown = F.interpolate((x + 1) / 2, size=(shorter, shorter), mode=mode, antialias=True)
    start = (shorter - side) // 2
    shown = shown[..., start : start + side, start : start + side]
    shown = shown if stored.get("do_normalize") is False else normalised(shown * 2 - 1)
    with torch.no_grad():
        torch.testing.assert_close(network.pooled(x), network.net(pixel_values=shown).pooler_output)
    assert network.resize == f"torch {mode}, antialiased, to {shorter} px, centre crop of {side} px"


@pytest.mark.parametrize(
    "stored, reason",
    [
        ({"size": {"longest_edge": 24}}, "size {'longest_edge': 24}, no side of a square"),
        ({"size": {"height": 24, "width": 32}}, "no side of a square"),
        ({"crop_size": 32, "do_center_crop": True}, "crops 32 px out of 24"),
        ({"do_center_crop": True}, "crop_size None"),
        ({"resample": 0}, "resample 0, not 2"),
        ({"do_rescale": False}, "do_rescale false"),
        ({"do_resize": False}, "do_resize false"),
        ({"image_std": None}, "no image_std"),
    ],
)
def test_a_preprocessor_that_cannot_be_followed(tmp_path, stored, reason):
    with pytest.raises(ValueError, match=f"is no vision model that can judge .its preprocessor .*{reason}"):
        BackboneFeatures(str(backbone(tmp_path, preprocessor=stored)))


def test_code_in_a_repo_is_not_run(tmp_path, monkeypatch):
    folder = backbone(tmp_path / "evil")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in (load_features, load_encoder):
        with pytest.raises(ValueError, match="contains custom code"):
            load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_judge_stays_as_it_is(tmp_path):
    network = load_features(str(backbone(tmp_path)))
    assert not network.train().training and not network.net.training
    with pytest.raises(NotImplementedError, match=r"BackboneFeatures gives no feature maps; use load_features\(\)"):
        metrics.spatial_distance(random_pictures(3, 32), network)


def test_a_backbone_from_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    folder = backbone(tmp_path / "dino")
    with connected(monkeypatch, tmp_path / "cache") as server:
        api = HfApi(endpoint=server.url, token="write-me")
        api.create_repo("me/dino")
        api.upload_folder(repo_id="me/dino", folder_path=folder)
        network = load_features("me/dino")
        assert network is load_features("me/dino") and network.sha256 == load_features(str(folder)).sha256
    with pytest.raises(FileNotFoundError, match="could not fetch the network 'nobody/dino' .*'efficientnet-lite0'"):
        load_features("nobody/dino")


def cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda f: (f / "preprocessor_config.json").write_text("{}", encoding="utf-8"), ""),
        (
            lambda f: (f / "config.json").write_text(
                '{"model_type": "bert", "num_hidden_layers": 1}', encoding="utf-8"
            ),
            "",
        ),
        (lambda f: without_tensors(f, "layernorm"), "it lacks weights: layernorm.bias, layernorm.weight"),
        (lambda f: backbone(f, "ViTMAE"), "what it says of a picture changes from call to call"),
        (cut, ""),
        (lambda f: (f / "model.safetensors").unlink(), ""),
    ],
)
def test_what_is_no_vision_model(tmp_path, damage, reason):
    damage(backbone(tmp_path))
    with pytest.raises(ValueError, match=f"is no vision model that can judge .*{reason}.* for example") as error:
        load_features(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_model_that_reads_words_alone(tmp_path):
    backbone(tmp_path, "Bert", **SIZE, vocab_size=9)
    with pytest.raises(ValueError, match="is no vision model that can judge"):
        load_features(str(tmp_path))


# ------------------------------------------------------------------------------------------------------- Inception-v3


class Inception(nn.Module):
    """What of torch-fidelity's network is used."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.conv, self.fc = nn.Conv2d(3, 2048, 1), nn.Linear(2048, 1008)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x):
        assert x.dtype == torch.uint8
        return (self.conv(x.float() / 128 - 1).mean((2, 3)),)


@pytest.fixture
def fidelity(tmp_path, monkeypatch):
    """A stand-in for torch_fidelity, its weights in a file that is named by its hash, and an empty cache for them."""
    torch.manual_seed(0)
    weights = {"conv.weight": torch.randn(2048, 3, 1, 1), "conv.bias": torch.randn(2048)}
    weights |= {"fc.weight": torch.randn(1008, 2048) / 45, "fc.bias": torch.full((1008,), 7.0)}
    torch.save(weights, tmp_path / "w.pth")
    sha = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    file = (tmp_path / "w.pth").rename(tmp_path / f"weights-{sha[:8]}.pth")
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.feature_extractor_inceptionv3 = module
    module.FeatureExtractorInceptionV3, module.URL_INCEPTION_V3 = Inception, file.as_uri()
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    module.sha256, module.file = sha, file
    return module


@pytest.mark.filterwarnings("ignore")  # of torch.hub about progress
def test_inception_is_fetched_once_and_checked(fidelity):
    network = load_features("inception-v3")
    assert network.sha256 == fidelity.sha256 and network.resize.startswith("TensorFlow 1")
    fidelity.file.rename(fidelity.file.with_name("gone"))
    x = random_pictures(3, 32)
    torch.testing.assert_close(InceptionFeatures().pooled(x, batch_size=2), network.pooled(x))  # from the cache


def test_inception_without_its_weights(fidelity, tmp_path):
    broken = fidelity.file.with_name(fidelity.file.name.replace(fidelity.sha256[:8], "00000000"))
    fidelity.file.rename(broken)
    for url, reason in ((fidelity.URL_INCEPTION_V3, "No such file"), (broken.as_uri(), "invalid hash value")):
        fidelity.URL_INCEPTION_V3 = url
        with pytest.raises(FileNotFoundError, match=f"cannot be fetched.*network, or choose efficientnet.*{reason}"):
            load_features("inception-v3")
    assert not list((tmp_path / "cache").rglob("*.pth"))


@pytest.mark.filterwarnings("ignore")
def test_inception_whose_cache_is_a_file(fidelity, tmp_path):
    (tmp_path / "cache").write_text("", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="Inception-v3 cannot keep its weights: .*cache.*; set TORCH_HOME to"):
        load_features("inception-v3")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", [b"", b"<html>log in first</html>", b"PK\x03\x04 cut short"])
def test_inception_whose_file_is_damaged(fidelity, tmp_path, content):
    file = tmp_path / "cache" / "checkpoints" / fidelity.file.name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(FileNotFoundError, match=f"is damaged at {file}: remove it, or choose efficientnet-lite0"):
        load_features("inception-v3")


@pytest.mark.parametrize("name, package", [("inception-v3", "torch_fidelity"), ("lpips-vgg", "lpips")])
def test_a_judge_whose_package_is_not_installed(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'fewshot_gan\[metrics\]'"):
        load_features(name)


def test_inception_of_torch_fidelity(tmp_path, monkeypatch):
    """Its real code with random weights."""
    published = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *args: None)
        patch.setattr(torch, "load", lambda *args, **kwargs: None)
        both = published.FeatureExtractorInceptionV3("both", ["2048", "logits_unbiased"], "random")
    torch.save(both.state_dict(), tmp_path / "weights.pth")
    network, x = InceptionFeatures(tmp_path / "weights.pth"), random_pictures(3, 64)
    pooled, logits = both(to_bytes(x))
    torch.testing.assert_close(network.pooled(x, batch_size=2), pooled, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network.logits(pooled), logits, atol=1e-6, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------- LPIPS


class Lpips(nn.Module):
    """LPIPS by two layers, with the parts that the package `lpips` has."""

    def __init__(self, net, verbose):
        super().__init__()
        torch.manual_seed({"vgg": 0, "alex": 1}[net])
        self.scaling_layer = nn.BatchNorm2d(3, affine=False).eval()
        self.trunk = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2)])
        self.lins = nn.ModuleList([self.linear(8), self.linear(12)])

    @staticmethod
    def linear(channels):
        layer = nn.Module()
        layer.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False)).eval()
        layer.model[-1].weight.data.abs_()
        return layer

    def net(self, x):
        maps = []
        for layer in self.trunk:
            x = layer(x).relu()
            maps.append(x)
        return maps

    def forward(self, a, b):
        total = 0
        pairs = zip(*(self.net(self.scaling_layer(x)) for x in (a, b)), self.lins, strict=True)
        for x, y, linear in pairs:
            x, y = (m / (m.square().sum(1, keepdim=True).sqrt() + 1e-10) for m in (x, y))
            total = total + linear.model((x - y) ** 2).mean((2, 3), keepdim=True)
        return total


@pytest.fixture
def lpips(monkeypatch):
    fake = ModuleType("lpips")
    fake.LPIPS = Lpips
    monkeypatch.setitem(sys.modules, "lpips", fake)
    return fake


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("invalid hash value"), EOFError("cut")])
def test_lpips_without_its_weights(lpips, monkeypatch, caplog, error):
    monkeypatch.setattr(lpips, "LPIPS", mock.Mock(side_effect=error))
    with pytest.raises(FileNotFoundError, match=f"LPIPS cannot fetch its weights .{error}"):
        load_features("lpips-vgg")
    lpips_network.cache_clear()
    assert lpips_network() is None and "the embedded features stand in for it" in caplog.text
    lpips_network.cache_clear()


def test_lpips_whose_weights_the_disk_does_not_take(lpips, monkeypatch):
    monkeypatch.setattr(lpips, "LPIPS", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(FileNotFoundError, match="LPIPS cannot keep its weights: the disk is full; set TORCH_HOME to"):
        load_lpips()


def assert_vectors_are_lpips(network, x):
    codes = metrics.spatial_embedding(x, network, batch_size=2)
    found = metrics.pairwise_distances(codes)
    with torch.no_grad():
        small = x if x.shape[-1] <= 256 else F.interpolate(x, size=(256, 256), mode="area")
        want = torch.stack([network.net(small[i : i + 1].expand_as(small), small).flatten() for i in range(len(x))])
    torch.testing.assert_close(found.float(), want, atol=2e-4 * float(want.max()), rtol=2e-3)  # vectors in float16
    assert metrics.spatial_distance(x, network) == pytest.approx(metrics.mean_of_pairs(found), rel=1e-6)


@pytest.mark.parametrize("name, side", [("lpips-vgg", 48), ("lpips-alex", 300)])
def test_distances_of_lpips_vectors_are_lpips(lpips, name, side):
    network = load_features(name)
    assert_vectors_are_lpips(network, random_pictures(4, side))
    assert network.sha256 == load_features(name).sha256 != LPIPSFeatures("alex" if name[-1] == "g" else "vgg").sha256


@pytest.mark.parametrize("net", ["vgg", "alex"])
@pytest.mark.filterwarnings("ignore")  # of torchvision about its own arguments
def test_lpips_of_its_package(monkeypatch, net):
    """Its real code and channel weights, on trunks of random weights: those of ImageNet are a download."""
    package = pytest.importorskip("lpips")
    monkeypatch.setattr(package, "LPIPS", functools.partial(package.LPIPS, pnet_rand=True))
    torch.manual_seed(0)
    network = LPIPSFeatures(net)
    assert_vectors_are_lpips(network, random_pictures(3, 64))


# ---------------------------------------------------------------------------------------------------------- in reports


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "true"
    folder.mkdir()
    for i, image in enumerate(to_bytes(random_pictures(8, 32)).permute(0, 2, 3, 1)):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    return folder


def report_of(data, **options):
    return evaluation.evaluate(FewShotGAN(tiny_mobile()), data, num_images=12, seed=3, batch_size=4, **options)


def test_a_backbone_judges(data, tmp_path):
    judge = str(backbone(tmp_path / "dino"))
    report = report_of(data, features=judge)
    pipe, network = FewShotGAN(tiny_mobile()), load_features(judge)
    drawn = pipe(12, seed=3, output_type="pt").images * 2 - 1
    true = to_floats(load_images(data, pipe.generator.resolution))
    found, a, b = report["results"], network.pooled(drawn), network.pooled(true)
    assert found["frechet"] == pytest.approx(metrics.frechet_distance(a, b), rel=1e-4)
    assert found["diversity"] == pytest.approx(metrics.spatial_distance(drawn, load_features()), rel=1e-4)
    protocol = report["protocol"]
    assert protocol["features"] == "dino" and str(tmp_path) not in json.dumps(report)
    assert protocol["features_sha256"] == network.sha256 and protocol["pairs_sha256"] == load_features().sha256
    assert evaluation.compare(report, report_of(data, features=judge, pairs="efficientnet-lite0"))
    stored = json.loads((tmp_path / "dino" / "preprocessor_config.json").read_text(encoding="utf-8"))
    (tmp_path / "dino" / "preprocessor_config.json").write_text(
        json.dumps(stored | {"size": {"shortest_edge": 32}}), encoding="utf-8"
    )
    features.registry._load.cache_clear()
    with pytest.raises(ValueError, match="different protocols.*features_resize.*to 24 px.*to 32 px"):
        evaluation.compare(report, report_of(data, features=judge))


@pytest.mark.filterwarnings("ignore")
def test_inception_judges_with_its_score(fidelity, data):
    report = report_of(data, features="inception-v3")
    drawn = FewShotGAN(tiny_mobile())(12, seed=3, output_type="pt").images * 2 - 1
    network = load_features("inception-v3")
    want = metrics.inception_score(network.logits(network.pooled(drawn)), 10)
    found = report["results"]
    assert (found["inception_score"], found["inception_score_std"]) == pytest.approx(want, rel=1e-4)
    assert want[0] > 1.001 and "inception_score" not in report_of(data)["results"]


def test_lpips_measures_pairs(lpips, data):
    report, other = report_of(data, pairs="lpips-vgg"), report_of(data)
    drawn = FewShotGAN(tiny_mobile())(12, seed=3, output_type="pt").images * 2 - 1
    network = load_features("lpips-vgg")
    want = [float(network.net(a[None], b[None])) for i, a in enumerate(drawn) for b in drawn[:i]]
    assert report["results"]["diversity"] == pytest.approx(sum(want) / len(want), rel=2e-3)
    same = {"frechet", "kid", "precision", "recall"}
    assert {k for k in same if report["results"][k] == other["results"][k]} == same
    protocol = report["protocol"]
    assert (protocol["pairs"], protocol["pairs_sha256"]) == ("lpips-vgg", network.sha256)
    assert protocol["pairs_resize"] == "area, to 256 px at most"
    with pytest.raises(ValueError, match="different protocols.*pairs 'lpips-vgg' and 'not given'"):
        evaluation.compare(report, other)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"features": "lpips-vgg"}, "'lpips-vgg' compares pairs and nothing else; give it as pairs"),
        ({"pairs": "inception-v3"}, "pairs='inception-v3': what compares pairs is one of efficientnet-lite0, "),
        ({"features": "inception-v3", "text": "pencil"}, "text 'pencil' is for CLIP, and 'inception-v3' is none"),
    ],
)
def test_judges_in_the_wrong_place(data, options, message):
    with pytest.raises(ValueError, match=message):
        report_of(data, **options)
