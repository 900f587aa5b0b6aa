"""Published StyleGAN2 checkpoints: same pictures and logits as the layouts' own function, and nothing executed.

The function is that of `helpers.stylegan2_checkpoints`, which shares no code with the package.
"""

import argparse
import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from helpers.networks import tiny_mobile
from helpers.stylegan2_checkpoints import (
    RESOLUTIONS,
    R,
    W,
    Z,
    pkl_discriminator,
    pkl_functions,
    pkl_generator,
    pt_discriminator,
    pt_functions,
    pt_generator,
)
from helpers.tensors import normal_source

from fewshot_gan.convert import ConversionError, convert_checkpoint

# float32 against float32 in another order of summation, at most 13 layers deep
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def compare(networks, w_avg, g_map, g_synthesis, d_judge):
    g, d = networks["generator"], networks["discriminator"]
    z = normal_source(100)(3, Z)
    w = g_map(z)
    ws = (w_avg + 0.7 * (w - w_avg))[:, None].expand(-1, 2 * len(RESOLUTIONS), -1)
    with torch.no_grad():
        torch.testing.assert_close(g.map_latents(z)[:, 0], w, **TOLERANCE)
        torch.testing.assert_close(g.mapping.w_avg, w_avg)
        torch.testing.assert_close(g(z, truncation_psi=0.7), g_synthesis(ws), **TOLERANCE)
        ws = normal_source(101)(3, 2 * len(RESOLUTIONS), W)  # every layer its own style
        torch.testing.assert_close(g(ws, latent_space="w+"), g_synthesis(ws), **TOLERANCE)
        images = normal_source(102)(4, 3, R, R) + 2 * normal_source(103)(4, 3, 1, 1)  # samples of different colour
        torch.testing.assert_close(d(images), d_judge(images), **TOLERANCE)
        assert d_judge(images).std() > 1e-2  # far above the tolerance: something was compared


# ------------------------------------------------------------------------------------------------------ `.pt` layout


@pytest.fixture
def pt():
    return {"g_ema": pt_generator(1), "d": pt_discriminator(2), "latent_avg": normal_source(3)(W)}


