"""Write the card of every published repo, and the index, from the weights.

    python hub_cards/build.py                     # writes hub_cards/*/README.md, with the same bytes every time
    python hub_cards/build.py --draw              # first draws the sample grids again
    python hub_cards/build.py --evaluate sketch   # first makes the true pictures and reports of sketch

Grids and reports are stored in the repository, because they take minutes. Each names the weights it belongs to. A grid
or report of other weights is an error.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import cast

import facts
from facts import BASE, ORG, REPOS, Facts
from lint import COLUMNS, REPORTS, identity, problems

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import DomainHyperNetwork, read_adapter
from fewshot_gan.apps.evaluation import read_report
from fewshot_gan.hub import ASSETS, cards, embedded_adapters, portable_name
from fewshot_gan.ops.dispatch import BUNDLED
from fewshot_gan.utils.files import replace_file

ROOT = Path(__file__).resolve().parent
REPOSITORY = ROOT.parent
WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")
NO_CARD = shutil.ignore_patterns("README.md")
SIDE, QUALITY = 128, 82  # of a face in a grid: pixels, JPEG quality


def repos(hypernetwork: str | Path | None = None) -> dict[str, Facts]:
    """Return name → facts of the repos that can be published.

    Args:
        hypernetwork: folder of a trained hypernetwork; None: no repo for one.


    Raises:
        ValueError: an embedded adapter has no facts, or facts have no embedded adapter.
    """
    adapters = {name for name, about in REPOS.items() if about.kind == "adapter"}
    if odd := adapters.symmetric_difference(embedded_adapters(BASE)):
        raise ValueError(f"{', '.join(sorted(odd))}: an adapter of that name is missing in facts.py or in the package")
    return REPOS | ({"hypernetwork": facts.HYPERNETWORK} if hypernetwork else {})


def stage(
    name: str, folder: Path, kept: Path = ROOT, hypernetwork: str | Path | None = None, card: bool = True
) -> Path:
    """Copy every file of a published repo into `folder`: the weights, and the files stored in `kept`.

    Args:
        name: name of the repo.
        folder: target, made if needed.
        kept: folder of cards, grids and reports: `hub_cards`, or the output of `build`.
        hypernetwork: folder of a trained hypernetwork, for its repo.
        card: whether to copy the stored card too.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = repos(hypernetwork)[name].kind
    if kind == "base":
        shutil.copytree(ASSETS / "bases" / name, folder, ignore=NO_CARD, dirs_exist_ok=True)
    elif kind == "adapter":
        for file in WEIGHTS:
            shutil.copyfile(embedded_adapters(BASE)[name] / file, folder / file)
    elif kind == "collection":
        for look in embedded_adapters(BASE):
            stage(look, folder / look, kept if (kept / look).is_dir() else ROOT, card=False)
            shutil.rmtree(folder / look / "images")
    elif kind == "kernels":
        _stage_kernels(folder)
    elif kind == "hypernetwork" and hypernetwork is not None:
        _stage_hypernetwork(Path(hypernetwork), folder)
    if (kept / name).is_dir():
        shutil.copytree(kept / name, folder, ignore=None if card else NO_CARD, dirs_exist_ok=True)
    return folder


