"""Every method as its script offers it: two steps, one adapter with its record, clear refusals."""

import json

import pytest
import torch
from accelerate import Accelerator
from helpers.run_pages import check_run, read_page
from helpers.saved_models import tiny_clip
from helpers.short_runs import FAST, IMAGES
from PIL import Image

from fewshot_gan.adapters import DomainHyperNetwork, read_adapter
from fewshot_gan.catalogue import METHODS
from fewshot_gan.features.encoders import CLIPEncoder
from fewshot_gan.methods.finetune import difference_to_new
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training import adapt, hypernetwork
from fewshot_gan.training.command_line import parse

pytestmark = pytest.mark.usefixtures("tiny_features")


def test_a_run_starts_from_another_adapter(train, tmp_path, capsys):
    first = train("lfs_gan", out="first")
    capsys.readouterr()
    second = train("lfs_gan", f"--start_from={tmp_path / 'first'}", "--learning_rate=1e-12", "--ema_decay=0")
    layers = len(first.factors())
    assert f"{layers} of {layers} layers start from" in capsys.readouterr().out
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert second.config.training["start_from"].endswith("first")
    with pytest.raises(ValueError, match="a full adapter cannot start from one of type left"):
        train("cdc", f"--start_from={tmp_path / 'first'}", out="other")


@pytest.mark.parametrize(
    "name, command",
    [("start_from", ["lfs_gan"]), ("previous", ["finetune", "--adapter=gan_memory"])],
)
def test_a_run_goes_on_from_the_adapter_that_it_started_from(train, tmp_path, monkeypatch, name, command):
    for seed in (0, 1):
        train(*command, f"--seed={seed}", out=f"start{seed}")
    command, hashed = [*command, "--checkpointing_steps=1"], f"{name}_sha256"
    options, other = ([*command, f"--{name}={tmp_path / f'start{k}'}"] for k in (0, 1))
    original = adapt.Trainer.train
    with monkeypatch.context() as patch:
        patch.setattr(adapt.Trainer, "train", lambda self, on_step, finish: original(self, stop_after=1))
        train(*options)
        train(*command, out="fresh")
        with patch.context() as older:  # versions that did not record the adapter's hash
            older.setattr(adapt, "hash_tensors", lambda tensors: None)
            train(*options, out="older")
    for again, out, change in (
        (other, "run", "was .+, now "),
        (command, "run", "was .+, now None"),
        (options, "fresh", "was None"),
    ):
        with pytest.raises(ValueError, match=f"run with other settings .*{name} {change}"):
            train(*again, out=out)
    assert hashed in train(*options).config.training
    config = tmp_path / "older" / "checkpoint-000001" / "adapter_config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    assert record["training"].pop(hashed) is None
    config.write_text(json.dumps(record), encoding="utf-8")
    (config.parent / "sha256.json").unlink()
    assert hashed not in train(*options, out="older").config.training


