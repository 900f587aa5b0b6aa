"""Model cards: type, origin, licence, metrics and usage of adapters, hypernetworks and bases."""

import shutil
import tomllib
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..catalogue import ADAPTERS, METHODS, PIVOTAL, TICKETS
from ..data.grids import SHEET_TILE, make_grid
from ..utils.files import replace_file, replace_text
from ..utils.hashing import fingerprint
from ..utils.json_files import read_json
from ..version import __version__
from .names import adapter_folders, embedded_base_of, embedded_bases, is_repo_id, portable_name
from .reports import eval_results, report_lines, report_of

_FFHQ = (
    "derive from NVIDIA's StyleGAN2-FFHQ (NVIDIA Source Code License-NC), trained on FFHQ images (CC BY-NC-SA 4.0): "
    "**non-commercial use only**. The Apache-2.0 licence of fewshot_gan covers the code, not these weights."
)
NOT_RECORDED = "Not recorded: what the weights were made from (a checkpoint, a base, pictures) decides."
EMBEDDED_LICENCES = dict.fromkeys(("ffhq", "ffhq-256"), _FFHQ)  # base: what its weights descend from
EMBEDDED_REPOS = {name: f"fewshot-gan/{name}" for name in EMBEDDED_LICENCES}  # where embedded bases are published
PERSON = [  # on the card of adapters of which one draws a person
    "## Whose face",
    "",
    "This draws a real person. Write here who it is. Share it only if this person agreed, and do not use it to",
    "deceive or harass.",
    "",
]
# the strictest licence of what a base descends from
LICENCE_LINKS = dict.fromkeys(EMBEDDED_LICENCES, "https://nvlabs.github.io/stylegan2/license.html")
PUBLISHED = ("README.md", "adapter_config.json", "adapter_model*.safetensors", "images/*.png", "images/*.jpg")
SAMPLES, SEED = 8, 0  # of the grid of a base
GRID_QUALITY = 90  # of JPEG
NETWORKS = ("generator", "discriminator", "projected_discriminator", "latent_encoder")  # parts of a base


