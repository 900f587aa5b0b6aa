"""What users of PEFT and of diffusers' adapters rely on, for every kind of adapter: one table, kinds × behaviours.

The kinds are those of the registry, so that a new one is covered by itself. PEFT's own names stand behind each
behaviour. `python -m pytest --collect-only tests/adapters/test_peft_conformity.py` counts the cases.
"""

import copy
import io
import json
import pickle
import warnings

import pytest
import torch
from helpers.adapter_kinds import assert_same
from helpers.networks import tiny_mobile, tiny_stylegan2
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import Adapter, AdapterBank, TicketAdapter, load_adapter
from fewshot_gan.adapters.io import known_settings
from fewshot_gan.adapters.registry import REGISTRY
from fewshot_gan.models import BigGANGenerator, SNGANGenerator
from fewshot_gan.models.layers import adaptable_layers

MORE = {  # beside each kind with its defaults
    "left, rank 2": ("left", {"rank": 2}),
    "left, full rank": ("left", {"rank": None}),
    "domain_vector, before demodulation": ("domain_vector", {"placement": "pre_demod"}),
    "domain_vector, output": ("domain_vector", {"parametrization": "output"}),
    "domain_vector, separable": ("domain_vector", {"parametrization": "separable"}),
    "domain_vector, full": ("domain_vector", {"parametrization": "full"}),
    "ticket with values": ("ticket", {"keep_values": True}),
}
KINDS = {**{name: (name, {}) for name in sorted(REGISTRY)}, **MORE}


def tiny_sngan():
    torch.manual_seed(0)
    generator = SNGANGenerator(8, 6, 16).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)  # biases that matter
    return generator


def tiny_biggan():
    torch.manual_seed(0)
    return BigGANGenerator((16, 16, 8), 1, chunk_dim=3, shared_dim=4, num_classes=3).eval()


GENERATORS = {"mobile": tiny_mobile, "stylegan2": tiny_stylegan2, "sngan": tiny_sngan}
# float32 sums in another order, through about ten layers of a picture of values up to 1
CLOSE = {"rtol": 0, "atol": 2e-5}


def masks(generator, seed):
    random = torch.Generator().manual_seed(seed)
    layers = [(p, m) for p, m in adaptable_layers(generator) if m.role in TicketAdapter.roles]
    return {path: torch.rand(layer.weight.shape, generator=random) < 0.7 for path, layer in layers}


