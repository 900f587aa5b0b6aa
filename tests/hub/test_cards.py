"""Model cards: what is on them for each kind of grid, base and repo; a copy of a restricted base stays restricted."""

import io
import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from fewshot_gan import FewShotGAN, ProjectedDiscriminator
from fewshot_gan.adapters import Adapter, DomainVectorAdapter, LeFTAdapter, fingerprint, read_adapter
from fewshot_gan.apps.cli.push import numbered_card
from fewshot_gan.catalogue import ADAPTERS
from fewshot_gan.data.grids import GAP, make_grid
from fewshot_gan.hub.cards import EMBEDDED_LICENCES, write_adapter_card, write_base_card, write_collection_card
from fewshot_gan.hub.spaces import space_folder
from fewshot_gan.utils.json_files import read_json


@pytest.fixture
def card(mobile, tmp_path):
    """Save an adapter with these options and give its card; `write` goes to `write_adapter_card`."""

    def make(kind=LeFTAdapter, write=None, **options):
        adapter = kind.for_model(mobile, **options)
        adapter.save_pretrained(tmp_path / "ink")
        return ModelCard.load(write_adapter_card(adapter, tmp_path / "ink", "ink", **(write or {})))

    return make


def test_the_load_line_names_repo_and_base(card, tmp_path):
    local = str(tmp_path / "my faces")  # a folder that is not there any more: its path is nobody's business either
    text = card(base_model_name_or_path=local, write={"repo_id": "me/ink"}).text
    assert 'from_pretrained("my faces")' in text and 'load_adapter("me/ink")' in text and str(tmp_path) not in text
    other = card(base_model_name_or_path=local, write={"base": "me/faces"})
    assert 'from_pretrained("me/faces")' in other.text and 'load_adapter("ink")' in other.text
    assert (other.data.base_model, other.data.base_model_relation) == ("me/faces", "adapter")
    kept = card(base_model_name_or_path="you/faces", write={"base": "me/faces"})
    assert kept.data.base_model == "you/faces"  # the adapter knew better
    assert 'from_pretrained("the base")' in card().text and card().data.base_model is None


def test_base_model_is_a_repo_of_the_hub(card, tmp_path, monkeypatch):
    """What the Hub links: never a name or folder of this machine."""
    for base, want in (
        ("ffhq", "fewshot-gan/ffhq"),  # embedded, and published there
        ("ffhq-256", "fewshot-gan/ffhq-256"),
        ("me/faces", "me/faces"),
        (str(tmp_path / "base"), None),
        ("dogs", None),
        (None, None),
    ):
        data = card(base_model_name_or_path=base).data.to_dict()
        assert (data.get("base_model"), data.get("base_model_relation")) == (want, "adapter" if want else None)
    assert card(base_model_name_or_path=str(tmp_path), write={"base": "me/faces"}).data.base_model == "me/faces"


