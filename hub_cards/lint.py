"""List the problems of the cards: fields, sections, hashes, links, outdated numbers and pictures.

    python hub_cards/lint.py [FOLDER]      # hub_cards, or the output of build.py --out

Each repo is checked as it would be published: the card beside its weights, grid and reports.
"""

import json
import re
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import cast

import yaml
from facts import BASE, REPOS, Facts
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from PIL import Image

from fewshot_gan.adapters import fingerprint, read_adapter
from fewshot_gan.hub import adapter_folders
from fewshot_gan.hub.reports import eval_results, read_report, report_lines
from fewshot_gan.models import MobileStyleGANGenerator
from fewshot_gan.utils.hashing import hash_tensors

REPORTS = ("report.json", "report_base.json")  # on the weights; for adapters also on the base alone
COLUMNS = {  # kind → columns of the table on its card: heading → report
    "base": {"this base": REPORTS[0]},
    "adapter": {"this adapter": REPORTS[0], "the base without it": REPORTS[1]},
}
TASK = "unconditional-image-generation"
FIELDS = {  # kind → fields it needs in addition to license, library_name and tags
    "base": ("pipeline_tag",),
    "adapter": ("pipeline_tag", "base_model", "base_model_relation"),
    "collection": ("pipeline_tag", "base_model", "base_model_relation"),
    "hypernetwork": ("pipeline_tag", "base_model", "base_model_relation"),
    "kernels": (),
}
KNOWN = {"license", "license_name", "license_link", "library_name", "tags", "pipeline_tag", "widget", "datasets"}
KNOWN |= {"base_model", "base_model_relation", "model-index"}
SECTIONS = ("Use", "Licence", "Lineage", "Numbers", "Limits and misuse", "Files", "Citation")
UNFINISHED = r"\b(todo|fixme|tbd|xxx|placeholder|lorem ipsum|more information needed|your[-_ ]?(?:org|user)name)\b"
LOCAL = r"(?<![\w.:/])/(?:home|root|tmp|var|mnt|opt|srv|work|workspace|content|Users|private)/|\b[A-Z]:\\|file://"
LINK = r"!?\[[^\]]*\]\(([^)\s]+)(?:\s[^)]*)?\)"
READABLE = (".md", ".json", ".toml", ".py")
ROW = re.compile(r"^\| (\S+) \| ([\d,]+) \| `([0-9a-f]{64})` \|$", re.M)


def problems(name: str, about: Facts, folder: Path) -> list[str]:
    """Return the problems of a staged repo (see `build.stage`), one sentence each; empty: it can be published."""
    path = folder / "README.md"
    if not path.is_file():
        return ["there is no card: run python hub_cards/build.py"]
    content = path.read_text(encoding="utf-8")
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file() and p != path}
    try:
        card = ModelCard(content)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        return [f"the front matter is not valid: {error}"]
    data = card.data.to_dict()
    sentences = _front_matter(about, data) + _text(about, card.text, data, files) + _hashes(card.text, files)
    for file, source in ({"README.md": path} | files).items():
        if source.suffix in READABLE and (hit := re.search(LOCAL, source.read_text(encoding="utf-8"))):
            sentences.append(f"{file} names a folder on somebody's machine: {hit[0]}")
    if about.kind in ("kernels", "hypernetwork"):
        return sentences
    try:
        weights = identity(name, about, folder)
    except (ValueError, OSError) as error:
        return [*sentences, f"the weights cannot be read: {error}"]
    return sentences + _numbers(name, about, folder, weights, card) + _grid(name, folder, weights)