@dataclass(frozen=True, kw_only=True)
class Details:
    """Content of the card of a published repo that does not follow from weights and configs; from `hub_cards/`.

    Attributes:
        files: path in the repo → (bytes, SHA-256), of every file but the card.
        lineage: weights and data that it was made from, and their terms; a sentence or two each.
        numbers: lines on its metrics, see `report_lines`.
        limits: limitations and misuse; a sentence or two each.
        citation: BibTeX entries.
        base_repo: where the embedded base of an adapter is published.
        caption: of the sample grid, in place of the usual one.
        needs: what to install, above the code.
        tags: further ones.
    """

    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    citation: tuple[str, ...] = ()
    base_repo: str | None = None
    caption: str | None = None
    needs: str | None = None
    tags: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the lines of all sections that are not empty."""
        listed = {"Lineage": self.lineage, "Limits and misuse": self.limits}
        made = {title: [f"- {text}" for text in texts] for title, texts in listed.items()}
        made = {"Numbers": list(self.numbers)} | made
        rows = [f"| {path} | {size:,} | `{digest}` |" for path, (size, digest) in sorted(self.files.items())]
        made["Files"] = ["| file | bytes | SHA-256 |", "|---|---|---|", *rows] if rows else []
        made["Citation"] = ["```bibtex", *self.citation, "```"] if self.citation else []
        return [line for title, body in made.items() if body for line in (f"## {title}", "", *body, "")]


def write_adapter_card(
    adapter,
    folder,
    name: str,
    grid=None,
    repo_id: str | None = None,
    base: str | None = None,
    details: Details | None = None,
    report=None,
) -> Path:
    """Write `README.md`, and the sample grid into `images/`, into the folder of a saved adapter.

    Args:
        adapter: the `Adapter` that the folder holds.
        folder: where it was saved.
        name: title of the card.
        grid: folder of a run's `step-*.png`, of which the newest is taken; the file of a picture; a PIL image; or None.
        repo_id: repo that the usage example loads; None: `name`.
        base: repo id of the base, for an adapter that knows its base as a local folder only.
        details: further content of the card.
        report: of `evaluation.evaluate` on this adapter, or its file; None: `evaluation.json` in the folder, if any.

    Returns:
        Path of the card.

    Raises:
        ValueError: the report is of other weights.
    """
    folder, config, details = Path(folder), adapter.config, details or Details()
    report = report_of(config.base_fingerprint, adapter, report, folder)
    if report and not details.numbers:
        details = replace(details, numbers=tuple(report_lines({"this adapter": report})))
    picture = _place_grid(grid, folder)
    base, origin = _base_of(config, base)
    published = details.base_repo or base
    roles = Counter(spec["role"] for spec in config.target_modules.values())
    kind = ADAPTERS.get(adapter.adapter_type)
    options = [f"{key} {_plain(config[key])}" for key in (kind.shown if kind else ()) if config.get(key)]
    options += [f"{len(saved)} layers retrained"] if (saved := config.get("modules_to_save")) else []
    options += [f"of {' and '.join(part['adapter_type'] for part in config['parts'])}"] if config.get("parts") else []
    size = "".join(f", {file.stat().st_size:,} bytes" for file in sorted(folder.glob("adapter_model*.safetensors"))[:1])
    fingerprint = f" (fingerprint `{config.base_fingerprint}`)" if config.base_fingerprint else ""
    what = f"it teaches a new look to the generator {_named(base)}, whose weights stay as they are"
    person, draw = PERSON if holds_person(config) else [], None
    if adapter.latents is not None:
        photos = f"{len(adapter.latents)} photo{'s' * (len(adapter.latents) > 1)}"
        what = f"with it the generator {_named(base)} draws the person of {photos}; its weights stay as they are"
        draw = "draw_person()"
    lines = [f"A few-shot adapter: {what}.", ""]
    usual = "Above the base's pictures, below the adapted ones, for the same latents; not selected."
    lines += [
        *_shown(picture, details.caption or usual),
        *_usage(published or "the base", f'pipe.load_adapter("{repo_id or name}")', needs=details.needs, draw=draw),
        *person,
        "## What it is",
        "",
        f"- Type: {', '.join([kind.markdown if kind else adapter.adapter_type, *options])}",
        f"- Size: {adapter.num_values():,} numbers{size}",
        f"- Layers touched: {len(config.target_modules)} ({', '.join(f'{n} {r}' for r, n in roles.items())})",
        f"- Base: {_named(base)}{fingerprint}; loading it into another one is refused",
        f"- Objective: {_objective(config.method)}{_preset(config.training)}",
        "",
        *_licence([origin], "The base's weights, and therefore this adapter,"),
        *_licence_of_images(config.training or {}),
        *details.lines(),
        *_training(config.training),
    ]
    tags = ["adapter", adapter.adapter_type, *details.tags]
    return _write(folder, name, lines, picture, tags, [origin], [published], report)


def write_collection_card(
    folder, name: str, repo_id: str | None = None, grid=None, details: Details | None = None
) -> Path:
    """Write `README.md` into a folder whose subfolders hold saved adapters.

    Args:
        folder: of the subfolders.
        name: title of the card.
        repo_id: what the card loads them by; None: its name.
        grid: as of `write_adapter_card`.
        details: further content of the card.

    Returns:
        Path of the card.
    """
    folder, details = Path(folder), details or Details()
    picture = _place_grid(grid, folder)
    configs = {n: read_json(f / "adapter_config.json") for n, f in adapter_folders(folder).items()}
    bases, origins = zip(*map(_base_of, configs.values()), strict=True)
    first = next(iter(configs))
    lines = [
        f"{len(configs)} few-shot adapters: each teaches a generator a new look and leaves its weights as they are.",
        "",
        *_shown(picture, details.caption),
        *_usage(
            details.base_repo or bases[0] or "the base",
            f'pipe.load_adapter("{repo_id or name}", subfolder="{first}")  # all of them: load_adapters',
            needs=details.needs,
        ),
        "## Adapters",
        "",
        "| subfolder | type | bytes | base |",
        "|---|---|---|---|",
    ]
    for (look, config), base in zip(configs.items(), bases, strict=True):
        size = sum(file.stat().st_size for file in (folder / look).glob("adapter_model*.safetensors"))
        kind = config["adapter_type"] + ", of a person" * holds_person(config)
        lines += [f"| [{look}]({look}) | {kind} | {size:,} | {_named(base)} |"]
    lines += ["", *(PERSON if any(map(holds_person, configs.values())) else [])]
    lines += [*_licence(origins, "Weights of a base, and therefore its adapters,"), *details.lines()]
    kinds = sorted({config["adapter_type"] for config in configs.values()})
    bases = [details.base_repo] if details.base_repo else bases
    return _write(folder, name, lines, picture, ["adapter", *kinds, *details.tags], origins, bases)


def write_hypernetwork_card(
    network, folder, name: str, repo_id: str | None = None, details: Details | None = None
) -> Path:
    """Write `README.md` into the folder of a saved hypernetwork.

    Args:
        network: the `HyperNetwork` that the folder holds.
        folder: where it was saved.
        name: title of the card.
        repo_id: repo that the usage example loads; None: `name`.
        details: further content of the card.

    Returns:
        Path of the card.
    """
    config, details = network.config, details or Details()
    base, origin = _base_of(config)
    published = details.base_repo or base
    record = config.training or {}
    if len(domains := record.get("domains", ())) > 50:
        record = record | {"domains": f"{len(domains)}, named in config.json"}
    lines = [
        f"A hypernetwork: from one picture, or words where its encoder reads them, to a new look of {_named(base)}.",
        "",
        *_usage(
            published or "the base",
            f'pipe.adapter_from_image("photo.png", "{repo_id or name}")',
            needs=details.needs,
        ),
        "## What it is",
        "",
        f"- HyperDomainNet ([arXiv 2210.08884](https://arxiv.org/abs/2210.08884)): {network.num_values():,} numbers",
        f"- Predicts: {network.predicts} of {network.num_deltas:,} numbers for {len(config.target_modules)} layers",
        f"- Encoder: {portable_name(config.encoder) or 'not recorded'}, {config.embedding_dim} numbers each",
        f"- Base: {_named(base)} (fingerprint `{config.base_fingerprint}`)",
        "",
        *_licence([origin], "The base's weights, and therefore this hypernetwork,"),
        *details.lines(),
        *_training(record),
    ]
    return _write(Path(folder), name, lines, None, ["hypernetwork", *details.tags], [origin], [published])


def write_base_card(
    pipe, folder, name: str, grid=None, repo_id: str | None = None, details: Details | None = None, report=None
) -> Path:
    """Write `README.md`, and a sample grid into `images/`, into the folder of a saved base.

    Args:
        pipe: the `FewShotGAN` that was saved there.
        folder: where.
        name: title of the card.
        grid: PIL image, or the file of a picture; False: no picture; None: draw one from fixed seeds.
        repo_id: repo that the usage example loads; None: `name`.
        details: further content of the card.
        report: of `evaluation.evaluate` on this base, or its file; None: `evaluation.json` in the folder, if any.

    Returns:
        Path of the card.

    Raises:
        ValueError: the report is of other weights.
    """
    folder, generator, details = Path(folder), pipe.generator, details or Details()
    mark = fingerprint(generator)
    report = report_of(mark, None, report, folder)
    if report and not details.numbers:
        details = replace(details, numbers=tuple(report_lines({"this base": report})))
    _, origin = _base_of({"base_model_name_or_path": pipe.base_name, "base_fingerprint": mark})
    caption = details.caption or "Pictures of this base."
    if grid is None:
        psi = pipe.config.truncation_psi
        look = "__base__" if pipe.bank.fused is None else None  # fused adapters are part of what was saved
        labels = pipe.some_labels(SAMPLES)
        images = pipe(SAMPLES, seed=SEED, truncation_psi=psi, adapter_names=look, class_labels=labels).images
        grid = make_grid(images, SAMPLES // 2, SHEET_TILE)
        shown = "" if labels is None else f", class_labels={labels}"
        call = f"pipe({SAMPLES}, seed={SEED}, truncation_psi={psi}{shown})"
        caption = f"`{call}`: the first {SAMPLES} pictures, not selected."
    picture = _place_grid(grid or None, folder)
    networks = {name: getattr(pipe, name) for name in NETWORKS}
    lines = [
        f"A generator of {generator.resolution} px pictures, to be taught new looks by few-shot adapters.",
        "",
        *_shown(picture, caption),
        *_usage(repo_id or name, labels=pipe.some_labels(4), needs=details.needs),
        "## What it is",
        "",
        "| part | network | numbers |",
        "|---|---|---|",
        *(
            f"| {part} | {type(net).__name__}, {generator.resolution} px | {count_numbers(net):,} |"
            for part, net in networks.items()
            if net is not None
        ),
        "",
        f"Fingerprint of the generator: `{mark}`; adapters trained on it carry the same one.",
        "",
        *_licence([origin], "These weights"),
        *details.lines(),
    ]
    return _write(folder, name, lines, picture, list(details.tags), [origin], report=report)


def write_kernels_card(folder, name: str, repo_id: str, details: Details | None = None) -> Path:
    """Write `README.md` of a kernels repo: what the package's own says, for this repo, and the details.

    Args:
        folder: of the package, with its `build.toml` and its own `README.md`, which is replaced.
        name: title of the card.
        repo_id: what the card loads it by.
        details: further content of the card.

    Returns:
        Path of the card.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder, details = Path(folder), details or Details()
    general = tomllib.loads((folder / "build.toml").read_text(encoding="utf-8"))["general"]
    own = ModelCard.load(folder / "README.md").text.strip().removeprefix(f"# {name}").strip()
    own = own.replace(general["hub"]["repo-id"], repo_id)
    intro, code, rest = own.partition("```python")
    licence = ["## Licence", "", f"{general['license']}: the code of fewshot_gan, of which this is a part.", ""]
    lines = [intro + "## Use", "", code + rest, "", *licence, *details.lines()]
    tags = ["kernels", "fewshot_gan", *details.tags]
    data = ModelCardData(library_name="kernels", license=general["license"].lower(), tags=tags)
    return _write_card(folder, name, lines, data)


