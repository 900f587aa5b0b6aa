"""What the operations run on: nothing unasked, nothing at import, plain torch whenever something fails."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from helpers.hub_server import connected
from helpers.networks import tiny_mobile, tiny_stylegan2

from fewshot_gan import FewShotGAN, ops
from fewshot_gan.ops import dispatch

kernels = pytest.importorskip("kernels")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels: test_kernels.py, -m gpu")
REPO = dispatch.KERNEL_REPO
Z = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """Nobody has chosen, the environment was not read, and on this CPU the interpreter of Triton is on."""
    monkeypatch.setattr(dispatch, "_selection", None)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def package():
    return dispatch.kernels_for(torch.zeros(1))


def built(folder, backend="cpu", version=1):
    """The package as a published repo has it: path → content."""
    files = {path.name: path.read_bytes() for path in dispatch.BUNDLED.iterdir() if path.is_file()}
    facts = json.loads(files["metadata.json"]) | {"id": f"stylegan_ops_{folder}", "version": version}
    files["metadata.json"] = json.dumps(facts | {"backend": {"type": backend}}).encode()
    return {f"build/torch-{backend}/{name}": content for name, content in files.items()}


def test_importing_and_choosing_load_neither_triton_nor_kernels():
    code = """
import sys, fewshot_gan, torch
from fewshot_gan import ops
for choice in ("local", "hub", "off", None):
    ops.set_kernels(choice)
    ops.upfirdn2d(torch.zeros(1, 1, 8, 8), ops.setup_filter([1, 3, 3, 1]), then=ops.Act(activation="lrelu"))
print(sorted({"triton", "kernels"} & sys.modules.keys()))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", dispatch.VARIABLE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_cpu_stays_with_plain_torch_unless_told():
    assert package() is None
    ops.set_kernels("off")
    assert package() is None
    ops.set_kernels("local")
    assert package().bias_act is not None
    ops.set_kernels(None)
    assert package() is None


def test_without_the_interpreter_a_cpu_never_uses_kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    ops.set_kernels("local")
    assert package() is None


@pytest.mark.parametrize("value, used", [("local", True), ("off", False), ("", False)])
def test_the_environment_chooses(monkeypatch, value, used):
    monkeypatch.setenv(dispatch.VARIABLE, value)
    assert (package() is not None) is used


def test_unknown_choices_are_refused(monkeypatch):
    sentence = (
        r"unknown kernels 'fast' \(from set_kernels or FEWSHOT_GAN_KERNELS\); known: hub, local, off; 'off' is plain"
    )
    with pytest.raises(ValueError, match=sentence):
        ops.set_kernels("fast")
    with pytest.raises(ValueError, match="version='new': give the number of a published version"):
        ops.set_kernels("hub", version="new")
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    with pytest.raises(ValueError, match=sentence):
        ops.bias_act(torch.zeros(1, 1, 1, 1))


def test_the_pipeline_passes_it_on():
    FewShotGAN(tiny_mobile()).set_kernels("hub", version=3, trust_remote_code=["me/ops"], repo_id="me/ops")
    chosen = dispatch._selection
    assert (chosen.name, chosen.version, chosen.repo_id, chosen.trust_remote_code) == ("hub", 3, "me/ops", ["me/ops"])
    with pytest.raises(ValueError, match="known: hub, local, off"):
        FewShotGAN(tiny_mobile()).set_kernels("fast")


@pytest.mark.parametrize("missing", [["triton"], ["kernels"], ["triton", "kernels"]])
def test_without_triton_or_kernels_plain_torch_draws(monkeypatch, caplog, missing):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None if name in missing else name)
    model = tiny_mobile()
    want = model(Z)
    ops.set_kernels("local")
    assert torch.equal(model(Z), want)
    said = f"plain torch: {' and '.join(missing)} not installed; pip install fewshot_gan[kernels]"
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, said)]


def test_a_package_that_cannot_be_loaded_gives_way_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(dispatch, "BUNDLED", tmp_path)
    ops.set_kernels("local")
    for _ in range(2):
        assert package() is None
    (record,) = caplog.records
    assert record.getMessage().startswith("plain torch: the kernels 'local' cannot be loaded: ")


def test_a_package_without_an_operation_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "OPS", (*dispatch.OPS, "fly"))
    ops.set_kernels("local")
    assert package() is None and "it has no fly" in caplog.text