def report_on(pipe, folder=None, **results):
    """A report as `fewshot-gan evaluate` writes it, of what acts in the pipe."""
    from fewshot_gan.utils.hashing import hash_tensors

    looks = pipe.bank.current().items()
    report = {
        "protocol": {
            "num_images": 20,
            "num_true": 10,
            "data_sha256": "5674f68b63f5b75e",
            "resolution": 32,
            "seed": 5,
            "truncation_psi": 0.7,
            "features": "efficientnet-lite2",
            "features_sha256": "96561836",
            "neighbour": 3,
        },
        "network": {
            "base": "x",
            "base_fingerprint": pipe.bank.fingerprint(),
            "adapters": {
                n: {
                    "weight": w,
                    "sha256": hash_tensors(pipe.bank.adapters[n].state_dict(), pipe.bank.adapters[n].config),
                }
                for n, w in looks
            },
        },
        "versions": {"torch": "2"},
        "results": {"frechet": 69.125, "kid": 0.0897, "precision": 0.5, "intra_cluster": 0.25, **results},
        "source": {"data": "ink-true"},
    }
    if folder is not None:
        (folder / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")
    return report


def test_numbers_of_a_report_on_the_card(mobile, perturbed, tmp_path):
    pipe = FewShotGAN(mobile).load_adapter(perturbed(LeFTAdapter.for_model(mobile)), "ink")
    pipe.save_adapter(tmp_path / "ink")
    adapter = Adapter.from_pretrained(tmp_path / "ink")

    def card_of(**options):
        return ModelCard.load(write_adapter_card(adapter, tmp_path / "ink", "ink", **options))

    assert card_of().data.eval_results is None and "## Numbers" not in card_of().text
    report = report_on(pipe, tmp_path / "ink", recall=float("nan"))
    for made in (card_of(), card_of(report=report), card_of(report=tmp_path / "ink" / "evaluation.json")):
        assert made.data.model_name == "ink"
        found = {r.metric_type: r for r in made.data.eval_results}
        assert {name: r.metric_value for name, r in found.items()} == {
            "frechet": 69.125,
            "kid": 0.0897,
            "precision": 0.5,
        }
        assert found["frechet"].metric_name == "Fréchet distance, judged by efficientnet-lite2"
        assert found["kid"].task_type == "unconditional-image-generation" and found["kid"].dataset_name == "ink-true"
        assert found["kid"].dataset_args == {"num_images": 10, "sha256": "5674f68b63f5b75e"}
        assert found["kid"].metric_args == {"num_images": 20, "seed": 5, "truncation_psi": 0.7, "resolution": 32}
        assert "| Fréchet distance | 69.1 |" in made.text and "| KID × 1e3 | 89.7 |" in made.text
        assert "; torch 2. Fréchet distances of so few pictures are biased" in made.text  # no word on the device
    for drawn, true, biased in ((10_000, 9_999, True), (9_999, 10_000, True), (10_000, 10_000, False)):
        many = {**report, "protocol": {**report["protocol"], "num_images": drawn, "num_true": true}}
        assert ("biased upwards" in card_of(report=many).text) == biased
    # of other weights: what lies beside is left alone, what is given is refused
    half = report_on(
        FewShotGAN(mobile).load_adapter(perturbed(LeFTAdapter.for_model(mobile), 1), "ink"), tmp_path / "ink"
    )
    assert card_of().data.eval_results is None
    pipe.set_adapters("ink", 0.5)
    for wrong in (half, report_on(pipe), report_on(FewShotGAN(mobile))):
        with pytest.raises(ValueError, match="the report is of other weights"):
            card_of(report=wrong)
    (tmp_path / "ink" / "evaluation.json").write_text("[]", encoding="utf-8")
    assert card_of().data.eval_results is None
    with pytest.raises(ValueError, match="is no report of fewshot-gan evaluate"):
        card_of(report=tmp_path / "ink" / "evaluation.json")

    pipe.set_adapters("ink")  # a card that was there before the report: its front matter alone is told on the way
    (tmp_path / "ink" / "evaluation.json").unlink()
    (tmp_path / "ink" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n", encoding="utf-8")
    assert numbered_card(tmp_path / "ink") == {}
    report_on(pipe, tmp_path / "ink")
    told = ModelCard(numbered_card(tmp_path / "ink")["README.md"].decode())
    assert told.data.license == "mit" and told.text.strip() == "Mine." and told.data.model_name == "ink"
    assert {r.metric_type for r in told.data.eval_results} == {"frechet", "kid", "precision"}
    assert "model-index" not in (tmp_path / "ink" / "README.md").read_text(encoding="utf-8")

    base = FewShotGAN(mobile)
    report_on(base, tmp_path)
    made = ModelCard.load(write_base_card(base, tmp_path, "faces", grid=False))
    assert {r.metric_type for r in made.data.eval_results} == {"frechet", "kid", "precision"}
    assert "| | this base |" in made.text


def test_options_and_types(card, mobile, tmp_path):
    assert "arXiv 2308.11917" in card(rank=3).text and ", rank 3\n" in card(rank=3).text
    text = card(DomainVectorAdapter, placement="pre_demod").text
    assert "- Type: domain vector (" in text and "placement pre_demod" in text
    assert card().data.tags[-2:] == ["adapter", "left"] and card().data.license == "unknown"
    made = LeFTAdapter.for_model(mobile)
    made.register_to_config(parts=[{"adapter_type": "left"}, {"adapter_type": "adafm"}])  # as a blend has them
    assert ", of left and adafm\n" in write_adapter_card(made, tmp_path, "mix").read_text(encoding="utf-8")
    for kind, number in {"adafm": "2002.11810", "gan_memory": "2006.07543", "ticket": "2103.00397"}.items():
        assert number == ADAPTERS[kind].arxiv


def test_the_preset_tells_what_took_part(card):
    from fewshot_gan.methods.cdc import CDCConfig
    from fewshot_gan.methods.hyperdomain import HyperDomainConfig
    from fewshot_gan.methods.lfs_gan import LFSConfig

    heads = "a projected discriminator ([arXiv 2111.01007](https://arxiv.org/abs/2111.01007))"
    for method, config, want in (
        (
            "lfs_gan",
            LFSConfig,
            f"{heads}, feature statistics and content terms in place of the paper's discriminator and mode seeking",
        ),
        ("cdc", CDCConfig, f"{heads} in place of the paper's discriminator"),
        ("hyperdomainnet", HyperDomainConfig, "feature statistics and content terms beside the paper's terms"),
    ):
        record = {**asdict(config.few_images()), "preset": "few_images"}
        assert f", preset few_images: {want}\n" in card(method=method, training=record).text
    assert ", preset" not in card(training={"preset": "paper", "statistics_weight": 1.0}).text


def test_a_picture_as_grid(card, tmp_path):
    made = card(write={"grid": Image.new("RGB", (8, 8), (9, 8, 7))})
    picture = Image.open(tmp_path / "ink" / "images" / "grid.jpg")
    assert max(abs(a - b) for a, b in zip(picture.getpixel((3, 3)), (9, 8, 7), strict=True)) <= 2
    assert "not selected" in made.text
    assert made.data.to_dict()["widget"] == [{"text": "-", "output": {"url": "images/grid.jpg"}}]


def test_a_failed_card_leaves_the_old_one(card, tmp_path):
    text = card().text

    class Broken:
        def convert(self, mode):
            return self

        def save(self, path, *options, **settings):
            path.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        card(write={"grid": Broken()})
    assert ModelCard.load(tmp_path / "ink" / "README.md").text == text
    assert not [p for p in (tmp_path / "ink").rglob("*") if p.name.startswith(".") or p.stem == "grid"]


@pytest.fixture
def as_ffhq(mobile, tmp_path, monkeypatch):
    """Assets in which the tiny network is the embedded base `ffhq`, with one adapter."""
    assets = tmp_path / "assets"
    monkeypatch.setattr("fewshot_gan.hub.names.ASSETS", assets)
    FewShotGAN(mobile).save_pretrained(assets / "bases" / "ffhq")
    recorded = json.dumps({"ffhq": fingerprint(mobile)})
    (assets / "bases" / "fingerprints.json").write_text(recorded, encoding="utf-8")
    LeFTAdapter.for_model(mobile, base_model_name_or_path="ffhq").save_pretrained(assets / "adapters" / "ffhq" / "pen")
    return assets


def test_copies_of_a_restricted_base_stay_restricted(as_ffhq, card, tmp_path):
    for options in ({"base_model_name_or_path": "ffhq"}, {"base_model_name_or_path": str(tmp_path / "copy")}):
        made = card(**options)
        assert (made.data.license, made.data.license_name) == ("other", "non-commercial")
        assert EMBEDDED_LICENCES["ffhq"] in made.text and 'from_pretrained("ffhq")' in made.text
    pushed = card(base_model_name_or_path="me/faces")
    assert pushed.data.base_model == "me/faces" and "non-commercial" in pushed.text
    copy = FewShotGAN.from_pretrained(shutil.copytree(as_ffhq / "bases" / "ffhq", tmp_path / "copy"))
    assert "These weights derive from" in ModelCard.load(write_base_card(copy, tmp_path / "copy", "copy")).text
    (as_ffhq / "bases" / "ffhq").rename(as_ffhq / "bases" / "ffhq-256")
    shutil.copytree(tmp_path / "copy", as_ffhq / "bases" / "ffhq")  # a name that went to another base meanwhile
    recorded = json.dumps({"ffhq": "0" * 16, "ffhq-256": fingerprint(copy.generator)})
    (as_ffhq / "bases" / "fingerprints.json").write_text(recorded, encoding="utf-8")
    old = card(base_model_name_or_path="ffhq")
    assert 'from_pretrained("ffhq-256")' in old.text and old.data.base_model == "fewshot-gan/ffhq-256"
    write_collection_card(as_ffhq / "adapters" / "ffhq", "pens")
    assert "non-commercial" in (as_ffhq / "adapters" / "ffhq" / "README.md").read_text(encoding="utf-8")


def test_card_of_a_base(mobile, discriminator, tmp_path):
    heads = ProjectedDiscriminator({0: 8}, {0: 1})
    pipe = FewShotGAN(mobile, discriminator, heads, truncation_psi=0.6)
    card = ModelCard.load(write_base_card(pipe, tmp_path, "faces", repo_id="me/faces"))
    data = card.data.to_dict()
    assert data["library_name"] == "fewshot_gan" and data["pipeline_tag"] == "unconditional-image-generation"
    assert "base_model" not in data and data["license"] == "unknown" and "adapter" not in data["tags"]
    assert 'from_pretrained("me/faces")' in card.text and f"`{fingerprint(mobile)}`" in card.text
    for network in (mobile, discriminator, heads):
        numbers = sum(t.numel() for t in network.state_dict().values())
        assert f"{type(network).__name__}, 32 px | {numbers:,} |" in card.text
    assert "`pipe(8, seed=0, truncation_psi=0.6)`" in card.text and "not selected" in card.text
    grid, drawn = Image.open(tmp_path / "images" / "grid.jpg"), make_grid(pipe(8, seed=0).images, 4)
    assert grid.size == drawn.size == (4 * 36 - GAP, 2 * 36 - GAP)
    drawn.save(buffer := io.BytesIO(), "JPEG", quality=90)
    assert np.array_equal(grid, Image.open(buffer))

    bare = ModelCard.load(write_base_card(FewShotGAN(mobile), tmp_path / "bare", "faces", grid=False))
    assert "discriminator |" not in bare.text and "images/grid" not in bare.text + str(bare.data)
    assert not (tmp_path / "bare" / "images").exists() and 'from_pretrained("faces")' in bare.text
    own = ModelCard.load(write_base_card(pipe, tmp_path, "faces", grid=Image.new("RGB", (8, 8))))
    assert "not selected" not in own.text and Image.open(tmp_path / "images" / "grid.jpg").size == (8, 8)


def test_card_of_a_base_shows_the_base(mobile, perturbed, tmp_path):
    pipe = FewShotGAN(mobile)
    write_base_card(pipe, tmp_path / "a", "faces")
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(mobile)), "ink")
    write_base_card(pipe, tmp_path / "b", "faces")
    assert (tmp_path / "a/images/grid.jpg").read_bytes() == (tmp_path / "b/images/grid.jpg").read_bytes()