def _write(
    folder: Path, name: str, lines: list[str], picture: str | None, tags: list[str], origins, bases=(), report=None
) -> Path:
    """Write the card of weights. `bases` are the bases of adapters; the card of a base has none."""
    from huggingface_hub import ModelCardData

    repos = [base for base in dict.fromkeys(EMBEDDED_REPOS.get(base, base) for base in bases) if is_repo_id(base)]
    restricted = any(origins)
    data = ModelCardData(
        library_name="fewshot_gan",
        pipeline_tag="unconditional-image-generation",
        license="other" if restricted else "unknown",
        license_name="non-commercial" if restricted else None,
        license_link=LICENCE_LINKS[next(filter(None, origins))] if restricted else None,
        base_model=(repos if len(repos) > 1 else repos[0]) if repos else None,
        base_model_relation="adapter" if repos else None,
        tags=["fewshot_gan", "gan", "few-shot", *tags],
        widget=[{"text": "-", "output": {"url": picture}}] if picture else None,
        model_name=name if report else None,
        eval_results=eval_results(report) if report else None,
    )
    return _write_card(folder, name, lines, data)


def _write_card(folder: Path, name: str, lines: list[str], data) -> Path:
    """Write `README.md`: front matter, title, lines, version."""
    from huggingface_hub import ModelCard

    body = "\n".join([f"# {name}", "", *lines, f"Written by fewshot_gan {__version__}.", ""])
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
    replace_text(folder / "README.md", str(card))
    return folder / "README.md"


