"""Files of adapters: damaged, foreign and wrongly set ones are refused with a message that names the file."""

import json
from dataclasses import asdict

import pytest
from helpers.adapter_kinds import assert_same, half_masks, unbound
from safetensors.torch import load_file, save_file

from fewshot_gan.adapters import (
    AdaFMAdapter,
    Adapter,
    AdapterBank,
    DomainVectorAdapter,
    FullAdapter,
    LayerSpec,
    LeFTAdapter,
    TicketAdapter,
    fingerprint,
)
from fewshot_gan.adapters.io import name_of


@pytest.fixture
def saved(mobile, tmp_path):
    LeFTAdapter.for_model(mobile).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refuses(folder, message, error=ValueError):
    with pytest.raises(error, match=message):
        Adapter.from_pretrained(folder)


def test_missing_files(saved, tmp_path):
    (saved / "adapter_model.safetensors").unlink()
    refuses(saved, "not an adapter folder: it has no adapter_model.safetensors", FileNotFoundError)
    refuses(tmp_path / "nowhere", "no adapter .*embedded adapters.*local folder", FileNotFoundError)


@pytest.mark.parametrize("keep", [0, 4, 100, -7])
def test_truncated_weights(saved, keep):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuses(saved, "damaged or cut short.*fetch the file again")


def test_corrupt_weights(saved):
    (saved / "adapter_model.safetensors").write_bytes(b"\xff" * 500)
    refuses(saved, "damaged or cut short")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"x"'])
def test_corrupt_config(saved, text):
    (saved / "adapter_config.json").write_text(text, encoding="utf-8")
    refuses(saved, "adapter_config.json is damaged")


def test_unknown_type_newer_format_and_unknown_setting(saved):
    edit_config(saved, adapter_type="dora")
    refuses(saved, "type 'dora'; known types: adafm, blend, delta_w, domain_vector, full")
    edit_config(saved, adapter_type="left", format_version=99)
    refuses(saved, "adapter format 99.*reads up to 1; upgrade")
    edit_config(saved, format_version=1, flavour="x", rank="2", **{"odd\x1b[31m": 1})
    refuses(saved, "adapter_config.json: rank is '2', not of type int | None")
    edit_config(saved, rank=1)
    with pytest.warns(UserWarning, match="settings that .*'left'.* ignored: 'flavour', 'odd.x1b.31m'; a newer version"):
        adapter = Adapter.from_pretrained(saved)
    assert "flavour" not in adapter.config