@pytest.mark.parametrize(
    "method, options, kind",
    [
        ("finetune", [], "full"),
        ("finetune", ["--freeze_d=1"], "full"),
        ("finetune", ["--preset=paper", "--adapter=adafm"], "adafm"),
        ("finetune", ["--scratch"], "full"),
        ("cdc", [], "full"),
        ("cdc", ["--preset=paper", "--adapter=left"], "left"),
        ("lfs_gan", ["--rank=2"], "left"),
        ("d3t", ["--distillation_weight=0", "--projection_steps=2", "--space=w+"], "left"),
        ("d3t", ["--preset=paper", "--projection_steps=2", "--adapter=domain_vector"], "domain_vector"),
        ("d3t", ["--preset=large_gap", "--real_zoom=1.5"], "left"),
        ("d3t", ["--preset=large_gap", "--diversity=dcl", "--adapter=delta_w"], "delta_w"),
        ("pairs", ["--projection_steps=2", "--pair_quality=0"], "lora"),
        ("pairs", ["--projection_steps=2", "--pair_quality=0", "--pair_layer=2", "--pair_weight=1"], "lora"),
        ("hyperdomainnet", [], "domain_vector"),
        ("hyperdomainnet", ["--preset=image", "--projection_steps=2"], "domain_vector"),
        (
            "hyperdomainnet",
            ["--preset=image", "--projection_steps=2", "--direction_weight=0", "--clip_within_weight=0"],
            "domain_vector",
        ),
        ("hyperdomainnet", ["--indomain_weight=1", "--adapter=left"], "left"),
    ],
)
def test_each_method_trains_and_records_itself(train, tmp_path, base_folder, method, options, kind):
    result = train(method, *options)
    stored = read_adapter(tmp_path / "run")
    assert stored.adapter_type == kind and stored.config.method == method
    assert all(torch.equal(v, stored.state_dict()[k]) for k, v in result.state_dict().items())
    assert stored.config.training["max_train_steps"] == 2 and stored.config.training["num_images"] == 3
    usual = {
        "full": 2e-4,
        "adafm": 1e-3,
        "delta_w": 0.02,
        "domain_vector": 0.01 if "--preset=image" in options else 0.02,
    }
    assert stored.config.training["learning_rate"] == usual.get(kind, 5e-3)
    if "--scratch" not in options:
        fresh = type(stored).for_model(FewShotGAN.from_pretrained(base_folder).generator)
        moved = [k for k, v in fresh.state_dict().items() if not torch.equal(v, stored.state_dict()[k])]
        assert len(moved) > len(fresh.state_dict()) / 3
    assert (tmp_path / "run" / "README.md").is_file() and (tmp_path / "run" / "samples" / "step-000002.png").is_file()
    page = check_run(tmp_path / "run", 2)
    assert METHODS[method].described in page.text and f"3 images of {tmp_path / 'data' / 'ink'}" in page.text
    assert f"{stored.num_values():,} numbers" in page.text and stored.config.base_fingerprint in page.text
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    train(method, *options)  # a finished run stays as it is
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before
    assert check_run(tmp_path / "run", 2).polylines == page.polylines


@pytest.mark.parametrize(
    "method, options",
    [
        ("finetune", ["--freeze_d=1", "--scratch"]),
        ("cdc", ["--preset=paper", "--adapter=left"]),
        ("d3t", ["--preset=paper", "--projection_steps=2", "--reconstruction_weight=1"]),
        ("hyperdomainnet", ["--preset=image", "--projection_steps=2"]),
        ("hyperdomainnet", []),
    ],
)
def test_a_killed_run_of_each_method_continues_bit_for_bit(train, method, options, monkeypatch):
    options = [*options, "--checkpointing_steps=1"]
    whole = train(method, *options, out="whole")
    original = adapt.Trainer.train
    with monkeypatch.context() as patch:
        patch.setattr(adapt.Trainer, "train", lambda self, on_step, finish: original(self, stop_after=1))
        train(method, *options, out="killed")
    resumed = train(method, *options, out="killed")
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_run_that_sees_something_else_is_not_resumed(train, tmp_path, monkeypatch):
    clip = CLIPEncoder(*loaded(tiny_clip(tmp_path / "clip")), "clip")
    other = CLIPEncoder(*loaded(tiny_clip(tmp_path / "other", seed=1)), "other")
    monkeypatch.setattr(
        "fewshot_gan.features.encoders._load", lambda name, device: {"clip": clip, "other": other}[name]
    )
    words = ["--text=ink", "--encoder", "clip"]
    result = train("hyperdomainnet", *words, shown=False)
    record = result.config.training
    assert (record["text"], record["origin"], record["encoder"]) == ("ink", "photo", ["clip"])
    assert "the words 'ink'" in check_run(tmp_path / "run", 2).text
    for changes, message in (
        (["--text=bronze", "--encoder", "clip"], "target was ink, now bronze"),
        ([*words, "--origin=statue"], "origin was photo, now statue"),
        (["--text=ink", "--encoder", "other"], "encoders was .*, now "),
    ):
        with pytest.raises(ValueError, match=f"run with other settings .*{message}"):
            train("hyperdomainnet", *changes, shown=False)
    few = ["--distillation_weight=0", "--projection_steps=2"]
    record = train("d3t", *few, out="codes").config.training
    assert (record["space"], record["projection_steps"]) == ("w", 2)
    with pytest.raises(ValueError, match="run with other settings .space was w, now w.*; use"):
        train("d3t", *few, "--space=w+", out="codes")
    train("finetune", "--scratch", out="scratch")
    with pytest.raises(ValueError, match="run with other settings .*scratch was True, now None"):
        train("finetune", out="scratch")