def _place_grid(grid, folder: Path) -> str | None:
    """Write the picture to `images/grid.jpg` and return this path; None: there is no picture.

    A PNG file of it would be six times as large, and older versions left one, which is removed.
    """
    from PIL import Image

    if isinstance(grid, str | Path) and not (grid := Path(grid)).is_file():
        pictures = sorted(grid.glob("step-*.png"), key=lambda path: (len(path.name), path.name))  # by their numbers
        grid = pictures[-1] if pictures else None
    if grid is None:
        return None
    path = folder / "images" / "grid.jpg"
    if isinstance(grid, Path) and grid.suffix.lower() in (".jpg", ".jpeg"):
        replace_file(path, lambda temp: shutil.copyfile(grid, temp))
    else:
        with Image.open(grid, formats=("PNG",)) if isinstance(grid, Path) else nullcontext(grid) as picture:
            replace_file(path, lambda temp: picture.convert("RGB").save(temp, "JPEG", quality=GRID_QUALITY))
    path.with_suffix(".png").unlink(missing_ok=True)
    return "images/grid.jpg"


def _shown(picture: str | None, caption: str | None) -> list[str]:
    return [f"![Samples]({picture})", "", *([caption, ""] if caption else [])] if picture else []


def _usage(
    base: str,
    load: str | None = None,
    labels: list[int] | None = None,
    needs: str | None = None,
    draw: str | None = None,
) -> list[str]:
    options = "" if labels is None else f", class_labels={labels}"
    steps = [f'pipe = FewShotGAN.from_pretrained("{base}")', *([load] if load else [])]
    call = f"pipe.{draw}" if draw else f"pipe(num_images=4, seed=0{options})"
    code = ["from fewshot_gan import FewShotGAN", "", *steps, f"images = {call}.images"]
    return ["## Use", "", *([needs, ""] if needs else []), "```python", *code, "```", ""]