def _front_matter(about: Facts, data: dict) -> list[str]:
    wanted = ["license", "library_name", "tags", *FIELDS[about.kind]]
    wanted += ["license_name", "license_link"] if data.get("license") == "other" else []
    sentences = [f"the front matter has no {key}" for key in wanted if not data.get(key)]
    sentences += [f"the front matter has {key}, which the Hub does not know" for key in data.keys() - KNOWN]
    if data.get("pipeline_tag", TASK) != TASK:
        sentences.append(f"pipeline_tag is {data['pipeline_tag']}, not {TASK}")
    if about.kind != "kernels" and data.get("license") != "other":
        sentences.append(
            f"license is {data.get('license')}: weights that descend from StyleGAN2-FFHQ need license: other"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", data.get("license_name", "none")):
        sentences.append(f"license_name {data['license_name']!r} is not a lower-case id")
    if not re.match("https://", data.get("license_link", "https://")):
        sentences.append(f"license_link {data['license_link']!r} is not an https address")
    if not all(isinstance(tag, str) and tag for tag in data.get("tags") or []):
        sentences.append("tags has an entry that is empty or not a text")
    if data.get("base_model_relation", "adapter") != "adapter":
        sentences.append(f"base_model_relation is {data['base_model_relation']}, not adapter")
    bases = data.get("base_model") or []
    for repo in [bases] if isinstance(bases, str) else bases:
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            sentences.append(f"base_model is not a repo id: {error}")
        if "/" not in str(repo):
            sentences.append(f"base_model {repo} names no owner")
    return sentences


def _text(about: Facts, text: str, data: dict, files: dict[str, Path]) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    titles = re.findall(r"^## (.+)$", prose, re.M)
    sentences = [f"there is no section {title!r}" for title in SECTIONS if title not in titles]
    sentences += [f"section {title!r} occurs twice" for title in {t for t in titles if titles.count(t) > 1}]
    sentences += [f"unfinished: {hit}" for hit in re.findall(UNFINISHED, text, re.I)]
    if about.kind != "kernels" and "non-commercial" not in prose.lower():
        sentences.append("the card does not say that the weights are non-commercial")
    places = {path[:i] for path in files for i, letter in enumerate(path) if letter == "/"} | set(files)
    links = re.findall(LINK, prose) + [shown["output"]["url"] for shown in data.get("widget") or []]
    for link in links:
        if not re.match(r"https?://|#", link) and link.split("#")[0].rstrip("/") not in places:
            sentences.append(f"the link {link} leads to nothing in the published repo")
    return sentences


def _hashes(text: str, files: dict[str, Path]) -> list[str]:
    """Compare the table of files with the files."""
    listed = {name: (int(size.replace(",", "")), mark) for name, size, mark in ROW.findall(text)}
    sentences = [f"{name} would be published, and the card does not list it" for name in files.keys() - listed.keys()]
    for name, facts in listed.items():
        if name not in files:
            sentences.append(f"the card lists {name}, which is not there")
        elif (files[name].stat().st_size, sha256(files[name].read_bytes()).hexdigest()) != facts:
            sentences.append(f"{name} is not the file that the card lists: other bytes or another SHA-256")
    return sentences


def identity(name: str, about: Facts, folder: Path) -> dict:
    """Return the identity of the staged weights, as in `network` of a report. Reports and grids must match it."""
    if about.kind == "base":
        loaded = MobileStyleGANGenerator.from_pretrained(folder / "generator", low_cpu_mem_usage=False)
        generator = cast(MobileStyleGANGenerator, loaded)  # a tuple only with output_loading_info
        return {"base": name, "base_fingerprint": fingerprint(generator), "adapters": {}}
    looks = {name: folder} if about.kind == "adapter" else adapter_folders(folder)
    read = {look: read_adapter(path) for look, path in looks.items()}
    return {
        "base": BASE,
        "base_fingerprint": "; ".join(sorted({adapter.config["base_fingerprint"] for adapter in read.values()})),
        "adapters": {look: hash_tensors(adapter.state_dict(), adapter.config) for look, adapter in read.items()},
    }


def _numbers(name: str, about: Facts, folder: Path, weights: dict, card: ModelCard) -> list[str]:
    """Compare the reports with the weights, and the numbers on the card with the reports."""
    parts = [(folder, weights["adapters"])] if about.truth else []
    if about.kind == "collection":
        marks = weights["adapters"].items()
        parts = [(folder / look, {look: mark}) for look, mark in marks if REPOS[look].truth]
    sentences = []
    for place, adapters in parts:
        wanted = {REPORTS[0]: adapters} | ({REPORTS[1]: {}} if adapters else {})
        reports = {}
        for file, looks in wanted.items():
            where = (place / file).relative_to(folder)
            try:
                reports[file] = report = read_report(place / file)
            except ValueError as error:
                sentences.append(f"{where} cannot be read: {error}")
                continue
            network = report["network"]
            drawn = sorted((entry["weight"], entry["sha256"]) for entry in network.get("adapters", {}).values())
            same_base = network.get("base_fingerprint") == weights["base_fingerprint"]
            if not same_base or drawn != [(1.0, mark) for mark in looks.values()]:
                sentences.append(f"{where} is stale: it is of other weights; run hub_cards/build.py --evaluate {name}")
        if about.kind != "collection" and len(reports) == len(wanted):
            try:
                lines = report_lines({title: reports[file] for title, file in COLUMNS[about.kind].items()})
            except ValueError as error:
                sentences.append(f"the reports do not belong together: {error}")
                continue
            sentences += ["the card's numbers are not those of its reports"] * ("\n".join(lines) not in card.text)
            on_card = cast(ModelCardData, card.data).eval_results or []  # huggingface_hub types it as CardData
            shown = {result.metric_type: result.metric_value for result in on_card}
            if shown != {result.metric_type: result.metric_value for result in eval_results(reports[REPORTS[0]])}:
                sentences.append(f"the numbers of the card's model-index are not those of {REPORTS[0]}")
    return sentences


def _grid(name: str, folder: Path, weights: dict) -> list[str]:
    """Compare the weights with the identity in the comment of the grid."""
    try:
        with Image.open(folder / "images" / "grid.jpg") as image:
            image.load()
            shown = json.loads(image.info.get("comment", b"{}"))
    except (OSError, ValueError) as error:
        return [f"images/grid.jpg cannot be read: {error}"]
    if shown != weights:
        return [f"images/grid.jpg is stale: it shows other weights; run python hub_cards/build.py --draw {name}"]
    return []


def main(argv: list[str] | None = None) -> None:
    from build import ROOT, repos, stage

    given = sys.argv[1:] if argv is None else argv
    root = Path(given[0]) if given else ROOT
    count = 0
    with tempfile.TemporaryDirectory() as temp:
        for name, about in repos().items():
            for problem in problems(name, about, stage(name, Path(temp, name), root)):
                print(f"{name}: {problem}")
                count += 1
    print(f"{root}  ({count} problems)")
    raise SystemExit(1 if count else 0)


if __name__ == "__main__":
    main()