def test_card_of_several_adapters(mobile, tmp_path):
    for look, base in (("ink", "me/faces"), ("oil", "me/cats"), ("pen", str(tmp_path / "dogs"))):
        LeFTAdapter.for_model(mobile, base_model_name_or_path=base).save_pretrained(tmp_path / look)
    card = ModelCard.load(write_collection_card(tmp_path, "looks", repo_id="me/looks"))
    assert card.data.base_model == ["me/faces", "me/cats"] and card.data.base_model_relation == "adapter"
    assert 'load_adapter("me/looks", subfolder="ink")' in card.text and str(tmp_path) not in str(card)
    size = (tmp_path / "oil" / "adapter_model.safetensors").stat().st_size
    assert f"| [oil](oil) | left | {size:,} | [me/cats](" in card.text and "| `dogs` |" in card.text


def test_cards_say_that_a_person_is_drawn(mobile, tmp_path):
    shape = [1, mobile.num_ws, mobile.w_dim]
    LeFTAdapter.for_model(mobile).save_pretrained(tmp_path / "ink")
    assert "## Whose face" not in ModelCard.load(write_collection_card(tmp_path, "looks")).text
    LeFTAdapter.for_model(mobile, latents_shape=shape).save_pretrained(tmp_path / "me")
    text = ModelCard.load(write_collection_card(tmp_path, "looks")).text
    assert "## Whose face" in text and "| left, of a person |" in text and text.count("of a person") == 1
    pipe = FewShotGAN(mobile)
    pipe.load_adapter(LeFTAdapter.for_model(mobile, latents_shape=shape), "me")
    pipe.load_adapter(LeFTAdapter.for_model(mobile), "ink")
    pipe.add_weighted_adapter(["me", "ink"], [1.0, 1.0], "both")
    pipe.save_adapter(tmp_path / "both", "both")
    card = write_adapter_card(read_adapter(tmp_path / "both"), tmp_path / "both", "both")
    assert "## Whose face" in ModelCard.load(card).text