def licence_of(fingerprint: str | None) -> str:
    """Return the terms of a base's weights in a sentence or two, as plain text."""
    base = embedded_base_of(fingerprint)
    words = f"The weights {EMBEDDED_LICENCES[base]}" if base in EMBEDDED_LICENCES else NOT_RECORDED
    return words.replace("**", "")


def _licence(origins, what: str) -> list[str]:
    known = [f"{what} {EMBEDDED_LICENCES[origin]}" for origin in dict.fromkeys(origins) if origin]
    return ["## Licence", "", *(known or [NOT_RECORDED]), ""]


def _licence_of_images(record: dict) -> list[str]:
    """Return the lines on the licence of training images that have one recorded, see `training.data.provenance`."""
    if not (licence := record.get("images_licence")):
        return []
    return [f"Training images ({record.get('images', 'not named')}): {licence}", ""]


def _base_of(config, instead: str | None = None) -> tuple[str | None, str | None]:
    """Return the portable name of an adapter's base, and the embedded base whose licence holds, None if unknown.

    A copy of an embedded base is recognised by its fingerprint. Another local folder is called `instead`, else by its
    last part.
    """
    base, twin = config.get("base_model_name_or_path"), embedded_base_of(config.get("base_fingerprint"))
    if twin is not None and base in embedded_bases():
        base = twin  # an embedded base may have had another name when the adapter was made
    origin = next((name for name in (twin, base) if name in EMBEDDED_LICENCES), None)
    if not (base in embedded_bases() or is_repo_id(base)):
        base = instead or origin or (base and Path(base).name)
    return base, origin


def portable_base(config, instead: str | None = None) -> str | None:
    """Return the name of an adapter's base for other machines: never a local path.

    Args:
        config: of the adapter.
        instead: embedded name or repo id of the base, for an adapter that knows it as a local folder.
    """
    return _base_of(config, instead if instead in embedded_bases() or is_repo_id(instead) else None)[0]


def holds_person(config) -> bool:
    """Return whether the adapter of this config draws a person, or blends one that does, at any depth."""
    return bool(config.get("latents_shape")) or any(map(holds_person, config.get("parts") or ()))


def _named(base: str | None) -> str:
    from huggingface_hub.constants import ENDPOINT

    if base is None:
        return "it was made for"
    if base in EMBEDDED_LICENCES:
        return f"`{base}`, which ships inside the fewshot_gan package"
    return f"[{base}]({ENDPOINT}/{base})" if is_repo_id(base) else f"`{base}`"


def _objective(method: str | None) -> str:
    """The method that trained an adapter, with a link to its paper."""
    own = {entry.name: entry for entry in (TICKETS, PIVOTAL)}
    entry = own.get(method or "") or METHODS.get(method or "")
    return entry.markdown if entry else method or "not recorded"


def _preset(training: dict | None) -> str:
    """Return the clause about what a preset for few images adds to the terms of a paper or replaces, "" for others."""
    preset = (training or {}).get("preset")
    if preset not in ("few_images", "large_gap"):
        return ""
    training = training or {}
    used = {name.removesuffix("_weight") for name, value in training.items() if value}
    projected = training.get("discriminator") == "projected"
    added = ["a projected discriminator ([arXiv 2111.01007](https://arxiv.org/abs/2111.01007))"] * projected
    added += ["feature statistics"] * bool(used & {"statistics", "wasserstein", "colour"})
    added += ["content terms"] * bool(used & {"content", "structure"})
    dropped = ["discriminator"] * projected + ["mode seeking"] * (training.get("mode_seeking_weight") == 0)
    place = f"in place of the paper's {' and '.join(dropped)}" if dropped else "beside the paper's terms"
    added = [", ".join(added[:-1]), added[-1]] if len(added) > 1 else added
    return f", preset {preset}: {' and '.join(added)} {place}" if added else f", preset {preset}"


def _training(record: dict | None) -> list[str]:
    if not record:
        return []
    rows = [f"| {key} | {_plain(value)} |" for key, value in sorted(record.items())]
    return ["## Training", "", "| setting | value |", "|---|---|", *rows, ""]


def _plain(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def count_numbers(network) -> int:
    """Return the number of values of a network, buffers included, as in its file."""
    return sum(tensor.numel() for tensor in network.state_dict().values())