def test_the_choice_is_logged_once(caplog):
    caplog.set_level(logging.INFO, dispatch.logger.name)
    ops.set_kernels("local")
    package(), package()
    assert [r.getMessage() for r in caplog.records] == ["operations run on the bundled stylegan-ops"]


def test_compiled_and_traced_code_sees_plain_torch(monkeypatch):
    ops.set_kernels("local")
    assert package() is not None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert package() is None
    monkeypatch.undo()
    traced = torch.jit.trace(lambda x: ops.bias_act(x, activation="relu"), torch.randn(1, 2, 3, 3))
    assert "PythonOp" not in str(traced.graph)


def test_float64_stays_with_plain_torch():
    ops.set_kernels("local")
    assert dispatch.kernels_for(torch.zeros(1, dtype=torch.float64)) is None


def test_the_package_is_one_for_the_kernels_hub():
    from kernels._rust import Build, Metadata

    root = dispatch.BUNDLED.parents[1]
    assert [str(backend) for backend in Build.open(root).general.backends] == ["cpu", "cuda"]
    metadata = Metadata.read_from_file(dispatch.BUNDLED / "metadata.json")
    assert (str(metadata.name), metadata.version, metadata.license) == ("stylegan-ops", 1, "Apache-2.0")
    assert metadata.name.python_name == dispatch.BUNDLED.name and f'repo-id = "{REPO}"' in (
        root / "build.toml"
    ).read_text(encoding="utf-8")
    module = kernels.get_local_kernel(dispatch.BUNDLED)
    assert set(dispatch.OPS) < set(module.__all__)
    for path in dispatch.BUNDLED.glob("*.py"):  # published alone, it knows nothing of fewshot_gan
        assert "fewshot_gan" not in path.read_text(encoding="utf-8")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("kernels.resolver.CACHE_DIR", str(tmp_path / "hub"))
    with connected(monkeypatch, tmp_path) as server:
        yield server


def test_the_hub_is_asked_for_the_pinned_version(hub):
    hub.commit(REPO, built("hub_one"), branch="v1")
    hub.commit(REPO, built("hub_two", version=2), branch="v2")
    ops.set_kernels("hub", version=1, trust_remote_code=[REPO])
    assert hub.log == []  # not before it is needed
    assert package().__name__ == "stylegan_ops_hub_one"
    x = torch.randn(1, 2, 3, 3)
    assert torch.allclose(ops.bias_act(x, activation="lrelu"), torch.nn.functional.leaky_relu(x, 0.2) * 2**0.5)
    assert package().failures == {}


def test_an_untrusted_publisher_is_not_run(hub, caplog):
    hub.commit(REPO, built("hub_untrusted"), branch="v1")
    ops.set_kernels("hub")
    assert package() is None and "trust_remote_code" in caplog.text
    assert hub.fetched() == []


def test_a_version_that_is_not_there_leaves_plain_torch(hub, caplog):
    hub.commit(REPO, built("hub_other"), branch="v1")
    ops.set_kernels("hub", version=7, trust_remote_code=True)
    assert package() is None and "Version 7 not found" in caplog.text


@pytest.mark.parametrize("make", [tiny_mobile, tiny_stylegan2])
def test_kernelized_networks_draw_the_same(make):
    from kernels import Mode, kernelize, use_kernel_mapping

    model = make()
    want, before = model(Z[:1]), {name: type(m).forward for name, m in model.named_modules()}
    with use_kernel_mapping(ops.kernel_mapping()):
        kernelize(model, mode=Mode.INFERENCE, device="cpu")
    replaced = {type(m).__name__ for n, m in model.named_modules() if m.forward.__func__ is not before[n]}
    assert replaced == ({"BiasAct", "InverseHaar"} if make is tiny_mobile else {"BiasAct", "Upsample2d"})
    torch.testing.assert_close(model(Z[:1]), want, rtol=0, atol=1e-5)  # other order of additions, ten layers deep


def test_without_a_mapping_kernelize_changes_nothing():
    from kernels import Mode, kernelize

    model = tiny_mobile()
    want = model(Z)
    assert torch.equal(kernelize(model, mode=Mode.INFERENCE, device="cpu")(Z), want)


def test_kernels_of_the_hub_can_be_mapped():
    ops.set_kernels("hub", version=2, trust_remote_code=[REPO])
    repository = ops.kernel_mapping()["StyleGANInverseHaar"]["cuda"]
    assert (repository.layer_name, repository._repo_id, repository._version) == ("InverseHaar", REPO, 2)