def test_published_settings():
    def settings(*options, method="hyperdomainnet"):
        run = parse(method, ["--output_dir=run", *options])
        return run.training, run.objective

    training, config = settings("--text=ink")
    assert (training.learning_rate, training.max_train_steps, training.ema_decay) == (0.1, 300, 0.0)
    assert (training.truncation_psi, training.lr_warmup_steps, training.lr_final) == (1.0, 0, 1.0)
    assert config == type(config).text()
    training, config = settings("--data=pencil", "--preset=image", "--max_train_steps=7", "--l2_weight=3")
    assert (training.learning_rate, training.max_train_steps, training.ema_decay) == (0.01, 7, 0.0)
    assert (config.l2_weight, config.perceptual_weight) == (3.0, 10.0)
    training, _ = settings("--data=pencil")
    assert (training.learning_rate, training.max_train_steps, training.ema_decay) == (0.02, 400, 0.97)
    assert settings("--data=pencil", "--adapter=full", "--preset=image")[0].learning_rate == 2e-4
    assert settings("--text=ink", "--adapter=left")[0].learning_rate == 5e-3
    assert settings("--data=pencil", "--adapter=domain_vector", method="d3t")[0].learning_rate == 0.02
    assert settings("--data=pencil", "--adapter=full", "--learning_rate=1", method="d3t")[0].learning_rate == 1.0


def test_one_picture_is_enough_where_the_method_says_so(train, data, tmp_path):
    for path in sorted(data.iterdir())[1:]:
        path.unlink()
    for options in (["--preset=image", "--projection_steps=2"], []):
        record = train("hyperdomainnet", *options, out=f"run{len(options)}").config.training
        assert record["num_images"] == 1
    with pytest.raises(ValueError, match="ink has only one image; this method needs at least 2"):
        train("finetune", out="two")
    assert not (tmp_path / "two").exists()


def test_what_nothing_uses_is_no_option(train, capsys, monkeypatch):
    for option in ("--d_learning_rate=1", "--augment=flip", "--real_zoom=2"):
        with pytest.raises(SystemExit):
            train("hyperdomainnet", option)
        assert f"unrecognized arguments: {option}" in capsys.readouterr().err
    monkeypatch.setitem(METHODS.load("hyperdomainnet").settings, "augment", "flip")
    with pytest.raises(ValueError, match="augment='flip': this objective's pictures are not augmented"):
        train("hyperdomainnet")


def test_what_the_images_are_and_may_be_used_for_is_on_the_card(train, data, tmp_path):
    record = train("finetune").config.training
    assert "images" not in record and "Training images" not in (tmp_path / "run" / "README.md").read_text(
        encoding="utf-8"
    )
    (data / "dataset.json").write_text(
        '{"style": "dicebear:lorelei", "licence": {"text": "Remix, under CC0 1.0"}}', encoding="utf-8"
    )
    record = train("finetune", out="known").config.training
    assert (record["images"], record["images_licence"]) == ("dicebear:lorelei", "Remix, under CC0 1.0")
    card = (tmp_path / "known" / "README.md").read_text(encoding="utf-8")
    assert "Training images (dicebear:lorelei): Remix, under CC0 1.0" in card
    for broken in ("[]", "{", '{"licence": "CC0"}'):
        (data / "dataset.json").write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="dataset.json is not a description of a data set"):
            train("finetune", out="broken")


def test_without_an_adversary_no_judge_is_trained(train, monkeypatch):
    trainers = []
    original = adapt.Trainer.train
    monkeypatch.setattr(adapt.Trainer, "train", lambda self, **given: trainers.append(self) or original(self, **given))
    for weight in (0, 1):
        train("finetune", f"--adversarial_weight={weight}", "--colour_weight=1", out=f"run{weight}")
    assert [bool(trainer.d_parameters) for trainer in trainers] == [False, True]