def _stage_hypernetwork(source: Path, folder: Path) -> None:
    """Copy the weights, and the config without paths of this machine."""
    config = cast(dict, DomainHyperNetwork.load_config(source))  # a tuple only with return_unused_kwargs
    if (base := cards.portable_base(config)) != BASE:
        raise ValueError(f"{source} is a hypernetwork of {base}, not of {BASE}; publish it with its push_to_hub")
    if not config.get("training"):
        raise ValueError(f"{source} holds no record of a training; only trained hypernetworks are published")
    config |= {"base_model_name_or_path": base, "encoder": portable_name(config.get("encoder"))}
    config = {key: value for key, value in config.items() if key != "_name_or_path"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in source.glob("*.safetensors"):
        shutil.copyfile(path, folder / path.name)


def _stage_kernels(folder: Path) -> None:
    """Lay out the package as `kernels.get_kernel` expects it: sources, and a build per backend of `build.toml`."""
    package = BUNDLED.parents[1]
    general = tomllib.loads((package / "build.toml").read_text(encoding="utf-8"))["general"]
    for file in ("build.toml", "README.md"):  # the card is made of this one
        shutil.copyfile(package / file, folder / file)
    code = [path for path in sorted(BUNDLED.iterdir()) if path.is_file()]
    for target in ("torch-ext/stylegan_ops", *(f"build/torch-{backend}" for backend in general["backends"])):
        (folder / target).mkdir(parents=True)
        for path in code:
            shutil.copyfile(path, folder / target / path.name)
    for backend in general["backends"]:
        path = folder / f"build/torch-{backend}/metadata.json"
        own = {"id": f"{BUNDLED.name}_v{general['version']}_{backend}", "backend": {"type": backend}}
        metadata = json.loads(path.read_text(encoding="utf-8")) | own
        path.write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


def build(
    out: Path = ROOT, org: str = ORG, hypernetwork: str | Path | None = None, names: Iterable[str] | None = None
) -> list[str]:
    """Write the cards and the index. If a stored grid or report belongs to other weights, write nothing.

    Args:
        out: folder of the cards; stored grids and reports are copied there.
        org: owner of the repos.
        hypernetwork: folder of a trained hypernetwork; None: no repo for one.
        names: repos to write the cards of; None: all.

    Returns:
        Names of the repos whose cards were written.

    Raises:
        ValueError: the lint finds a problem in a card.
    """
    facts_of, made = repos(hypernetwork), {}
    names = list(facts_of if names is None else names)
    with tempfile.TemporaryDirectory() as temp:
        for name in names:
            about, folder, kept = facts_of[name], Path(temp, name), ROOT / name
            for path in (p for p in kept.rglob("*") if p.is_file() and p.name != "README.md"):
                made[f"{name}/{path.relative_to(kept).as_posix()}"] = path.read_bytes()
            stage(name, folder, hypernetwork=hypernetwork, card=False)
            try:
                made[f"{name}/README.md"] = write_card(name, about, folder, org).read_bytes()
            except ValueError as error:
                raise ValueError(
                    f"the card of {name} was not written: {error}; python hub_cards/build.py --evaluate {name} makes "
                    "its reports again"
                ) from error
            if sentences := problems(name, about, folder):
                raise ValueError(f"the card of {name} was not written: {'; '.join(sentences)}")
    made["README.md"] = index(facts_of, org).encode()
    for path, content in made.items():
        if not (out / path).is_file() or (out / path).read_bytes() != content:
            replace_file(out / path, lambda temp, content=content: temp.write_bytes(content))
    return names


def write_card(name: str, about: Facts, folder: Path, org: str) -> Path:
    """Write `README.md` into the staged `folder` of a repo."""
    repo_id = f"{org}/{name}"
    listed = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / "README.md"]
    sizes = {p.relative_to(folder).as_posix(): (p.stat().st_size, sha256(p.read_bytes()).hexdigest()) for p in listed}
    grid = folder / "images" / "grid.jpg"
    grid = grid if grid.is_file() else None
    report = folder / REPORTS[0] if about.truth and about.kind in COLUMNS else None
    looks = list(embedded_adapters(BASE))
    details = cards.Details(
        files=sizes,
        lineage=about.lineage,
        numbers=tuple(numbers(name, about, folder)),
        limits=about.limits,
        citation=tuple(facts.PAPERS[key] for key in about.papers),
        base_repo=f"{org}/{BASE}" if about.kind in ("adapter", "collection", "hypernetwork") else None,
        caption=about.caption and about.caption.format(looks="; ".join(looks)),
        needs=facts.NEEDS,
        tags=about.tags,
    )
    if about.kind == "base":
        pipe = FewShotGAN.from_pretrained(folder)
        return cards.write_base_card(pipe, folder, name, grid or False, repo_id, details, report)
    if about.kind == "adapter":
        adapter = read_adapter(folder)
        return cards.write_adapter_card(adapter, folder, name, grid, repo_id, details=details, report=report)
    if about.kind == "collection":
        return cards.write_collection_card(folder, name, repo_id, grid, details)
    if about.kind == "kernels":
        return cards.write_kernels_card(folder, name, repo_id, details)
    network = DomainHyperNetwork.from_pretrained(folder)
    return cards.write_hypernetwork_card(network, folder, name, repo_id, details)


