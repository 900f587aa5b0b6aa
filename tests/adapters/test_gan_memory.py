"""GAN Memory's tasks: few components, shared with the tasks before, none forgotten (spec tests j, k)."""

from dataclasses import asdict

import pytest
import torch
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import Adapter, AdapterBank, GANMemoryAdapter, LayerSpec, LeFTAdapter, fingerprint, gan_memory
from fewshot_gan.adapters.gan_memory import PENALTY, SHARES, components_needed
from fewshot_gan.training import adapt
from fewshot_gan.training.checkpoints import checkpoints

EVERY_WIDTH = {1: 0.6}


@pytest.fixture
def shares(monkeypatch):
    """`shares({24: 0.9})`: from which width on layers are compressed, and how much of them is kept."""
    return lambda of: monkeypatch.setattr(gan_memory, "SHARES", of)


@pytest.mark.parametrize(
    ("share", "before", "want"),
    [(0.85, 0, 3), (0.4, 0, 1), (0.41, 0, 2), (1.0, 0, 4), (0.86, 10, 3), (0.6, 20, 0), (0.7, 20, 1), (0.96, 10, 4)],
)
def test_components_needed(share, before, want):  # k
    """Of 4 + 3 + 2 + 1 and what the tasks before hold."""
    assert components_needed(torch.tensor([4.0, 3.0, 2.0, 1.0]), share, before) == want


def test_no_share():
    for share in (0.0, 1.1, -1):
        with pytest.raises(ValueError, match=f"share={share} is not in 0 < share <= 1"):
            components_needed(torch.ones(3), share)
    assert components_needed(torch.zeros(0), 0.9) == 0
    assert SHARES == {256: 0.95, 512: 0.9, 1024: 0.8}


def layer_of_rank(rank, outputs=24, inputs=20):
    """An adapter of one 3×3 layer whose γ has `rank` equal singular values, and β none."""
    adapter = GANMemoryAdapter(target_modules={"c": asdict(LayerSpec((outputs, inputs, 3, 3), bias=True))})
    random = torch.Generator().manual_seed(rank)
    u = torch.linalg.qr(torch.randn(outputs, rank, generator=random)).Q
    v = torch.linalg.qr(torch.randn(inputs, rank, generator=random)).Q
    with torch.no_grad():
        adapter.factors()["c"].gamma.copy_((u @ v.T)[..., None, None])
        adapter.factors()["c"].bias_shift.fill_(0.5)
    return adapter


def test_compression_keeps_what_there_is(shares):
    adapter = layer_of_rank(3)
    assert adapter.compressible() == {} and not adapter.compressed().config.ranks  # published: from 256 outputs on
    shares({24: 0.999})
    small = adapter.compressed()
    assert small.config.ranks == {"c": [3, 0]} and not small.config.residual
    assert small.num_values() == 3 * (24 + 20 + 1) + 24
    weight, bias = torch.randn(24, 20, 3, 3), torch.randn(24)
    for a, b in zip(adapter.factors()["c"](weight, bias), small.factors()["c"](weight, bias), strict=True):
        assert a is b is None or torch.allclose(a, b, atol=1e-5)
    for later in ({24: 0.5}, {}):
        shares(later)
        assert small.compressed().config.ranks == small.config.ranks  # nothing new, nothing goes
    shares({25: 0.9})
    assert not adapter.compressed().config.ranks  # narrower layers stay whole
    shares({8: 0.5, 24: 0.999, 30: 0.1})
    assert adapter.compressible() == {"c": 0.999}


