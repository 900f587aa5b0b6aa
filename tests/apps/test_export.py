"""Exported files draw what the pipeline draws, in the engine that they are for; what fails leaves no file."""

import math

import numpy as np
import pytest
import torch
from helpers.networks import tiny_mobile, tiny_stylegan2
from typer.testing import CliRunner

from fewshot_gan.adapters import DomainVectorAdapter, LeFTAdapter
from fewshot_gan.apps import export
from fewshot_gan.cli import app
from fewshot_gan.models import BigGANGenerator, SNGANGenerator
from fewshot_gan.pipeline import FewShotGAN

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")


def drawn(path, **inputs):
    inputs = {name: tensor.numpy() for name, tensor in inputs.items()}
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path).run(["images"], inputs)[0]
    return openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)["images"]


def with_look(generator, kind, perturbed):
    pipe = FewShotGAN(generator)
    pipe.bank.add("look", perturbed(kind.for_model(generator), 0))
    pipe.set_adapters("look", 0.5)
    return pipe


@pytest.mark.parametrize("kind, suffix", [(LeFTAdapter, ".onnx"), (DomainVectorAdapter, ".xml")])
def test_a_file_draws_the_adapted_pictures_in_any_batch_size(kind, suffix, tmp_path, perturbed):
    make = tiny_mobile if kind is LeFTAdapter else tiny_stylegan2  # demodulated as it runs: scales stay beside weights
    pipe = with_look(make(), kind, perturbed)
    before = {name: tensor.clone() for name, tensor in pipe.generator.state_dict().items()}
    z = torch.randn(5, pipe.generator.z_dim)
    want = pipe(latents=z, truncation_psi=0.6, output_type="pt").images
    plain = pipe(latents=z, truncation_psi=0.6, adapter_names="__base__", output_type="pt").images
    assert (want - plain).abs().max() > 0.01
    error = export.export_generator(pipe, tmp_path / f"look{suffix}", truncation_psi=0.6)
    assert 0 <= error < 1e-4
    got = (drawn(tmp_path / f"look{suffix}", z=z) + 1) / 2
    np.testing.assert_allclose(got.clip(0, 1), want.numpy(), atol=1e-4)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ([".onnx"] if suffix == ".onnx" else [".bin", ".xml"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.generator.state_dict().items())
    assert pipe.active_adapters() == ["look"] and pipe.bank.fused is None
    # noise plus bias, folded into constants as large as the feature maps, made 295 MB of 40 MB at 1024 px
    in_network = sum(tensor.numel() for tensor in before.values())
    assert in_network <= 1.1 * stored_values(tmp_path / f"look{suffix}") <= 1.25 * in_network


def stored_values(path) -> int:
    """How many numbers a file holds as constants."""
    if path.suffix == ".onnx":
        constants = [list(tensor.dims) for tensor in onnx.load(path).graph.initializer]
    else:
        operations = openvino.Core().read_model(path).get_ops()
        constants = [list(x.get_output_shape(0)) for x in operations if x.get_type_name() == "Constant"]
    return sum(map(math.prod, constants))


@pytest.mark.parametrize("classes", [0, 3])
def test_bases_without_styles_and_with_classes(classes, tmp_path):
    torch.manual_seed(0)
    sizes = {"block_channels": (16, 16, 16), "attention_after": 1, "chunk_dim": 4, "shared_dim": 8}
    generator = BigGANGenerator(**sizes, num_classes=classes) if classes else SNGANGenerator(channels=8)
    inputs = {"z": torch.randn(4, generator.z_dim)} | ({"class_labels": torch.tensor([0, 2, 1, 2])} if classes else {})
    export.export_generator(FewShotGAN(generator.eval()), tmp_path / "net.onnx")
    with torch.no_grad():
        want = generator(inputs["z"], *list(inputs.values())[1:])
    np.testing.assert_allclose(drawn(tmp_path / "net.onnx", **inputs), want.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="truncation_psi=0.5: this base has no styles"):
        export.export_generator(FewShotGAN(generator), tmp_path / "net.onnx", truncation_psi=0.5)


def test_a_file_that_draws_something_else_is_not_kept(tmp_path, monkeypatch):
    files = [tmp_path / "net.bin", tmp_path / "net.xml"]
    for file in files:
        file.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(export._Drawing, "forward", lambda self, z: self.generator(z + torch.randn(())))
    with pytest.raises(ValueError, match="nothing was written"):
        export.export_generator(FewShotGAN(tiny_mobile()), tmp_path / "net.xml")
    assert sorted(tmp_path.iterdir()) == files
    assert all(file.read_text(encoding="utf-8") == "mine" for file in files)


def test_refusals(tmp_path, monkeypatch):
    pipe = FewShotGAN(tiny_mobile())
    for name in ("net.pt", "net"):
        with pytest.raises(ValueError, match=f"{name} is no file of a known format; give NAME.onnx for onnx or NAME.x"):
            export.export_generator(pipe, tmp_path / name)
    (tmp_path / "ov.bin").mkdir()
    (tmp_path / "ov.xml").write_text("older", encoding="utf-8")
    with pytest.raises(ValueError, match="ov.bin is a folder, and the file of the weights has this name"):
        export.export_generator(pipe, tmp_path / "ov.xml")
    assert (tmp_path / "ov.xml").read_text(encoding="utf-8") == "older"
    (tmp_path / "ov.xml").unlink(), (tmp_path / "ov.bin").rmdir()
    monkeypatch.setitem(export.NEEDS, "onnx", ("no_such_package",))
    with pytest.raises(ImportError, match=r"needs no_such_package: pip install 'fewshot_gan\[export\]'"):
        export.export_generator(pipe, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_command(base_folder, tmp_path):
    command = ["export", "--base", str(base_folder), "--format", "onnx", "--out"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "net.onnx")])
    assert done.exit_code == 0 and "32 px, within" in done.output
    pipe = FewShotGAN.from_pretrained(base_folder)
    z = torch.randn(2, pipe.generator.z_dim)
    want = pipe(latents=z, output_type="pt").images
    np.testing.assert_allclose(((drawn(tmp_path / "net.onnx", z=z) + 1) / 2).clip(0, 1), want.numpy(), atol=1e-4)
    wrong = CliRunner().invoke(app, [*command, str(tmp_path / "net.xml")])
    assert wrong.exit_code == 2 and not (tmp_path / "net.xml").exists()