def numbers(name: str, about: Facts, folder: Path) -> list[str]:
    """Return the lines of the section on quality: tables, explanations, and the commands that make the reports."""
    lines = []
    if about.kind == "collection":
        lines = ["| look | Fréchet distance, base → adapted | KID, base → adapted |", "|---|---|---|"]
        for look in embedded_adapters(BASE):
            if not facts.REPOS[look].truth:
                continue
            after, before = (read_report(folder / look / file)["results"] for file in REPORTS)
            frechet, kid = (f"{before[key]:.3g} → {after[key]:.3g}" for key in ("frechet", "kid"))
            lines += [f"| {look} | {frechet} | {kid} |"]
        lines += [
            "",
            "Distances are to the true look, which differs from row to row, so rows cannot be compared. The reports in "
            "the subfolders hold protocol and hashes; the cards of the looks hold the commands.",
            "",
        ]
    elif about.truth:
        columns = {title: read_report(folder / file) for title, file in COLUMNS[about.kind].items()}
        data = folder_of(about.truth)
        again = [f"fewshot-gan evaluate {data} --protocol {file}" for file in COLUMNS[about.kind].values()]
        options = f"{'--adapter ' + name + ' ' if about.kind == 'adapter' else ''}--num-images {facts.NUM} --seed "
        options += f"{facts.DRAWN_SEED} --features {facts.JUDGE}"
        lines = [
            *cards.report_lines(columns),
            f"The true pictures are {about.true_is}. `{facts.JUDGE}` took no part in any training. In the repository "
            "of fewshot_gan, installed with `'.[train,bench,convert]'`, the commands below make the true pictures, "
            "then compute the reports again and tell whether they are equal:",
            "",
            "```bash",
            *about.truth,
            *again,
            "```",
            "",
        ]
        if any("OMP_NUM_THREADS" in command for command in about.truth):
            lines += [
                "Another processor or number of threads may round a pixel of the true pictures to the next grey level. "
                f"Then the command reports that `data_sha256` differs, and `fewshot-gan evaluate {data} {options}` "
                "gives the numbers on that machine.",
                "",
            ]
    lines += [line for sentence in about.numbers for line in (sentence, "")]
    if about.results:
        lines += [f"More numbers: `training/RESULTS.md` in the repository of fewshot_gan, “{about.results}”."]
    return lines[:-1] if lines and not lines[-1] else lines


def folder_of(truth) -> str:
    """Return the folder into which the last of the commands puts the true pictures."""
    words = shlex.split(truth[-1])
    return words[words.index("--out") + 1]


def index(facts_of: dict[str, Facts], org: str) -> str:
    """Return the text of hub_cards/README.md."""
    what = {
        "adapter": f"a look for `{BASE}`",
        "collection": "all looks in one repo",
        "kernels": "Triton kernels of the operations, a package of the kernels hub",
        "hypernetwork": "from one picture to a look",
    }
    return "\n".join(
        [
            "# What is published",
            "",
            "One folder per repo with its card, sample grid and reports. The weights are those of the package and are "
            "not stored twice; `publish.py` adds them.",
            "",
            "| repo | what | card |",
            "|---|---|---|",
            *(
                f"| `{org}/{name}` | {about.what or what[about.kind]} | [{name}]({name}/README.md) |"
                for name, about in facts_of.items()
            ),
            "",
            "```bash",
            "python hub_cards/build.py                        # writes every card; same weights, same bytes",
            "python hub_cards/build.py --draw --evaluate      # also grids and reports: an hour on two cores",
            "python hub_cards/lint.py                         # lists problems of the cards",
            "python hub_cards/publish.py --org NAME           # lists what would be uploaded",
            "python hub_cards/publish.py --org NAME --push    # uploads it; `hf auth login` first",
            "```",
            "",
            "Everything in a card is generated: sizes, hashes, layers and training from the weights, numbers from the "
            "reports, and lineage, limits and citations from `facts.py`. Grids and reports are stored here because "
            "they take minutes. Each names the weights it belongs to, and `build.py` refuses those of other weights. "
            f"The cards here name `{org}` as the owner; `publish.py --org NAME` writes them for another owner.",
            "",
            "No trained hypernetwork is included, so it has no card here; `--hypernetwork FOLDER` of `build.py` and "
            "`publish.py` takes one. Creating a repo of kernels needs the Hub's permission. Publishing was tested "
            "against a local server that implements the Hub's API, not against the Hub.",
            "",
        ]
    )


# --------------------------------------------------------------------------------------------------- grids and reports