def loaded(folder):
    """Model and tokenizer of a saved CLIP."""
    from transformers import AutoTokenizer, CLIPModel

    return CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_scratch_forgets_the_base(base_folder):
    """No weight owes anything to the base's."""
    pipe = FewShotGAN.from_pretrained(base_folder)
    known = {k: v.clone() for k, v in pipe.generator.named_parameters()}
    torch.manual_seed(7)  # not the seed of the tiny base
    adapter = difference_to_new(pipe.generator, {})
    with torch.no_grad():
        for path, factors in adapter.factors().items():
            layer = pipe.generator.get_submodule(path)
            old = layer.stored()[0].flatten()
            new = old + factors.weight_delta.flatten()
            if len(new) >= 8 and min(old.std(), new.std()) > 0:
                assert abs(torch.corrcoef(torch.stack([new, old]))[0, 1]) < 0.9
    assert all(torch.equal(v, known[k]) for k, v in pipe.generator.named_parameters())


def test_projected_judges_start_from_the_bases_own(train, base_folder, features, tmp_path, data):
    """A base with heads of its own hands them to whoever fine-tunes; from scratch they are forgotten."""
    from fewshot_gan.methods.objective import Objective
    from fewshot_gan.models.projected import ProjectedDiscriminator

    pipe = FewShotGAN.from_pretrained(base_folder)
    real = IMAGES.permute(0, 3, 1, 2).float() / 127.5 - 1
    heads = ProjectedDiscriminator.for_images(real, features, Objective.HEADS, seed=9)
    with torch.no_grad():  # trained
        for p in heads.parameters():
            p.add_(0.01)
    FewShotGAN(pipe.generator, pipe.discriminator, heads).save_pretrained(tmp_path / "with-heads")
    loaded = FewShotGAN.from_pretrained(tmp_path / "with-heads")
    want = heads.state_dict()
    assert all(torch.equal(v, want[k]) for k, v in loaded.projected_discriminator.state_dict().items())
    command = [*FAST, f"--base={tmp_path / 'with-heads'}", f"--data={data}", f"--output_dir={tmp_path / 'run'}"]
    for extra, same in (([], True), (["--scratch"], False)):
        run = adapt.Run(parse("finetune", [*command, *extra]), Accelerator(cpu=True))
        run.pipe, run.images = loaded, real
        objective = run.method.build_objective(run)
        key = "heads.0.convs.0.parametrizations.weight.original"
        assert torch.equal(objective.discriminator.state_dict()[key], want[key]) == same
        spread = [head.level_std for head in objective.discriminator.heads.values()]
        assert all(float(std) != 1 for std in spread)  # calibrated on the images, also without a past
    adapt.run(parse("d3t", [*command, "--projection_steps=2"]))  # and there is something to distil
    assert read_adapter(tmp_path / "run").config.training["distillation_weight"] == 0.1


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("cdc", ["--rank=2"], "--rank is of --adapter left; full has none"),
        ("finetune", ["--scratch", "--adapter=left"], "--scratch replaces every weight, which --adapter left"),
        ("finetune", ["--freeze_d=7"], "freeze_d=7: the heads have 2 convolutions below their last"),
        ("d3t", [], "no projected discriminator to distil from; use distillation_weight=0"),
        ("hyperdomainnet", ["--text=ink"], "give --data or --text"),
        ("hyperdomainnet", ["--origin=statue"], "--origin 'statue' belongs to --text"),
        ("d3t", ["--transformed_every=0"], "--projection_steps 2 is of projected images, but no term here uses any"),
        ("hyperdomainnet", ["--space=w"], "--space w is of projected images, but no term here uses any"),
        ("hyperdomainnet", ["--tt_direction_weight=1"], "tt_direction_weight=1.0 is about several domains"),
    ],
)
def test_refusals(train, tmp_path, method, options, message):
    with pytest.raises(ValueError, match=message):
        train(method, *options, "--projection_steps=2" if method == "d3t" else "--seed=0")
    assert not (tmp_path / "run" / "adapter_config.json").exists()