@pytest.mark.parametrize("zipped", [True, False])
def test_pt_equals_its_own_function(tmp_path, pt, zipped):
    extra = {"g": pt_generator(9), "args": argparse.Namespace(lr=0.002), "g_optim": {"state": {}}, "ada_aug_p": 0.0}
    torch.save(pt | extra, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    networks = convert_checkpoint(tmp_path / "x.pt")
    assert set(networks) == {"generator", "generator_raw", "discriminator"}
    assert networks["generator"].config.channel_max == 12 and networks["generator"].config.channel_base == 128
    compare(networks, pt["latent_avg"], *pt_functions(pt["g_ema"], pt["d"]))
    raw = networks["generator_raw"].state_dict()
    assert torch.equal(raw["synthesis.b8.conv0.weight"], extra["g"]["convs.0.conv.weight"][0])


@pytest.mark.parametrize("zipped", [True, False])
def test_pt_with_numpy_scalars_and_arrays(tmp_path, pt, zipped):
    extra = {"latent_avg": pt["latent_avg"].double().numpy(), "best_fid": np.float64(7.5), "seed": np.int64(3)}
    torch.save(pt | extra, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    compare(convert_checkpoint(tmp_path / "x.pt"), pt["latent_avg"], *pt_functions(pt["g_ema"], pt["d"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["g_ema", "g", "d", "latent_avg"])
def test_pt_with_weights_that_are_no_numbers(tmp_path, pt, part, value):
    pt["g"] = pt_generator(4)
    (pt[part] if part == "latent_avg" else pt[part][next(k for k in pt[part] if k.endswith("bias"))])[-1] = value
    torch.save(pt, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=r"in x.pt has weights that are no finite real numbers: [\w.]+"):
        convert_checkpoint(tmp_path / "x.pt")


def test_pt_names_cannot_command_a_terminal(tmp_path, pt):
    pt["g_ema"]["\x1b[31mconvs\n.0.extra\x07"] = torch.zeros(1)
    torch.save(pt, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=r"left over: convs .0.extra$"):
        convert_checkpoint(tmp_path / "x.pt")


def test_pt_without_mean_w_is_estimated(tmp_path, pt, caplog):
    del pt["latent_avg"], pt["d"]
    torch.save(pt, tmp_path / "x.pt")
    networks = convert_checkpoint(tmp_path / "x.pt")
    assert set(networks) == {"generator"} and "mean of 10000 mapped samples" in caplog.text
    with torch.no_grad():
        w = networks["generator"].map_latents(normal_source(5)(20_000, Z))[:, 0]
        # the error of two means, of 10,000 and of 20,000 samples
        assert (
            (networks["generator"].mapping.w_avg - w.mean(0)).abs() < 5 * w.std(0) * (1 / 1e4 + 1 / 2e4) ** 0.5
        ).all()


@pytest.mark.parametrize("part", ["g_ema", "d"])
def test_pt_missing_keys_are_named(tmp_path, pt, part):
    for key in [k for k in pt[part] if not k.endswith("kernel")][::6]:
        broken = pt | {part: {k: v for k, v in pt[part].items() if k != key}}
        torch.save(broken, tmp_path / "x.pt")
        last = {"style.8.weight": "style.8.bias", "style.8.bias": "style.8.bias"}.get(key, key)
        with pytest.raises(ConversionError, match=rf"(missing: |no tensor '|left over: ){last}"):
            convert_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "part,key,value,message",
    [
        ("g_ema", "convs.0.extra", torch.zeros(1), "left over: convs.0.extra"),
        ("g_ema", "convs.2.conv.weight", torch.zeros(1, 8, 12, 1, 1), "shape of convs.2.conv.weight"),
        ("g_ema", "noises.noise_3", torch.zeros(1, 1, 8, 8), "shape of noises.noise_3"),
        ("g_ema", "convs.0.conv.blur.kernel", torch.ones(4, 4) / 16, "convs.0.conv.blur.kernel is not the filter"),
        ("g_ema", "convs.1.conv.weight", torch.zeros(1, 9, 12, 3, 3), "do not follow min"),
        ("g_ema", "style.1.bias", "text", "style.1.bias is a str"),
        ("d", "final_linear.2.weight", torch.zeros(1), "left over: final_linear.2.weight"),
        ("d", "final_linear.0.weight", torch.zeros(12, 12), "shape of final_linear.0.weight"),
        ("d", "convs.1.skip.0.kernel", torch.ones(2, 2), "convs.1.skip.0.kernel is not the filter"),
    ],
)
def test_pt_misfits_are_named(tmp_path, pt, part, key, value, message):
    pt[part][key] = value
    torch.save(pt, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(tmp_path / "x.pt")


def test_pt_without_generator(tmp_path):
    torch.save({"d": pt_discriminator(1)}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match="no generator"):
        convert_checkpoint(tmp_path / "x.pt")


# ----------------------------------------------------------------------------------------------------- `.pkl` layout


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("clamp", [None, 0.3, 1, 256])  # 256 is what the training script writes
def test_pkl_equals_its_own_function(tmp_path, nvidia, protocol, attributes, clamp):
    g, d = pkl_generator(1), pkl_discriminator(2)
    data = nvidia.networks(g, d, clamp=clamp, attributes=attributes)
    networks = convert_checkpoint(nvidia.write(tmp_path / "x.pkl", data, protocol))
    assert set(networks) == {"generator", "discriminator"}
    assert networks["discriminator"].config.mbstd_group_size == 2
    compare(networks, g["mapping.w_avg"], *pkl_functions(g, d, clamp, 2, 0.02))


def test_pkl_raw_generator_is_kept_beside_the_average(tmp_path, nvidia):
    data = nvidia.networks()
    data["G"], data["D"] = nvidia.networks(pkl_generator(7))["G_ema"], None
    networks = convert_checkpoint(nvidia.write(tmp_path / "x.pkl", data))
    assert set(networks) == {"generator", "generator_raw"}
    for name, seed in (("generator", 1), ("generator_raw", 7)):
        assert torch.equal(networks[name].synthesis.b4.const, pkl_generator(seed)["synthesis.b4.const"])
    data["G_ema"] = None
    networks = convert_checkpoint(nvidia.write(tmp_path / "x.pkl", data))
    assert set(networks) == {"generator"}
    assert torch.equal(networks["generator"].synthesis.b4.const, pkl_generator(7)["synthesis.b4.const"])


@pytest.mark.parametrize("which,make", [("g", pkl_generator), ("d", pkl_discriminator)])
def test_pkl_missing_keys_are_named(tmp_path, nvidia, which, make):
    for key in [k for k in make(1) if not k.endswith("resample_filter")][::6]:
        tensors = {k: v for k, v in make(1).items() if k != key}
        path = nvidia.write(tmp_path / "x.pkl", nvidia.networks(**{which: tensors}))
        named = {"mapping.fc1.weight": "mapping.fc1.bias"}.get(key, key)
        with pytest.raises(ConversionError, match=rf"(missing: |no tensor '|left over: ){named}"):
            convert_checkpoint(path)


@pytest.mark.parametrize(
    "which,key,value,message",
    [
        ("g", "synthesis.b8.conv2.weight", torch.zeros(1), "left over: synthesis.b8.conv2.weight"),
        ("g", "synthesis.b8.conv0.weight", torch.zeros(12, 12, 1, 1), "shape of synthesis.b8.conv0.weight"),
        ("g", "synthesis.b8.resample_filter", torch.ones(4, 4) / 16, "synthesis.b8.resample_filter is not the filter"),
        ("g", "synthesis.b8.conv1.weight", torch.zeros(11, 12, 3, 3), "do not follow min"),
        ("g", "synthesis.input.freqs", torch.zeros(1), "StyleGAN3"),
        ("d", "b8.extra.weight", torch.zeros(1), "left over: b8.extra.weight"),
        ("d", "b4.fc.weight", torch.zeros(12, 12), "shape of b4.fc.weight"),
        ("d", "b16.skip.resample_filter", torch.ones(1, 1), "b16.skip.resample_filter is not the filter"),
    ],
)
def test_pkl_misfits_are_named(tmp_path, nvidia, which, key, value, message):
    tensors = {"g": pkl_generator, "d": pkl_discriminator}[which](1) | {key: value}
    path = nvidia.write(tmp_path / "x.pkl", nvidia.networks(**{which: tensors}))
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(path)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"g_init": {"c_dim": 10}}, "c_dim=10, but no embedding"),
        ({"d_init": {"c_dim": 2}}, "c_dim=2, but no embedding"),
        ({"g_init": {"img_channels": 1}}, "1 image channels"),
        ({"g_init": {"synthesis_kwargs": {"architecture": "orig"}}}, "architecture 'orig', but the layers of 'skip'"),
        ({"d_init": {"architecture": "skip"}}, "architecture 'skip', but the layers of 'resnet'"),
    ],
)
def test_pkl_other_kinds_are_refused(tmp_path, nvidia, change, message):
    path = nvidia.write(tmp_path / "x.pkl", nvidia.networks(attributes=False, **change))
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(path)