def test_bad_settings_in_a_config(saved):
    edit_config(saved, rank=0)
    refuses(saved, "rank=0")
    edit_config(saved, rank=1, target_modules={})
    refuses(saved, "target_modules is empty")
    edit_config(saved, target_modules={"a": {"shape": [2, 2], "colour": "red"}})
    with pytest.warns(UserWarning, match="ignored: 'target_modules.*.colour'"):
        refuses(saved, "does not fit")
    for settings, wrong in (
        ({"target_modules": None}, "target_modules is None, not of type dict"),
        ({"target_modules": {"a": [2, 2]}}, "target_modules is .*, not of type dict"),
        ({"target_modules": {"a": {"shape": "22"}}}, "target_modules.a: shape is '22', not of type tuple"),
        ({"target_modules": {"a": {"shape": [2, 2], "bias": 1}}}, "target_modules.a: bias is 1, not of type bool"),
        ({"training": ["x"]}, "training is .*, not of type dict"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5, not of type str"),
        ({"rank": True}, "rank is True, not of type int"),
    ):
        before = (saved / "adapter_config.json").read_bytes()
        edit_config(saved, **settings)
        refuses(saved, wrong)
        (saved / "adapter_config.json").write_bytes(before)


def test_missing_unexpected_and_misshapen_keys(saved):
    key = "mapping.fc0.mul_out"
    edit_weights(saved, lambda t: t.update(extra=t.pop(key)))
    refuses(saved, f"does not fit its config: missing {key}; unexpected extra")
    edit_weights(saved, lambda t: t.update({key: t.pop("extra")[:-1]}))
    refuses(saved, rf"{key} is \(15, 1\) instead of \(16, 1\)")


def test_bad_options():
    spec = {"conv": asdict(LayerSpec((4, 4, 3, 3)))}
    with pytest.raises(ValueError, match="rank=-1"):
        LeFTAdapter(target_modules=spec, rank=-1)
    with pytest.raises(ValueError, match="unknown placement 'mid'; known: post_demod, pre_demod"):
        DomainVectorAdapter(target_modules=spec, placement="mid")


def test_saving_leaves_no_trace_of_a_failure(saved, mobile, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("fewshot_gan.adapters.io.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        LeFTAdapter.for_model(mobile, rank=2).save_pretrained(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_nan_in_a_file(saved):
    edit_weights(saved, lambda t: t["mapping.fc0.mul_out"].fill_(float("inf")))
    refuses(saved, "mapping.fc0.mul_out has NaN or infinite numbers.*train again with a lower learning rate")


def test_a_damaged_ticket(mobile, tmp_path):
    TicketAdapter.for_model(mobile, masks=half_masks(mobile, 0), keep_values=True).save_pretrained(tmp_path)
    path = next(iter(half_masks(mobile, 0)))
    edit_weights(tmp_path, lambda t: t[f"{path}.mask"].fill_(255))
    refuses(tmp_path, f"the mask of {path} keeps 2304 weights but .* values are stored")


def test_variants_and_collections(mobile, perturbed, tmp_path):
    adapter = perturbed(LeFTAdapter.for_model(mobile))
    adapter.save_pretrained(tmp_path / "a", variant="half")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.half.safetensors",
    ]
    refuses(tmp_path / "a", "has no adapter_model.safetensors", FileNotFoundError)
    assert_same(Adapter.from_pretrained(tmp_path / "a", variant="half").state_dict(), adapter.state_dict())
    with pytest.raises(ValueError, match="variant='../x' is no plain word"):
        adapter.save_pretrained(tmp_path / "a", variant="../x")
    adapter.save_pretrained(tmp_path / "b")
    refuses(tmp_path, "holds several adapters: a, b; choose one with subfolder='a', or load them all")
    assert_same(Adapter.from_pretrained(tmp_path, subfolder="b").state_dict(), adapter.state_dict())


def damage(folder, **changes):
    """Refusals name the file and end in one line."""
    before = (folder / "adapter_config.json").read_text(encoding="utf-8")
    config = json.loads(before)
    for key, value in changes.items():
        config[key] = value(config.get(key)) if callable(value) else value
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        Adapter.from_pretrained(folder)
    (folder / "adapter_config.json").write_text(before, encoding="utf-8")
    assert "adapter_config.json" in str(error.value) or "holds an adapter of type" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_damaged_configs_name_their_file(saved, mobile, tmp_path):
    for version in (True, -3, 1.5, "1", None):
        assert "format_version is" in damage(saved, format_version=version)
    damage(saved, adapter_type=["left"])
    damage(saved, rank=0)
    damage(saved, rank=1.5)
    damage(saved, target_modules={})
    for shape in ([1e30, 2], [10**30, 2], "x", [-1, 2], [2]):
        damage(saved, target_modules={"mapping.fc0": {"shape": shape, "bias": True, "role": "mapping"}})
    (saved / "adapter_config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match="adapter_config.json is damaged"):
        Adapter.from_pretrained(saved)


def test_a_huge_shape_allocates_nothing(saved):
    damage_free = {"mapping.fc0": {"shape": [1_000_000, 1_000_000], "bias": True, "role": "mapping"}}
    edit_config(saved, target_modules=damage_free, rank=None)
    refuses(saved, "does not fit its config: .*missing mapping.fc0.beta")  # 8 TB had it been built


def test_damaged_blends(mobile, perturbed, tmp_path):
    bank = AdapterBank(mobile)
    for seed, name in enumerate("ab"):
        bank.add(name, perturbed(LeFTAdapter.for_model(mobile, target_modules=["mapping.*"]), seed))
    bank.blend({"a": 0.5, "b": 0.5}).save_pretrained(tmp_path)
    assert Adapter.from_pretrained(tmp_path).config.base_fingerprint == fingerprint(mobile)

    def first(changed):
        return lambda weights: [dict.fromkeys(weights[0], changed), weights[1]]

    assert "is no finite number" in damage(tmp_path, weights=first(float("nan")))
    for changed in (None, "x", [1], True):
        assert "not of type list[dict[str, float]]" in damage(tmp_path, weights=first(changed))
    assert "name other layers" in damage(tmp_path, weights=lambda w: [{}, w[1]])
    assert "one set of weights per part" in damage(tmp_path, weights=lambda w: w[:1])
    other = damage(tmp_path, parts=lambda p: [{**p[0], "adapter_type": "dora"}, p[1]])
    assert "a part of a blend is of type 'dora'" in other
    damage(tmp_path, parts=["left", "left"])
    outer = {"mapping.fc0": {"shape": [16, 16], "bias": True, "role": "mapping", "demodulation": "none"}}
    assert "are not those of its parts" in damage(tmp_path, target_modules=outer)


def test_specs_must_match_the_layers(mobile):
    adapter = unbound(FullAdapter.for_model(mobile))
    path, spec = next((p, s) for p, s in adapter.config.target_modules.items() if s["role"] == "conv")
    for change in ({"bias": True}, {"demodulation": "none"}, {"role": "depthwise"}):
        with pytest.raises(ValueError, match=f"it adapts {path} of shape .*, here conv with bias False"):
            AdapterBank(mobile).add("x", FullAdapter(target_modules={path: {**spec, **change}}))


def test_stored_types_must_match(saved):
    key = "mapping.fc0.mul_out"
    edit_weights(saved, lambda t: t.update({key: t[key].long()}))
    refuses(saved, f"{key} is of torch.int64 instead of torch.float32")
    edit_weights(saved, lambda t: t.update({key: t[key].float(), f"base_model.model.{key}": t[key].float()}))
    refuses(saved, f"{key} twice")


def test_options_that_are_no_lists(mobile):
    with pytest.raises(ValueError, match=r"roles='conv': give a list"):
        LeFTAdapter.for_model(mobile, roles="conv")
    with pytest.raises(ValueError, match=r"target_modules='synthesis.\*': give a list"):
        LeFTAdapter.for_model(mobile, target_modules="synthesis.*")
    with pytest.raises(ValueError, match=r"modules_to_save='synthesis.b8': give a list"):
        AdaFMAdapter.for_model(mobile, modules_to_save="synthesis.b8")
    with pytest.raises(ValueError, match="rank=True"):
        LeFTAdapter.for_model(mobile, rank=True)


def test_weights_of_every_number_type(mobile, perturbed):
    import numpy as np

    bank = AdapterBank(mobile)
    bank.add("a", perturbed(LeFTAdapter.for_model(mobile)))
    for look in ({"a": np.float32(0.5)}, {"a": {"4": np.int64(1), np.int64(16): 0.5}}):
        bank.activate(look)
    ((_, alpha),) = mobile.get_submodule("synthesis.b16.conv0.conv").adaptation.parts
    assert alpha == 0.5
    for look in ({"a": 10**400}, {"a": {64: 0.0, "fine": 1.0}}, {"a": {4: 0.0, "4": 1.0}}, {5: 1.0}, {"__base__": 1.0}):
        with pytest.raises(ValueError, match="no finite number|twice|is not loaded|is the generator without"):
            bank.activate(look)


def test_names_of_paths(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(saved)
    for source in (".", "..", "../..", f"{saved}/", saved / "adapter_model.safetensors"):
        want = {"..": saved.parent, "../..": saved.parent.parent}.get(str(source), saved)
        assert name_of(source) == want.name
    assert name_of("me/ink") == "ink" and name_of("me/looks", "sub/oil") == "oil" and name_of({}) is None
