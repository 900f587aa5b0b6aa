"""Training scripts around the bank: looks learned in turn are not forgotten, and the benchmark of adapters reports."""

import json

import pytest
from helpers.run_pages import check_run, read_page
from PIL import Image


@pytest.fixture
def lifelong(script, features, monkeypatch):
    """The script, with tiny features in place of the real ones."""
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda **kwargs: features)
    return script("lifelong")


def test_looks_learned_in_turn(lifelong, base_folder, tmp_path):
    command = [f"--base={base_folder}", f"--output_dir={tmp_path}", "--num_faces=3", "--max_train_steps=2"]
    command += ["--train_batch_size=2", "--report_to=none", "--num_threads=1"]
    lifelong.main([*command, "--styles", "filter:sepia", "filter:ink"])
    first = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert first["looks"] == ["sepia", "ink"] and first["forgotten"] == [] and first["now"] == first["after_learning"]
    assert len(set(first["now"].values())) == 3  # base, sepia, ink
    assert first["bytes"]["ink"] == sum((tmp_path / "ink" / f).stat().st_size for f in FILES)
    assert all(check_run(tmp_path / look, 2) for look in first["looks"])
    page = read_page(tmp_path)
    assert page.state == "finished" and "step 4 of 4" in page.text and first["base_fingerprint"] in page.text
    assert page.links == ["sepia/report.html", "ink/report.html"] and "none: every bit" in page.text
    assert all(list(series) == ["sepia", "ink"] for series in page.curves.values())
    assert [x for x in page.images if "step 2" in x] == [f"Sample pictures of {k} at step 2" for k in first["looks"]]
    assert Image.open(tmp_path / "sheet.png").size == (3 * 128, 3 * 128)

    lifelong.main([*command, "--styles", "filter:sepia", "filter:ink", "filter:poster"])  # goes on
    second = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert second["looks"] == ["sepia", "ink", "poster"] and second["forgotten"] == []
    assert {look: second["now"][look] for look in first["now"]} == first["now"]

    damaged = {**second, "after_learning": {**second["after_learning"], "ink": "0" * 64}}
    (tmp_path / "report.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(SystemExit, match="forgotten: ink"):
        lifelong.main([*command, "--styles", "filter:sepia", "filter:ink", "filter:poster"])
    page = read_page(tmp_path)
    assert page.state == "stopped" and "forgotten: ink" in page.text


def test_other_threads_forget_nothing(lifelong, base_folder, tmp_path, capsys):
    """The bits of pictures depend on the number of threads; those of the adapters tell whether a look has changed."""
    command = [f"--base={base_folder}", f"--output_dir={tmp_path}", "--num_faces=1", "--max_train_steps=1"]
    command += ["--train_batch_size=2", "--report_to=none", "--sample_steps=0", "--styles", "filter:sepia"]
    lifelong.main([*command, "--num_threads=1"])
    report = tmp_path / "report.json"
    first = json.loads(report.read_text(encoding="utf-8"))
    assert first["drawn_with"]["threads"] == 1 and set(first["drawn_with"]) == {"threads", "torch", "device"}
    otherwise = {**first, "after_learning": {look: "0" * 64 for look in first["after_learning"]}}  # rounded
    report.write_text(json.dumps(otherwise), encoding="utf-8")
    capsys.readouterr()
    lifelong.main([*command, "--num_threads=2"])
    second = json.loads(report.read_text(encoding="utf-8"))
    assert second["forgotten"] == [] and second["drawn_with"]["threads"] == 2
    assert second["learned"] == first["learned"] and second["after_learning"] == second["now"]
    assert "bits of pictures are compared from now on" in capsys.readouterr().out

    changed = {**second, "learned": {**second["learned"], "sepia": "0" * 16}}
    report.write_text(json.dumps(changed), encoding="utf-8")
    for threads in (1, 1):  # others, and then the same
        with pytest.raises(SystemExit, match="forgotten: sepia$"):
            lifelong.main([*command, f"--num_threads={threads}"])
    older = {name: value for name, value in first.items() if name not in ("drawn_with", "learned")}
    report.write_text(json.dumps(older), encoding="utf-8")
    lifelong.main([*command, "--num_threads=1"])  # a report of an older version is taken as one of this machine


FILES = ("adapter_config.json", "adapter_model.safetensors")


def test_lifelong_refuses(lifelong, base_folder, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        lifelong.main([f"--output_dir={tmp_path}", "--styles", "filter:ink", "filter:ink"])
    assert "two styles have one name: ink, ink" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="error: WORLD_SIZE=2, but lifelong.py runs in 1 process: start it with"):
        lifelong.main([f"--output_dir={tmp_path}", "--styles", "filter:ink"])


def test_benchmark_of_adapters(script, base_folder, tmp_path):
    report = script("benchmark_adapters").main([f"--base={base_folder}", f"--out={tmp_path / 'r.json'}", "--repeats=2"])
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    sizes = {row["kind"]: row for row in report["sizes"]}
    assert len(sizes) == 7 and all(row["payload"] < row["bytes"] for row in report["sizes"])
    ticket = sizes["ticket, mask"]  # a bit per weight, each layer filled up to a byte
    assert 0 <= ticket["payload"] - ticket["masked_weights"] / 8 < ticket["layers"]
    assert sizes["domain vector"]["bytes"] < sizes["LeFT, rank 1"]["bytes"] < sizes["full"]["bytes"]
    assert all(row["ratio"] > 0 for row in report["timings"].values())