def test_pkl_of_another_class_or_without_generator(tmp_path, nvidia):
    data = nvidia.networks()
    with pytest.raises(ConversionError, match="class is 'Discriminator'"):
        convert_checkpoint(nvidia.write(tmp_path / "x.pkl", data | {"G_ema": data["D"]}))
    with pytest.raises(ConversionError, match="no generator"):
        convert_checkpoint(nvidia.write(tmp_path / "x.pkl", {"D": data["D"]}))
    with pytest.raises(ConversionError, match="holds a list"):
        convert_checkpoint(nvidia.write(tmp_path / "x.pkl", [data["G_ema"]]))


# --------------------------------------------------------------------------------------------------------- hostility


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker):
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system|nt.system": Call(os.system, f"touch {marker}"),
        "builtins.eval": Call(eval, touch),
        "builtins.exec": Call(exec, touch),
        "builtins.open|_?io.open": Call(open, str(marker), "w"),
        "builtins.getattr": Call(getattr, touch, "join"),
        "pickle.loads|_pickle.loads": Call(pickle.loads, pickle.dumps(Call(exec, touch))),
    }


@pytest.mark.parametrize("name", list(attacks("x")))
@pytest.mark.parametrize("where", ["top", "attribute", "storage"])
def test_pkl_that_calls_something_is_refused(tmp_path, nvidia, name, where):
    marker = tmp_path / "marker"
    evil = attacks(marker)[name]
    data = nvidia.networks()
    if where == "top":
        data["extra"] = evil
    elif where == "attribute":
        data["D"].meta["state"]["weight_gain"] = evil
    else:
        nested = io.BytesIO()
        torch.save(evil, nested, _use_new_zipfile_serialization=False)
        data["extra"] = Call(torch.storage._load_from_bytes, nested.getvalue())
    path = nvidia.write(tmp_path / "x.pkl", data)
    message = "damaged" if where == "storage" else rf"names ({name}), .*nothing was executed"
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(path)
    assert not marker.exists()
    if name.startswith("posix"):  # the attack is real: ordinary unpickling runs it
        pickle.loads(pickle.dumps(evil))
        assert marker.exists()


def test_pkl_source_code_is_never_run(tmp_path, nvidia):
    marker = tmp_path / "marker"
    source = f"import os\nos.system('touch {marker}')\nopen({str(marker)!r}, 'w').close()\n"
    networks = convert_checkpoint(nvidia.write(tmp_path / "x.pkl", nvidia.networks(source=source)))
    assert set(networks) == {"generator", "discriminator"} and not marker.exists()