def test_the_newest_picture_of_a_run_is_told_by_its_number(tmp_path):
    from fewshot_gan.hub.cards import _place_grid

    (tmp_path / "samples").mkdir()
    for step, side in (("999999", 4), ("1000000", 5)):
        Image.new("RGB", (side, side)).save(tmp_path / "samples" / f"step-{step}.png")
    assert Image.open(tmp_path / _place_grid(tmp_path / "samples", tmp_path)).width == 5


def test_a_person_in_a_blend_of_blends_is_found(mobile, tmp_path):
    shape = [1, mobile.num_ws, mobile.w_dim]
    pipe = FewShotGAN(mobile)
    pipe.load_adapter(LeFTAdapter.for_model(mobile, latents_shape=shape, base_model_name_or_path="me/faces"), "me")
    pipe.load_adapter(LeFTAdapter.for_model(mobile, base_model_name_or_path="me/faces"), "ink")
    pipe.add_weighted_adapter(["me", "ink"], [1.0, 1.0], "inner")
    pipe.add_weighted_adapter(["inner", "ink"], [1.0, 1.0], "outer")
    pipe.save_adapter(tmp_path / "outer", "outer")
    with (
        pytest.raises(ValueError, match="'outer' is or holds a person"),
        space_folder(tmp_path / "outer", "gradio", "page"),
    ):
        pass
    card = write_adapter_card(read_adapter(tmp_path / "outer"), tmp_path / "outer", "outer")
    assert "## Whose face" in ModelCard.load(card).text


def test_a_space_names_no_local_folder(tmp_path):
    pipe = FewShotGAN.from_pretrained("ffhq-256")
    secret = str(tmp_path / "secret-client" / "ffhq-256")
    LeFTAdapter.for_model(pipe.generator, base_model_name_or_path=secret).save_pretrained(tmp_path / "ink")
    with space_folder(tmp_path / "ink", "gradio", "page") as place:
        files = [path for path in place.rglob("*") if path.is_file()]
        assert all(b"secret-client" not in path.read_bytes() for path in files)
        config = read_json(place / "looks" / "ink" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "ffhq-256"