def draw(name: str, about: Facts) -> None:
    """Draw the sample grid of a repo; the comment of the JPEG names the weights.

    Args:
        name: name of the repo.
        about: its facts.
    """
    from PIL import Image

    from fewshot_gan.data.images import to_bytes
    from fewshot_gan.training.domains import apply_filter

    if about.kind in ("kernels", "hypernetwork"):
        return
    pipe = FewShotGAN.from_pretrained(name if about.kind == "base" else BASE)
    is_large = pipe.generator.resolution > 256  # fewer and larger pictures then
    count = {"base": 8 if is_large else 16, "collection": 6}.get(about.kind, 8)
    options = {"num_images": count, "seed": 0, "batch_size": 1 if is_large else 4}
    rows = list(pipe(**options).images)
    if about.filter:
        shown = apply_filter(pipe(**options, output_type="pt").images * 2 - 1, about.filter)
        rows += [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in to_bytes(shown)]
    looks = {"adapter": [name], "collection": list(embedded_adapters(BASE))}.get(about.kind, [])
    for look in looks:
        rows += pipe.load_adapter(look)(**options, adapter_names=look).images
    columns = count // 2 if about.kind == "base" else count
    side = 2 * SIDE if is_large else SIDE
    grid = cards.make_grid([image.resize((side, side), Image.Resampling.LANCZOS) for image in rows], columns)
    with tempfile.TemporaryDirectory() as temp:
        weights = identity(name, about, stage(name, Path(temp, name)))
    buffer = BytesIO()
    grid.save(buffer, "JPEG", quality=QUALITY, optimize=True, comment=json.dumps(weights, sort_keys=True))
    replace_file(ROOT / name / "images" / "grid.jpg", lambda temp: temp.write_bytes(buffer.getvalue()))


def evaluate(name: str, about: Facts, work_dir: Path) -> None:
    """Run the commands of the card: make missing true pictures, then the reports, in `work_dir`."""
    if not about.truth:
        return
    for command in about.truth:
        words = shlex.split(command)
        made = facts.WHEEL if words[0] == "pip" else words[-1] if "convert" in words else folder_of([command])
        if not (work_dir / made).exists():
            _run(words, work_dir)
    options = ["--num-images", str(facts.NUM), "--seed", str(facts.DRAWN_SEED), "--features", facts.JUDGE]
    looks = [["--adapter", name], []] if about.kind == "adapter" else [[]]
    for look, file in zip(looks, REPORTS, strict=False):
        out = ["--out", str(ROOT / name / file), "--cache-dir", "true-statistics"]
        _run(["fewshot-gan", "evaluate", folder_of(about.truth), *look, *options, *out], work_dir)


def _run(words: list[str], work_dir: Path) -> None:
    """Run a command of this repository in another folder."""
    own = dict(word.split("=", 1) for word in words if word.startswith("OMP_NUM_THREADS="))
    words = words[len(own) :]
    start = {
        "python": [sys.executable],
        "pip": [sys.executable, "-m", "pip"],
        "fewshot-gan": [sys.executable, "-m", "fewshot_gan.cli"],
    }[words[0]]
    words = [str(REPOSITORY / word) if word.startswith("training/") else word for word in words[1:]]
    path = os.pathsep.join(filter(None, (str(REPOSITORY / "src"), os.environ.get("PYTHONPATH"))))
    subprocess.run([*start, *words], cwd=work_dir, env={**os.environ, **own, "PYTHONPATH": path}, check=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT, help="folder of the cards (default: hub_cards)")
    parser.add_argument("--org", default=ORG, help=f"owner of the repos (default: {ORG})")
    parser.add_argument("--hypernetwork", type=Path, help="folder of a trained hypernetwork, to write its card too")
    parser.add_argument("--draw", nargs="*", metavar="REPO", help="draw the sample grids of these repos, or of all")
    parser.add_argument("--evaluate", nargs="*", metavar="REPO", help="make the reports of these repos, or of all")
    parser.add_argument("--work_dir", type=Path, default=Path("."), help="true pictures are made in its data/")
    args = parser.parse_args(argv)
    try:
        facts_of = repos(args.hypernetwork)
        for option in (args.draw or []) + (args.evaluate or []):
            if option not in facts_of:
                parser.error(f"there is no repo {option!r}; known: {', '.join(facts_of)}")
        for name, about in facts_of.items():
            if args.draw is not None and (not args.draw or name in args.draw):
                draw(name, about)
            if args.evaluate is not None and (not args.evaluate or name in args.evaluate):
                evaluate(name, about, args.work_dir)
        names = build(args.out, args.org, args.hypernetwork)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{args.out}  ({len(names)} cards)")


if __name__ == "__main__":
    main()