def test_a_layer_never_grows(shares):
    """One that needs too many components is whole again, in one task or over several."""
    shares({24: 0.999})
    adapter, sizes = layer_of_rank(20), []
    with torch.no_grad():
        adapter.factors()["c"].beta.copy_(adapter.factors()["c"].gamma)
    assert not adapter.compressed().config.ranks
    adapter = layer_of_rank(3)
    weight = torch.randn(24, 20, 3, 3)
    for task in range(4):
        small = adapter.compressed()
        sizes.append((small.config.ranks or {}).get("c"))
        assert small.num_values() <= 2 * 24 * 20 + 24
        want = adapter.factors()["c"](weight, torch.zeros(24)).weight
        assert torch.allclose(small.factors()["c"](weight, torch.zeros(24)).weight, want, atol=0.05)
        adapter = GANMemoryAdapter(**small.settings() | {"residual": True})
        adapter.load_state_dict(adapter.state_dict() | small.state_dict())
        with torch.no_grad():
            for matrix in (adapter.factors()["c"].gamma, adapter.factors()["c"].beta):
                matrix.add_(torch.randn(24, 20, 1, 1, generator=torch.Generator().manual_seed(task)))
    assert sizes == [[3, 0], None, None, None]


def test_depthwise_layers_have_no_components(shares):
    shares({1: 0.9})
    adapter = GANMemoryAdapter(target_modules={"d": asdict(LayerSpec((24, 1, 3, 3))), "m": asdict(LayerSpec((4, 5)))})
    adapter.register_to_config(low_rank=True)
    assert adapter.compressible() == {} and adapter.penalty(0) is None and not adapter.compressed().config.ranks


def test_penalty(shares):
    adapter = layer_of_rank(3)
    assert adapter.penalty(0) is None  # nobody asked for few components
    adapter.register_to_config(low_rank=True)
    assert adapter.penalty(0) is None  # too narrow for them
    shares({24: 0.999})
    order = torch.arange(20) / 20
    want = PENALTY * (0.1 + (10 * order[:3]).sigmoid()).sum()
    assert adapter.penalty(5) is None and float(adapter.penalty(10).detach()) == pytest.approx(float(want), rel=1e-4)
    assert adapter.compressed().penalty(10) is None
    assert LeFTAdapter(target_modules={"c": asdict(LayerSpec((4, 4, 3, 3)))}).penalty(0) is None


@pytest.fixture
def learn(base_folder, tmp_path, features, shares, monkeypatch):
    """`learn(task, *options)` trains three steps with the script; pictures differ from task to task."""
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda device="cpu": features)
    shares(EVERY_WIDTH)  # the base is narrow

    def run(task, *options):
        (data := tmp_path / f"data-{task}").mkdir(exist_ok=True)
        for i in range(3):
            pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(10 * task + i))
            Image.fromarray(pixels.byte().numpy()).save(data / f"{i}.png")
        args = [f"--base={base_folder}", f"--data={data}", "--report_to=none", "--num_threads=1", "--max_train_steps=3"]
        args += ["--train_batch_size=2", "--sample_steps=0", "--adapter=gan_memory", "--low_rank", *options]
        adapt.main("finetune", [*args, f"--output_dir={tmp_path / f'task-{task}'}"])
        return Adapter.from_pretrained(tmp_path / f"task-{task}")

    return run


def pictures(base, adapter):
    pipe = FewShotGAN.from_pretrained(base)
    pipe.load_adapter(adapter, "task")
    return pipe(2, seed=0, output_type="pt").images