def test_a_pipeline_exports_its_own_look(base_folder, perturbed, tmp_path):
    pipe = FewShotGAN.from_pretrained(base_folder)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator)), "a")
    other = FewShotGAN.from_pipe(pipe)
    other.set_adapters([])
    pipe.set_adapters("a")
    z = pipe.latents(2)
    export.export_generator(other, tmp_path / "base.onnx")
    drawn = torch.from_numpy(export._runner(tmp_path / "base.onnx")({"z": z.numpy()}))
    want = other(latents=z, output_type="pt", truncation_psi=other.config.truncation_psi).images
    torch.testing.assert_close(((drawn + 1) / 2).clamp(0, 1), want, rtol=0, atol=1e-3)
    pipe.fuse_adapters()
    with pytest.raises(ValueError, match="cannot export while 'a' is fused"):
        export.export_generator(other, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="cannot save the base while 'a' is fused"):
        other.save_pretrained(tmp_path / "saved")
    pipe.unfuse_adapters()
    with pytest.raises(ValueError, match="the base is in bfloat16, and exported networks compute in float32"):
        export.export_generator(FewShotGAN.from_pretrained(base_folder, dtype=torch.bfloat16), tmp_path / "x.onnx")
    shape = [1, pipe.generator.w_dim]
    pipe.load_adapter(LeFTAdapter.for_model(pipe.generator, latents_shape=shape), "me")
    with pytest.raises(ValueError, match="'me' is a person, who appears at the latents of its photos alone"):
        export.export_generator(pipe, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists() and not (tmp_path / "saved").exists()