def made(kind: str, generator, seed: int = 0, **more) -> Adapter:
    """An adapter of the kind that changes the picture; other seeds, other changes."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    if name == "delta_w" and not any(layer.role == "affine" for _, layer in adaptable_layers(generator)):
        pytest.skip("it shifts w, and this generator has no styles")
    if name == "blend":
        bank = AdapterBank(generator)
        for part, of in enumerate(("left", "adafm")):
            bank.add(str(part), made(of, generator, seed + 10 * part, **more))
        return bank.blend({"0": 0.75, "1": -0.5})
    if name == "ticket":
        options = options | {"masks": masks(generator, seed)}
    adapter = REGISTRY[name].for_model(generator, **options, **more)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    return adapter.eval().requires_grad_(False)


def pictures(pipe, **options):
    return pipe(2, seed=3, output_type="pt", **options).images


def values(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture(params=sorted(GENERATORS))
def pipe(request):
    return FewShotGAN(GENERATORS[request.param]().requires_grad_(False))


BEHAVIOURS = {}


def behaviour(function):
    BEHAVIOURS[function.__name__] = function
    return function


# --------------------------------------------------------------------------------------------------- saving and loading


@behaviour
def save_and_load(pipe, kind, tmp_path):
    """PeftModel.save_pretrained, from_pretrained."""
    pipe.load_adapter(made(kind, pipe.generator), "a")
    want = pictures(pipe)
    pipe.save_adapter(tmp_path / "a")
    loaded = Adapter.from_pretrained(tmp_path / "a")
    assert type(loaded) is REGISTRY[KINDS[kind][0]] and not loaded.training
    assert_same(loaded.state_dict(), pipe.bank.adapters["a"].state_dict())
    pipe.delete_adapters("a")
    base = pictures(pipe)
    assert pipe.load_adapter(tmp_path / "a").active_adapters() == ["a"]
    assert torch.equal(pictures(pipe), want) and not torch.allclose(want, base, atol=1e-3)


@behaviour
def every_source(pipe, kind, tmp_path):
    """A folder, its weights file, a file and config of other names, a state dict in the three forms."""
    adapter = made(kind, pipe.generator)
    adapter.save_pretrained(tmp_path / "look")
    folder, file = tmp_path / "look", tmp_path / "look" / "adapter_model.safetensors"
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "other").mkdir()
    save_file({f"base_model.model.{k}": v for k, v in load_file(file).items()}, tmp_path / "other" / "w.safetensors")
    own = adapter.state_dict()
    sources = {
        "folder": ((folder,), {}),
        "file": ((file,), {}),
        "file as text": ((str(file),), {}),
        "file and config": ((tmp_path / "other" / "w.safetensors",), {"config": config}),
        "file and path of config": (
            (tmp_path / "other" / "w.safetensors",),
            {"config": folder / "adapter_config.json"},
        ),
        "pair": (((own, adapter.stored_config()),), {}),
        "state dict": ((own,), {"config": config}),
        "keywords": ((), {"state_dict": own, "config": folder}),
    }
    before = values(adapter)
    for name, (arguments, options) in sources.items():
        loaded = load_adapter(*arguments, **options)
        assert type(loaded) is type(adapter), name
        assert_same(loaded.state_dict(), own)
        assert json.loads(json.dumps(loaded.settings(), default=list)) == json.loads(
            json.dumps(adapter.settings(), default=list)
        ), name
        with torch.no_grad():
            for tensor in loaded.state_dict().values():  # a copy: what happens to it leaves the source alone
                tensor.zero_()
        assert_same(before, values(adapter))
    names = [
        pipe.load_adapter(*arguments, **options).active_adapters()[0]
        for arguments, options in (sources["file"], sources["file and config"], sources["pair"], sources["keywords"])
    ]
    assert names == ["look", "w", "default_2", "default_3"]


@behaviour
def dtype_and_device(pipe, kind, tmp_path):
    """torch_dtype, torch_device: numbers are cast, masks are not; the picture stays the picture."""
    adapter = made(kind, pipe.generator)
    adapter.save_pretrained(tmp_path)
    want = pictures(pipe.load_adapter(tmp_path, "want"))
    for name, dtype, tolerance in (
        ("dtype", torch.float64, 1e-4),  # the same numbers
        ("torch_dtype", torch.float16, 2e-2),  # 11 bits of each factor, through about ten layers
        ("dtype", torch.bfloat16, 0.15),  # 8 bits
    ):
        loaded = load_adapter(tmp_path, torch_device="cpu", **{name: dtype})
        for key, tensor in adapter.state_dict().items():
            got = loaded.state_dict()[key]
            assert torch.equal(got, tensor.to(dtype) if tensor.is_floating_point() else tensor)
        pipe.load_adapter(tmp_path, str(dtype).removeprefix("torch."), **{name: dtype})
        torch.testing.assert_close(pictures(pipe), want, rtol=0, atol=tolerance)
        assert next(iter(pipe.bank.adapters)) == "want"


@behaviour
def low_cpu_mem_usage(pipe, kind, tmp_path):
    """The same adapter either way; with it no number is made but those that the file holds."""
    adapter = made(kind, pipe.generator)
    adapter.save_pretrained(tmp_path)
    loaded, filled = {}, {}
    for low in (True, False):
        with Filled() as mode:
            loaded[low] = load_adapter(tmp_path, low_cpu_mem_usage=low, dtype=torch.float64)
        filled[low] = mode.count
    assert filled[True] == 0 < filled[False]
    assert_same(loaded[True].state_dict(), loaded[False].state_dict())
    assert_same(loaded[True].float().state_dict(), adapter.state_dict())
    assert loaded[True].settings() == loaded[False].settings()


@behaviour
def is_trainable(pipe, kind, tmp_path):
    """PeftModel.from_pretrained(is_trainable=True): gradients reach every number; else none."""
    adapter = made(kind, pipe.generator)
    adapter.save_pretrained(tmp_path)
    frozen = pipe.load_adapter(tmp_path, "frozen").bank.adapters["frozen"]
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    if not list(adapter.parameters()):
        with pytest.raises(ValueError, match="is_trainable: this adapter of type 'ticket' has no numbers to train"):
            pipe.load_adapter(tmp_path, "a", is_trainable=True)
        return
    pipe.load_adapter(tmp_path, "a", is_trainable=True)
    loaded, base = pipe.bank.adapters["a"], values(pipe.generator)
    assert loaded.training and all(p.requires_grad for p in loaded.parameters())
    before, others = values(loaded), values(frozen)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1e-2)
    z = torch.randn(2, pipe.generator.z_dim, generator=torch.Generator().manual_seed(1))
    out = pipe.generator(z)
    (out - torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in loaded.named_parameters())
    assert_same(others, values(frozen))
    assert_same(base, values(pipe.generator))


@behaviour
def unknown_settings(pipe, kind, tmp_path):
    """A newer release's config: PEFT warns, names what it ignores, and loads."""
    adapter = made(kind, pipe.generator)
    adapter.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    newer = config | {"tone": 3, "peft_type": "X"}
    if "parts" in config:
        newer["parts"] = [part | {"tone": 3} for part in config["parts"]]
    file.write_text(json.dumps(newer), encoding="utf-8")
    with pytest.warns(UserWarning, match="which are ignored: 'tone', 'peft_type'"):
        loaded = Adapter.from_pretrained(tmp_path)
    assert_same(loaded.state_dict(), adapter.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what it saves has nothing unknown left
        loaded.save_pretrained(tmp_path / "again")
        known_settings(type(loaded), loaded.settings(), "x")
        if "parts" not in config:
            Adapter.from_pretrained(tmp_path / "again")
    for key, wrong in (("target_modules", ["a"]), ("training", 5), ("base_fingerprint", 5), ("method", ["m"])):
        file.write_text(json.dumps(config | {key: wrong}), encoding="utf-8")
        with pytest.raises(ValueError, match=f"{key} is .*, not of type"):
            Adapter.from_pretrained(tmp_path)


@behaviour
def loads_in_inference_mode(pipe, kind, tmp_path):
    """What is loaded there serves outside of it too: drawn, fused, trained."""
    adapter = made(kind, pipe.generator)
    adapter.save_pretrained(tmp_path)
    want = pictures(pipe.load_adapter(adapter, "want"))
    with torch.inference_mode():
        pipe.load_adapter(tmp_path, "a")
        assert torch.equal(pictures(pipe), want)
    assert torch.equal(pictures(pipe), want)
    loaded = pipe.bank.adapters["a"]
    assert not any(t.is_inference() for t in loaded.state_dict().values())


# ---------------------------------------------------------------------------------------------------- merge and unmerge


@behaviour
def merge_and_unmerge(pipe, kind, tmp_path):
    """merge_adapter, unmerge_adapter: the picture stays, and the weights come back bit for bit."""
    for seed, name in enumerate("ab"):
        pipe.load_adapter(made(kind, pipe.generator, seed), name)
    pipe.set_adapters(["a", "b"], [1.0, -0.5])
    want, base = pictures(pipe), values(pipe.generator)
    for _ in range(2):
        pipe.fuse_adapters()
        torch.testing.assert_close(pictures(pipe), want, **CLOSE)
        with pytest.raises(ValueError, match="call unfuse_adapters first"):
            pipe.fuse_adapters()
        with pytest.raises(ValueError, match="call unfuse_adapters first"):
            pipe.delete_adapters("a")
        pipe.unfuse_adapters()
        assert_same(values(pipe.generator), base)
        assert torch.equal(pictures(pipe), want)


@behaviour
def merge_in_inference_mode(pipe, kind, tmp_path):
    """Nothing that was kept of the old weights survives a write in that mode, on either side."""
    pipe.load_adapter(made(kind, pipe.generator), "a")
    base = values(pipe.generator)
    want = pictures(pipe)
    plain = pictures(pipe, adapter_names="__base__")
    with torch.inference_mode():
        inside = pictures(pipe)
        pipe.fuse_adapters(safe_fusing=True)
        torch.testing.assert_close(pictures(pipe), inside, **CLOSE)
    torch.testing.assert_close(pictures(pipe), want, **CLOSE)
    with torch.inference_mode():
        pipe.unfuse_adapters()
        assert torch.equal(pictures(pipe, adapter_names="__base__"), plain)
    assert_same(values(pipe.generator), base)
    assert torch.equal(pictures(pipe), want)


@behaviour
def merge_into_a_base_of_inference_mode(pipe, kind, tmp_path):
    """Weights that were made in that mode are written to in it."""
    with torch.inference_mode():
        other = FewShotGAN(copy.deepcopy(pipe.generator))
    assert all(p.is_inference() for p in other.generator.parameters())
    adapters = [made(kind, pipe.generator) for _ in range(2)]
    for each, adapter in zip((pipe, other), adapters, strict=True):
        each.load_adapter(adapter, "a").fuse_adapters()
    assert torch.equal(pictures(other), pictures(pipe))
    other.unfuse_adapters()
    pipe.unfuse_adapters()
    assert_same(values(other.generator), values(pipe.generator))


@behaviour
def safe_merge(pipe, kind, tmp_path):
    """merge_adapter(safe_merge=True): weights that are not finite are refused, and everything stays as it was."""
    pipe.load_adapter(made(kind, pipe.generator), "good")
    pipe.load_adapter(made(kind, pipe.generator, 1), "bad")
    pipe.set_adapters({"good": 0.5})
    want = pictures(pipe)
    for tensor in broken(pipe.bank.adapters["bad"], pipe.generator):
        base = values(pipe.generator)
        for look in ("bad", {"good": 1.0, "bad": 0.5}):
            with pytest.raises(ValueError, match="would not be finite in torch.float32; nothing was written"):
                pipe.fuse_adapters(look, safe_fusing=True)
            assert pipe.bank.fused is None and pipe.bank.active == {"good": 0.5}
            assert_nearly(values(pipe.generator), base)
        tensor.undo()
    assert torch.equal(pictures(pipe), want)
    pipe.fuse_adapters("good", safe_fusing=True)  # and what is finite is fused
    pipe.unfuse_adapters()
    if KINDS[kind][0] != "ticket":  # which moves no weight away
        half = FewShotGAN(copy.deepcopy(pipe.generator).half())
        adapter = made(kind, pipe.generator)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.mul_(1e7)  # finite in float32, and not in float16
        adapter.register_to_config(base_fingerprint=None)
        half.load_adapter(adapter, "a")
        with pytest.raises(ValueError, match="would not be finite in torch.float16"):
            half.fuse_adapters(safe_fusing=True)
        assert half.bank.fused is None


class Number:
    """One number of a tensor set to infinity."""

    def __init__(self, tensor):
        self.tensor, self.kept = tensor.view(-1), tensor.view(-1)[0].clone()
        with torch.no_grad():
            self.tensor[0] = float("inf")

    def undo(self):
        with torch.no_grad():
            self.tensor[0] = self.kept


def broken(adapter, generator):
    """One after the other, things that make an effective weight infinite or NaN: of the adapter, and of the base."""
    floats = [t for t in adapter.state_dict(keep_vars=True).values() if t.is_floating_point()]
    if floats:
        yield Number(floats[0])
    if getattr(adapter, "kept_values", None) is None:  # such have no use for the base's
        yield Number(generator.get_submodule(next(iter(adapter.factors()))).stored()[0].data)


def assert_nearly(a, b):
    assert all(torch.equal(a[k].nan_to_num(0, 0, 0), b[k].nan_to_num(0, 0, 0)) for k in a)


# ------------------------------------------------------------------------------------------ which act, and how strongly


@behaviour
def disable_and_enable(pipe, kind, tmp_path):
    """disable_adapter() as a switch and as a context."""
    base = pictures(pipe)
    pipe.load_adapter(made(kind, pipe.generator), "a")
    want = pictures(pipe)
    pipe.disable_adapters()
    assert pipe.active_adapters() == [] == pipe.get_active_adapters() and torch.equal(pictures(pipe), base)
    assert torch.equal(pictures(pipe, adapter_names="a"), want)
    pipe.enable_adapters()
    assert pipe.active_adapters() == ["a"] and torch.equal(pictures(pipe), want)
    with pipe.bank.using({}):
        assert torch.equal(pictures(pipe), base)
    assert torch.equal(pictures(pipe), want)


@behaviour
def delete(pipe, kind, tmp_path):
    """delete_adapter: the others go on; without others the first that is left acts, with a warning; then the base."""
    base = pictures(pipe)
    solo = {}
    for seed, name in enumerate("abc"):
        solo[name] = pictures(pipe.load_adapter(made(kind, pipe.generator, seed), name))
    pipe.set_adapters(["b", "c"], [1.0, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.delete_adapters("b")
    assert pipe.bank.active == {"c": 0.5} and pipe.get_list_adapters() == {"generator": ["a", "c"]}
    with pytest.warns(UserWarning, match="'c' was active and is deleted; 'a' is active now"):
        pipe.delete_adapters("c")
    assert pipe.active_adapters() == ["a"] and torch.equal(pictures(pipe), solo["a"])
    with pytest.raises(ValueError, match="'z' is not loaded"):
        pipe.delete_adapters(["a", "z"])
    assert pipe.loaded_adapters() == ["a"]  # all or none
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.delete_adapters("a")
    assert pipe.get_list_adapters() == {} and torch.equal(pictures(pipe), base)
    pipe.load_adapter(made(kind, pipe.generator), "a")  # the name is free again
    pipe.set_adapters([])
    pipe.load_adapter(made(kind, pipe.generator), "b").set_adapters([])
    pipe.delete_adapters("b")
    assert pipe.active_adapters() == []  # nothing was active, nothing becomes so


@behaviour
def mixed_batch(pipe, kind, tmp_path):
    """adapter_names per row: each row equals its own run."""
    for seed, name in enumerate("ab"):
        pipe.load_adapter(made(kind, pipe.generator, seed), name)
    rows = ["a", "__base__", {"a": 0.5, "b": -1.0}, "b", "a"]
    z = torch.randn(len(rows), pipe.generator.z_dim, generator=torch.Generator().manual_seed(1))
    together = pipe(latents=z, adapter_names=rows, output_type="pt").images
    for i, look in enumerate(rows):
        alone = pipe(latents=z[i : i + 1], adapter_names=look, output_type="pt").images
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)  # as `using_rows` promises
    with pytest.raises(ValueError, match="adapter_names has 2 entries for 5 images"):
        pipe(latents=z, adapter_names=["a", "b"])


@behaviour
def weighted(pipe, kind, tmp_path):
    """set_adapters(adapter_weights=), add_weighted_adapter; weight 0 is off."""
    base = pictures(pipe)
    for seed, name in enumerate("ab"):
        pipe.load_adapter(made(kind, pipe.generator, seed), name)
    pipe.set_adapters(["a", "b"], adapter_weights=[0.75, {"coarse": -0.5, "fine": 0.25}])
    want = pictures(pipe)
    pipe.set_adapters(["a", "b"], [0.75, {"coarse": -0.5, "fine": 0.25}])
    assert torch.equal(pictures(pipe), want) and not torch.allclose(want, base, atol=1e-3)
    with pytest.raises(ValueError, match="weights and adapter_weights are two names of one option"):
        pipe.set_adapters(["a"], [1.0], adapter_weights=[1.0])
    pipe.add_weighted_adapter(["a", "b"], [0.75, {"coarse": -0.5, "fine": 0.25}], "c")
    torch.testing.assert_close(pictures(pipe, adapter_names="c"), want, **CLOSE)
    pipe.set_adapters(["a", "b"], adapter_weights=0)
    assert torch.equal(pictures(pipe), base)
    pipe.set_adapters(["a", "b"], [None, 0.0])  # diffusers: None is 1
    assert torch.equal(pictures(pipe), pictures(pipe, adapter_names="a"))


@behaviour
def several_and_switching(pipe, kind, tmp_path):
    """load_adapter, set_adapter, back to each bit for bit; a name is taken once; hotswap keeps weight and place."""
    base = pictures(pipe)
    solo = {}
    for seed, name in enumerate("ab"):
        solo[name] = pictures(pipe.load_adapter(made(kind, pipe.generator, seed), name))
    assert pipe.get_list_adapters() == {"generator": ["a", "b"]} and pipe.get_active_adapters() == ["b"]
    for look in ("a", "b", [], "a", "b"):
        pipe.set_adapters(look)
        assert torch.equal(pictures(pipe), solo.get(look, base) if isinstance(look, str) else base)
    with pytest.raises(ValueError, match="an adapter 'a' is already loaded"):
        pipe.load_adapter(made(kind, pipe.generator, 5), "a")
    pipe.set_adapters(["a", "b"], [1.0, 0.0])
    pipe.load_adapter(made(kind, pipe.generator, 1), "a", hotswap=True)
    assert pipe.bank.active == {"a": 1.0, "b": 0.0} and torch.equal(pictures(pipe), solo["b"])


@behaviour
def other_bases_are_refused(pipe, kind, tmp_path):
    other = type(pipe.generator)(**{k: v for k, v in pipe.generator.config.items() if not k.startswith("_")}).eval()
    made(kind, other, base_model_name_or_path="somewhere").save_pretrained(tmp_path)
    before = pictures(pipe)
    with pytest.raises(ValueError, match="trained on 'somewhere'.* its base 'somewhere' is not on this machine"):
        pipe.load_adapter(tmp_path, "a")
    assert pipe.loaded_adapters() == [] and torch.equal(pictures(pipe), before)
    loose = load_adapter(tmp_path)
    loose.register_to_config(base_fingerprint=None)  # an adapter that cannot tell
    pipe.base_name = "here"
    with pytest.warns(UserWarning, match="made for 'somewhere', and this base is 'here'; it carries no fingerprint"):
        pipe.load_adapter(loose, "a")


# ------------------------------------------------------------------------------------------------- copies and compilers


@behaviour
def deepcopy(pipe, kind, tmp_path):
    """copy.deepcopy of the adapter, the pipe, and a fused one: equal, and independent."""
    for seed, name in enumerate("ab"):
        pipe.load_adapter(made(kind, pipe.generator, seed), name)
    pipe.set_adapters({"a": 1.0, "b": {"coarse": 0.5, "fine": 0.0}})
    want, adapter = pictures(pipe), pipe.bank.adapters["a"]
    assert_same(copy.deepcopy(adapter).state_dict(), adapter.state_dict())
    twin = copy.deepcopy(pipe)
    check_twin(pipe, twin, want)
    pipe.fuse_adapters()
    fused = copy.deepcopy(pipe)
    assert torch.equal(pictures(fused), pictures(pipe))
    fused.unfuse_adapters()
    assert torch.equal(pictures(fused), want)
    assert pipe.bank.fused is not None
    pipe.unfuse_adapters()
    assert torch.equal(pictures(pipe), want)
    z = torch.randn(2, pipe.generator.z_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), pipe.bank.using({}):
        base = pipe.generator(z)
    with torch.no_grad():  # of the generator alone: the base
        for generator in (copy.deepcopy(pipe.generator), pickle.loads(pickle.dumps(pipe.generator))):
            assert torch.equal(generator(z), base)
        assert not torch.equal(pipe.generator(z), base)


@behaviour
def pickles(pipe, kind, tmp_path):
    """pickle and torch.save of the adapter and of the pipe."""
    for seed, name in enumerate("ab"):
        pipe.load_adapter(made(kind, pipe.generator, seed), name)
    pipe.set_adapters({"a": 1.0, "b": {"coarse": 0.5, "fine": 0.0}})
    want, adapter = pictures(pipe), pipe.bank.adapters["a"]
    again = pickle.loads(pickle.dumps(adapter))
    assert_same(again.state_dict(), adapter.state_dict())
    assert again.settings() == adapter.settings() and type(again) is type(adapter)
    twin = pickle.loads(pickle.dumps(pipe))
    check_twin(pipe, twin, want)
    pipe.fuse_adapters()
    buffer = io.BytesIO()
    torch.save(pipe, buffer)
    buffer.seek(0)
    fused = torch.load(buffer, weights_only=False)
    assert torch.equal(pictures(fused), pictures(pipe))
    fused.unfuse_adapters()
    assert torch.equal(pictures(fused), want)


def check_twin(pipe, twin, want):
    assert twin.bank.model is twin.generator is not pipe.generator
    assert torch.equal(pictures(twin), want) and twin.bank.active == pipe.bank.active
    assert twin.bank.fingerprint() == pipe.bank.fingerprint()
    base, solo = pictures(pipe, adapter_names="__base__"), pictures(pipe, adapter_names="b")
    with torch.no_grad():  # what happens to the one leaves the other alone
        for tensor in twin.bank.adapters["a"].state_dict().values():
            tensor.zero_()
        for tensor in twin.generator.state_dict().values():
            tensor.zero_()
    twin.delete_adapters(["a"])
    assert torch.equal(pictures(pipe), want) and pipe.loaded_adapters() == ["a", "b"]
    assert torch.equal(pictures(pipe, adapter_names="__base__"), base)
    assert torch.equal(pictures(pipe, adapter_names="b"), solo)


class Filled(TorchDispatchMode):
    """Counts the calls that fill new memory of the CPU: zeros, ones, random numbers; copies are none."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), options=None):
        out = function(*args, **(options or {}))
        name = function.overloadpacket.__name__
        if isinstance(out, torch.Tensor) and out.device.type == "cpu" and name in ("zeros", "ones", "randn", "full"):
            self.count += out.numel() > 1
        return out


def combinations():
    """Every kind on every generator; those with other settings than the defaults on the other two take long."""
    for generator in sorted(GENERATORS):
        for kind in KINDS:
            marks = [pytest.mark.slow] if kind in MORE and generator != "mobile" else []
            yield pytest.param(generator, kind, marks=marks, id=f"{generator}-{kind}")


@pytest.mark.parametrize("pipe, kind", combinations(), indirect=["pipe"])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_behaviour(name, kind, pipe, tmp_path):
    BEHAVIOURS[name](pipe, kind, tmp_path)


def check_compiled(pipe, kind, atol=CLOSE["atol"], **options):
    """torch.compile of the pipe draws what it draws without; another adapter, or none, acts at once."""
    pipe.load_adapter(made(kind, pipe.generator), "a").load_adapter(made(kind, pipe.generator, 1), "b")
    looks = ("a", "b", "__base__")
    want = [pictures(pipe, adapter_names=look) for look in looks]
    torch._dynamo.reset()
    pipe.compile(**options)
    for look, images in zip(looks, want, strict=True):
        torch.testing.assert_close(pictures(pipe, adapter_names=look), images, rtol=0, atol=atol)
    pipe.set_adapters("a")
    torch.testing.assert_close(pictures(pipe), want[0], rtol=0, atol=atol)


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_compiled(kind):
    check_compiled(FewShotGAN(tiny_mobile(block_channels=(16, 16)).requires_grad_(False)), kind, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_by_inductor(kind, pipe):
    check_compiled(pipe, kind, atol=1e-4)  # it fuses operations, which round otherwise


@pytest.mark.parametrize("kind", sorted(REGISTRY))
@torch.no_grad()
def test_copies_of_a_generator_with_spectral_norm(kind):
    """torch gives such layers a class of their own, with other ways to be copied."""
    pipe = FewShotGAN(tiny_biggan().requires_grad_(False))
    options = {"latents": torch.randn(2, pipe.generator.z_dim, generator=torch.Generator().manual_seed(1))}
    options |= {"class_labels": [0, 2], "output_type": "pt"}
    base = pipe(**options).images
    want = pipe.load_adapter(made(kind, pipe.generator), "a")(**options).images
    assert not torch.equal(want, base)
    for copied in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        assert torch.equal(FewShotGAN(copied(pipe.generator))(**options).images, base)
        generator = copied(pipe.generator)
        assert all(layer.adaptation is None for _, layer in adaptable_layers(generator))
        twin = copied(pipe)
        assert torch.equal(twin(**options).images, want) and twin.bank.active == {"a": 1.0}
        twin.delete_adapters("a")
        assert torch.equal(twin(**options).images, base) and torch.equal(pipe(**options).images, want)


@torch.no_grad()
def test_shallow_copies_of_layers_with_spectral_norm():
    """`copy.copy` of a module is another module with the same parameters; here too."""
    generator = tiny_biggan().eval()
    layers = [module for module in generator.modules() if hasattr(module, "parametrizations")]
    assert layers
    for layer in (generator, *layers):
        twin = copy.copy(layer)
        assert twin is not layer and type(twin) is type(layer)
        assert all(a is b for a, b in zip(twin.parameters(), layer.parameters(), strict=True))
    assert all(torch.equal(copy.copy(layer).weight, layer.weight) for layer in layers)
