"""Finds what is wrong with the cards: fields, sections, hashes, links, stale numbers and pictures.

    python hub_cards/lint.py [FOLDER]      # hub_cards, or what build.py --out wrote

Each repo is looked at as it would be published: the card with its weights, grid and reports beside it.
"""

import json
import re
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import yaml
from facts import BASE, WHEEL_SHA256, Facts
from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id
from PIL import Image

from fewshot_gan.adapters import fingerprint, read_adapter
from fewshot_gan.hub import adapter_folders
from fewshot_gan.hub.reports import eval_results, read_report, report_lines
from fewshot_gan.models import MobileStyleGANGenerator
from fewshot_gan.utils.hashing import hash_tensors

REPORTS = ("report.json", "report_base.json")  # of the weights; of the base alone, for adapters
COLUMNS = {  # of a card's table: heading → report
    "base": {"this base": REPORTS[0]},
    "adapter": {"this adapter": REPORTS[0], "the base without it": REPORTS[1]},
}
TASK = "unconditional-image-generation"
FIELDS = {  # that a kind has beside license, library_name and tags
    "base": ("pipeline_tag",),
    "recipe": ("pipeline_tag",),
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
    """What is wrong with a staged repo (`build.stage`), a sentence each; empty: it can be published."""
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
    found = _front_matter(about, data) + _text(about, card.text, data, files) + _hashes(card.text, files)
    for file, source in ({"README.md": path} | files).items():
        if source.suffix in READABLE and (hit := re.search(LOCAL, source.read_text(encoding="utf-8"))):
            found.append(f"{file} names a folder of somebody's machine: {hit[0]}")
    if about.kind in ("kernels", "hypernetwork"):
        return found
    try:
        of = identity(name, about, folder)
    except (ValueError, OSError) as error:
        return [*found, f"the weights cannot be read: {error}"]
    return found + _numbers(name, about, folder, of, card) + _grid(name, folder, of)


def _front_matter(about: Facts, data: dict) -> list[str]:
    wanted = ["license", "library_name", "tags", *FIELDS[about.kind]]
    wanted += ["license_name", "license_link"] if data.get("license") == "other" else []
    found = [f"the front matter has no {key}" for key in wanted if not data.get(key)]
    found += [f"the front matter has {key}, which the Hub does not know" for key in data.keys() - KNOWN]
    if data.get("pipeline_tag", TASK) != TASK:
        found.append(f"pipeline_tag is {data['pipeline_tag']}, not {TASK}")
    if about.kind != "kernels" and data.get("license") != "other":
        found.append(f"license is {data.get('license')}: weights that descend from StyleGAN2-FFHQ are of license other")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", data.get("license_name", "none")):
        found.append(f"license_name {data['license_name']!r} is no lower-case id")
    if not re.match("https://", data.get("license_link", "https://")):
        found.append(f"license_link {data['license_link']!r} is no https address")
    if not all(isinstance(tag, str) and tag for tag in data.get("tags") or []):
        found.append("tags are not all words")
    if data.get("base_model_relation", "adapter") != "adapter":
        found.append(f"base_model_relation is {data['base_model_relation']}, not adapter")
    bases = data.get("base_model") or []
    for repo in [bases] if isinstance(bases, str) else bases:
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            found.append(f"base_model is no repo id: {error}")
        if "/" not in str(repo):
            found.append(f"base_model {repo} names no owner")
    return found


def _text(about: Facts, text: str, data: dict, files: dict[str, Path]) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    titles = re.findall(r"^## (.+)$", prose, re.M)
    found = [f"there is no section {title!r}" for title in SECTIONS if title not in titles]
    found += [f"section {title!r} is there twice" for title in {t for t in titles if titles.count(t) > 1}]
    found += [f"unfinished: {hit}" for hit in re.findall(UNFINISHED, text, re.I)]
    if about.kind != "kernels" and "non-commercial" not in prose.lower():
        found.append("nothing says that the weights are non-commercial")
    places = {path[:i] for path in files for i, letter in enumerate(path) if letter == "/"} | set(files)
    links = re.findall(LINK, prose) + [shown["output"]["url"] for shown in data.get("widget") or []]
    for link in links:
        if not re.match(r"https?://|#", link) and link.split("#")[0].rstrip("/") not in places:
            found.append(f"the link {link} leads to nothing that would be published")
    return found


def _hashes(text: str, files: dict[str, Path]) -> list[str]:
    """The table of files against the files."""
    listed = {name: (int(size.replace(",", "")), mark) for name, size, mark in ROW.findall(text)}
    found = [f"{name} would be published, and the card does not list it" for name in files.keys() - listed.keys()]
    for name, facts in listed.items():
        if name not in files:
            found.append(f"the card lists {name}, which is not there")
        elif (files[name].stat().st_size, sha256(files[name].read_bytes()).hexdigest()) != facts:
            found.append(f"{name} is not the file that the card lists: other bytes or another SHA-256")
    return found


def identity(name: str, about: Facts, folder: Path) -> dict:
    """What a report or a grid must be of: the staged weights, named as `fewshot_gan.apps.evaluation` names them."""
    if about.kind == "recipe":
        return {"wheel_sha256": WHEEL_SHA256}
    if about.kind == "base":
        generator = MobileStyleGANGenerator.from_pretrained(folder / "generator", low_cpu_mem_usage=False)
        return {"base": name, "base_fingerprint": fingerprint(generator), "adapters": {}}
    looks = {name: folder} if about.kind == "adapter" else adapter_folders(folder)
    read = {look: read_adapter(path) for look, path in looks.items()}
    return {
        "base": BASE,
        "base_fingerprint": "; ".join(sorted({adapter.config.base_fingerprint for adapter in read.values()})),
        "adapters": {look: hash_tensors(adapter.state_dict(), adapter.config) for look, adapter in read.items()},
    }


def _numbers(name: str, about: Facts, folder: Path, of: dict, card: ModelCard) -> list[str]:
    """Reports against the weights, and what the card says against the reports."""
    parts = [(folder, of["adapters"])] if about.truth else []
    if about.kind == "collection":
        parts = [(folder / look, {look: mark}) for look, mark in of["adapters"].items()]
    found = []
    for place, adapters in parts:
        wanted = {REPORTS[0]: adapters} | ({REPORTS[1]: {}} if adapters else {})
        reports = {}
        for file, looks in wanted.items():
            where = (place / file).relative_to(folder)
            try:
                reports[file] = report = read_report(place / file)
            except ValueError as error:
                found.append(f"{where} cannot be read: {error}")
                continue
            network = report["network"]
            drawn = sorted((entry["weight"], entry["sha256"]) for entry in network.get("adapters", {}).values())
            same_base = network.get("base_fingerprint") == of["base_fingerprint"]
            if not same_base or drawn != [(1.0, mark) for mark in looks.values()]:
                found.append(f"{where} is stale: it is of other weights; python hub_cards/build.py --evaluate {name}")
        if about.kind != "collection" and len(reports) == len(wanted):
            try:
                lines = report_lines({title: reports[file] for title, file in COLUMNS[about.kind].items()})
            except ValueError as error:
                found.append(f"the reports do not belong together: {error}")
                continue
            found += ["the card's numbers are not those of its reports"] * ("\n".join(lines) not in card.text)
            shown = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
            if shown != {result.metric_type: result.metric_value for result in eval_results(reports[REPORTS[0]])}:
                found.append(f"the numbers of the card's model-index are not those of {REPORTS[0]}")
    return found


def _grid(name: str, folder: Path, of: dict) -> list[str]:
    """The grid against the weights, which its comment names."""
    try:
        with Image.open(folder / "images" / "grid.jpg") as image:
            image.load()
            shown = json.loads(image.info.get("comment", b"{}"))
    except (OSError, ValueError) as error:
        return [f"images/grid.jpg cannot be read: {error}"]
    if shown != of:
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