@pytest.mark.parametrize("method", ["lfs_gan", "d3t", "cdc", "finetune"])
def test_a_base_without_a_discriminator_is_refused_at_once(train, mobile, tmp_path, monkeypatch, method):
    """Before D3T-GAN has projected the training images for minutes."""
    FewShotGAN(mobile).save_pretrained(tmp_path / "alone")
    monkeypatch.setattr("fewshot_gan.methods.d3t.project", lambda *a, **k: pytest.fail("it projects"))
    message = "preset 'paper' start from the base's own discriminator, and '.*alone' has none; use a projected one"
    with pytest.raises(ValueError, match=message):
        train(method, "--preset=paper", f"--base={tmp_path / 'alone'}")
    assert not (tmp_path / "run" / "adapter_config.json").exists()


def test_a_hypernetwork_learns_folders_and_predicts(base_folder, tmp_path, data, monkeypatch):
    other = data.parent / "noise"
    other.mkdir()
    for i, image in enumerate(IMAGES.flip(1)):
        Image.fromarray(255 - image.numpy()).save(other / f"{i}.png")
    out = tmp_path / "hyper"
    command = [*FAST, f"--base={base_folder}", f"--data={data.parent}", f"--output_dir={out}", "--width=16"]
    command += ["--checkpointing_steps=1", "--learning_rate=1e-3"]
    network = hypernetwork.run(hypernetwork.parse(command))
    stored = DomainHyperNetwork.from_pretrained(out)
    assert stored.config.training["domains"] == ["ink", "noise"] and stored.config.encoder == "features"
    assert all(torch.equal(v, stored.state_dict()[k]) for k, v in network.state_dict().items())
    pipe = FewShotGAN.from_pretrained(base_folder)
    pipe.adapter_from_image(data / "0.png", out, "seen")
    assert pipe.active_adapters() == ["seen"]
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["base_fingerprint"] == pipe.bank.fingerprint()

    again = tmp_path / "resumed"  # killed after one step, then resumed
    command[command.index(f"--output_dir={out}")] = f"--output_dir={again}"
    original = hypernetwork.Trainer.train
    with monkeypatch.context() as patch:
        patch.setattr(hypernetwork.Trainer, "train", lambda self, finish: original(self, stop_after=1))
        hypernetwork.run(hypernetwork.parse(command))
    resumed = hypernetwork.run(hypernetwork.parse(command))
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in resumed.state_dict().items())
    pages = [check_run(folder, 2) for folder in (out, again)]
    assert pages[0].curves == pages[1].curves and "2 domains: ink, noise" in pages[0].text
    assert pages[0].images.count("training image 2") == 1
    assert read_page(again).text.count(f"{network.num_values():,} numbers") == 1


def test_a_hypernetwork_learns_single_pictures_by_their_latents(base_folder, tmp_path, data):
    """As published for pictures; projections are made once and kept."""
    for i, image in enumerate(IMAGES):
        (tmp_path / "looks" / f"{i}").mkdir(parents=True)
        Image.fromarray(image.numpy()).save(tmp_path / "looks" / f"{i}" / "picture.png")
    out = tmp_path / "hyper"
    command = [*FAST, f"--base={base_folder}", f"--data={tmp_path / 'looks'}", f"--output_dir={out}", "--width=16"]
    command += ["--preset=hypernetwork_images", "--projection_steps=2"]
    network = hypernetwork.run(hypernetwork.parse(command))
    kept = sorted((out / "projections").iterdir())
    assert [path.name for path in kept] == [f"{i}.safetensors" for i in range(3)]
    record = network.config.training
    assert (record["clip_ref_weight"], record["ema_decay"], record["lr_final"]) == (2.0, 0.0, 1.0)
    assert (record["space"], record["projection_steps"]) == ("w", 2)
    before = [path.stat().st_mtime_ns for path in kept]
    hypernetwork.run(hypernetwork.parse(command))
    assert [path.stat().st_mtime_ns for path in kept] == before
    with pytest.raises(SystemExit, match="--projection_steps 2 is of projected images, but no term here uses any"):
        hypernetwork.main([*command[:-2], "--projection_steps=2"])