@pytest.mark.parametrize(
    "stream",
    [
        # BUILD with (None, {"__call__": …}): sets attributes on whatever stands for the named class or function
        b"\x80\x03ccollections\nOrderedDict\nN}X\x03\x00\x00\x00getK\x01s\x86b.",
        b"\x80\x03ctorch._utils\n_rebuild_tensor_v2\nN}X\x05\x00\x00\x00_callK\x01s\x86b.",
        b"\x80\x03ctorch\ndevice\nN}X\x05\x00\x00\x00stateK\x01s\x86b.",
        b"\x80\x03X\x01\x00\x00\x00xQ.",  # persistent id
        b"\x80\x03ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sbc__main__\nx\n.",
    ],
    ids=["class", "function", "slots", "persistent id", "unknown name after BUILD"],
)
def test_pkl_cannot_alter_its_reader(tmp_path, nvidia, stream):
    (tmp_path / "x.pkl").write_bytes(stream)
    with pytest.raises(ConversionError):
        convert_checkpoint(tmp_path / "x.pkl")
    convert_checkpoint(nvidia.write(tmp_path / "y.pkl", nvidia.networks()))  # and the reader still works


def test_pkl_tensor_beyond_its_storage_is_refused(tmp_path, nvidia):
    for size, stride in [((100,), (1,)), ((1000, 1000), (0, 0))]:
        storage = torch.zeros(4)._typed_storage()
        data = {"G": Call(torch._utils._rebuild_tensor_v2, storage, 0, size, stride, False, collections.OrderedDict())}
        with pytest.raises(ConversionError):
            convert_checkpoint(nvidia.write(tmp_path / "x.pkl", data))


def test_pkl_with_endless_modules_is_refused(tmp_path, nvidia):
    module = nvidia.tree("Layer", {}, {}, "", {})
    for _ in range(30):  # each level holds the one below twice: 2^30 paths
        children = {"_modules": {"a": module, "b": module}}
        module = nvidia.tree("Generator", {}, {"": children}, "", {})
    with pytest.raises(ConversionError, match="10000 modules"):
        convert_checkpoint(nvidia.write(tmp_path / "x.pkl", {"G": module}))


def test_pt_that_calls_something_is_refused(tmp_path, pt):
    for i, (_, evil) in enumerate(attacks(tmp_path / "marker").items()):
        torch.save(pt | {"args": evil}, tmp_path / f"{i}.pt", _use_new_zipfile_serialization=bool(i % 2))
        with pytest.raises(ConversionError, match="holds code"):
            convert_checkpoint(tmp_path / f"{i}.pt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["pkl", "pt", "pt_legacy"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_files_say_so(tmp_path, nvidia, pt, kind, share):
    path = tmp_path / "x"
    if kind == "pkl":
        nvidia.write(path, nvidia.networks())
    else:
        torch.save(pt, path, _use_new_zipfile_serialization=kind == "pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ConversionError, match="cut short"):
        convert_checkpoint(path)


# ------------------------------------------------------------------------------------------------ recognising, saving


def test_unknown_files_are_told_what_is_recognised(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text.pkl").write_text("hello", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (tmp_path / "folder").mkdir()
    for name in ("empty", "text.pkl", "x.whl", "folder"):
        with pytest.raises(ConversionError, match=f"{name} .*recognised are .*StyleGAN2.*MobileStyleGAN"):
            convert_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert_checkpoint(tmp_path / "nowhere")


def test_networks_of_a_wheel_are_unpacked_side_by_side(tmp_path, monkeypatch):
    from fewshot_gan.convert import mobile_stylegan_ir

    names = [f"{n}.{e}" for n in ("MappingNetwork", "SynthesisNetwork") for e in ("xml", "bin")]
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        for name in names:
            archive.writestr(f"../{name}" if name == names[0] else f"pkg/models/{name}", name)
    unpacked = {}

    def convert(folder):
        unpacked.update({p.name: p.read_text(encoding="utf-8") for p in folder.iterdir()})
        return tiny_mobile()

    monkeypatch.setattr(mobile_stylegan_ir, "convert", convert)
    assert set(convert_checkpoint(tmp_path / "x.whl")) == {"generator"}
    assert unpacked == {name: name for name in names}
    with zipfile.ZipFile(tmp_path / "y.whl", "w") as archive:
        archive.writestr(names[2], "")
    with pytest.raises(ConversionError, match="0 files MappingNetwork.xml"):
        convert_checkpoint(tmp_path / "y.whl")