def test_tasks_share_components_and_forget_nothing(learn, base_folder, tmp_path):  # j
    mark = fingerprint(FewShotGAN.from_pretrained(base_folder).generator)
    first = learn(0)
    before, file = pictures(base_folder, tmp_path / "task-0"), tmp_path / "task-0" / "adapter_model.safetensors"
    content = file.read_bytes()
    second = learn(1, f"--previous={tmp_path / 'task-0'}", "--learning_rate=0.1")
    assert torch.equal(pictures(base_folder, tmp_path / "task-0"), before) and file.read_bytes() == content
    assert not torch.allclose(pictures(base_folder, tmp_path / "task-1"), before, atol=1e-3)
    assert fingerprint(FewShotGAN.from_pretrained(base_folder).generator) == mark
    assert first.config.ranks and first.config.ranks.keys() == second.config.ranks.keys()
    tensors, old = second.state_dict(), first.state_dict()
    for path, ranks in first.config.ranks.items():
        for name, rank in zip(("gamma", "beta"), ranks, strict=True):
            assert f"{path}.{name}" not in tensors
            for part in ("left", "right"):  # the bank of the task before, then what this one appended
                assert torch.equal(tensors[f"{path}.{name}_{part}"][:, :rank], old[f"{path}.{name}_{part}"])
    assert any(
        b > a
        for path in first.config.ranks
        for a, b in zip(first.config.ranks[path], second.config.ranks[path], strict=True)
    )
    moved = [
        p
        for p in first.config.ranks
        if not torch.equal(tensors[f"{p}.gamma_scale"][: first.config.ranks[p][0]], old[f"{p}.gamma_scale"])
    ]
    assert moved  # how much of each old component a task takes is its own
    assert second.config.training["previous"]
    whole = Adapter.from_pretrained(checkpoints(tmp_path / "task-0")[-1])
    assert first.num_values() < whole.num_values()


def test_a_run_whose_layers_all_stay_whole(learn, shares):
    shares({1: 1.0})
    result = learn(0)
    assert not result.config.ranks and result.num_values() > 0


def test_a_run_goes_on_with_the_task_before_it_alone(learn, tmp_path):
    first = learn(0)
    learn(1, f"--previous={tmp_path / 'task-0'}")
    with torch.no_grad():
        next(x for name, x in first.named_buffers() if name.endswith("gamma_left")).mul_(2)
    first.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="holds a run with other settings .*gamma_left was"):
        learn(1, f"--previous={tmp_path / 'other'}")


def test_the_next_task_starts_where_the_last_one_ended(learn, base_folder):
    first, pipe = learn(0), FewShotGAN.from_pretrained(base_folder)
    following, bank = GANMemoryAdapter.after(first, pipe.generator), AdapterBank(pipe.generator)
    z = torch.randn(2, pipe.generator.z_dim)
    bank.add("first", first)
    bank.add("following", following)
    with torch.no_grad(), bank.using({"first": 1.0}):
        want = pipe.generator(z)
    with torch.no_grad(), bank.using({"following": 1.0}):
        assert torch.equal(pipe.generator(z), want)
    learning = {name for name, _ in following.named_parameters()}
    assert not any(name.endswith(("_left", "_right")) for name in learning)  # the bank stays
    assert any(name.endswith("gamma_scale") for name in learning) and any(n.endswith(".gamma") for n in learning)


def test_what_cannot_go_before(learn, base_folder, tmp_path, make_generator, shares):
    generator = FewShotGAN.from_pretrained(base_folder).generator
    LeFTAdapter.for_model(generator).save_pretrained(tmp_path / "left")
    other = make_generator()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    GANMemoryAdapter.for_model(other).save_pretrained(tmp_path / "other")
    for options, message in (
        ([f"--previous={tmp_path / 'left'}"], "an adapter of type 'left' has no components"),
        ([f"--previous={tmp_path / 'other'}"], "the task before belongs to base"),
        ([f"--previous={tmp_path / 'nothing'}"], "nothing"),
        (["--adapter=left"], "--low_rank is of --adapter gan_memory; left has none"),
    ):
        with pytest.raises(SystemExit, match=message):
            learn(2, *options)
        assert not (tmp_path / "task-2").exists()
    shares({10_000: 0.9})
    with pytest.raises(SystemExit, match="--low_rank: no convolution of .* is wide enough to be stored in components"):
        learn(2)
    spec = {"c": asdict(LayerSpec((4, 5), role="mapping"))}
    with pytest.raises(ValueError, match="components need a scale per filter"):
        GANMemoryAdapter(target_modules=spec, ranks={"c": [1, 1]})