def test_what_is_missing_ends_in_one_sentence(base_folder, data, tmp_path, monkeypatch):
    command = [*FAST, f"--base={base_folder}", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit, match="error: folder .*/nowhere does not exist; give one with a folder of images"):
        hypernetwork.main([*command, f"--data={tmp_path / 'nowhere'}"])

    def without(**kwargs):
        raise ImportError("EfficientNet-Lite0 features need a package: pip install it")

    monkeypatch.setattr("fewshot_gan.methods.method.load_features", without)
    with pytest.raises(SystemExit, match="^error: EfficientNet-Lite0 features need"):
        adapt.main("finetune", [*command, f"--data={data}"])


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("d3t", ["--base=other"], "this base has no projected discriminator to distil from"),
        ("d3t", ["--freeze_d=9"], "freeze_d=9"),
        ("d3t", ["--distillation_weight=0", "--keep_filters=.5", "--importance_every=1"], "keep_filters=0.5"),
        ("d3t", ["--distillation_weight=0", "--augment=color"], "augment='color' moves each image"),
        ("hyperdomainnet", ["--preset=image", "--tt_direction_weight=1"], "tt_direction_weight=1.0"),
        (
            "hyperdomainnet",
            ["--preset=image", "--micro_batch_size=1"],
            "micro_batch_size=1: this objective has its own",
        ),
    ],
)
def test_what_is_refused_is_refused_before_projections(train, mobile, tmp_path, monkeypatch, method, options, message):
    FewShotGAN(mobile).save_pretrained(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fewshot_gan.methods.projections.invert", None)
    with pytest.raises(ValueError, match=message):
        train(method, *options)
    assert not (tmp_path / "run" / "projections.safetensors").exists()


def test_a_hypernetwork_refuses_before_projections(base_folder, tmp_path, data, monkeypatch):
    looks = tmp_path / "looks"
    for i, image in enumerate(IMAGES[:2]):
        (looks / f"{i}").mkdir(parents=True)
        Image.fromarray(image.numpy()).save(looks / f"{i}" / "picture.png")
    command = [*FAST, f"--base={base_folder}", f"--data={looks}", f"--output_dir={tmp_path / 'run'}", "--width=16"]
    command += ["--preset=hypernetwork_images", "--projection_steps=2"]
    with monkeypatch.context() as patch:
        patch.setattr("fewshot_gan.methods.projections.invert", None)
        for options, message in (
            (["--indomain_weight=.5"], "indomain_weight=0.5"),
            (["--train_batch_size=1"], "train_batch_size=1: pictures of a step"),
        ):
            with pytest.raises(ValueError, match=message):
                hypernetwork.run(hypernetwork.parse([*command, *options]))
    hypernetwork.run(hypernetwork.parse([*command, f"--projections={tmp_path / 'shared'}"]))
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["0.safetensors", "1.safetensors"]


def test_fresh_noise_acts_in_every_method(train):
    for method in ("hyperdomainnet", "lfs_gan"):
        usual, fresh = (train(method, f"--noise={kind}", out=f"{method}-{kind}") for kind in ("const", "random"))
        assert not all(torch.equal(value, fresh.state_dict()[name]) for name, value in usual.state_dict().items())


def test_a_refused_run_writes_nothing(train, tmp_path):
    train("lfs_gan")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="learning_rate was"):
        train("lfs_gan", "--learning_rate=.1", "--report_to=tensorboard")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_pictures_of_an_earlier_run_are_forgotten(train, tmp_path):
    samples = tmp_path / "run" / "samples"
    samples.mkdir(parents=True)
    for step in (1, 40):
        Image.new("RGB", (8, 8)).save(samples / f"step-{step:06d}.png")
    train("lfs_gan", "--sample_steps=0")
    assert list(samples.iterdir()) == []


def test_lists_of_domains(tmp_path):
    path = tmp_path / "domains.txt"
    path.write_text("Anime Painting - Photo\n\nzombie\n", encoding="utf-8")
    assert hypernetwork.read_texts(path) == (["Anime Painting", "zombie"], ["Photo", "photo"])
    path.write_text("zombie\nzombie - Human\n", encoding="utf-8")
    with pytest.raises(ValueError, match="names 1 domains in 2 lines; give 2 or more, each once"):
        hypernetwork.read_texts(path)
    with pytest.raises(FileNotFoundError, match="no file .*; give one with a domain per line"):
        hypernetwork.read_texts(tmp_path / "nothing.txt")
