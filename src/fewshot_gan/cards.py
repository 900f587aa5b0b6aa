"""Model cards: what an adapter or base is, what it was made from, under which licence, and how to load it."""

import json
import shutil
from collections import Counter
from pathlib import Path

from .hub import adapter_folders, embedded_adapters, embedded_bases, is_repo_id, portable_name, replace_file
from .version import __version__

EMBEDDED_LICENCES = {  # base: what its weights descend from
    "ffhq": "derive from NVIDIA's StyleGAN2-FFHQ (NVIDIA Source Code License-NC), trained on FFHQ images (CC BY-NC-SA "
    "4.0): **non-commercial use only**. The Apache-2.0 licence of fewshot_gan covers the code, not these weights.",
}
METHODS = {
    "lfs_gan": "LFS-GAN ([arXiv 2308.11917](https://arxiv.org/abs/2308.11917))",
    "d3t": "D3T-GAN ([arXiv 2205.06032](https://arxiv.org/abs/2205.06032))",
    "cdc": "cross-domain correspondence ([arXiv 2104.06820](https://arxiv.org/abs/2104.06820))",
    "finetune": "plain fine-tuning ([arXiv 1805.01677](https://arxiv.org/abs/1805.01677))",
    "adafm": "AdaFM transfer ([arXiv 2002.11810](https://arxiv.org/abs/2002.11810))",
    "lottery": "GAN lottery tickets ([arXiv 2103.00397](https://arxiv.org/abs/2103.00397))",
    "hyperdomainnet": "HyperDomainNet ([arXiv 2210.08884](https://arxiv.org/abs/2210.08884))",
}
TYPES = {
    "left": "LeFT, learnable factorised tensors ([arXiv 2308.11917](https://arxiv.org/abs/2308.11917))",
    "domain_vector": "domain vector ([arXiv 2210.08884](https://arxiv.org/abs/2210.08884))",
    "adafm": "AdaFM, one scale and shift per filter ([arXiv 2002.11810](https://arxiv.org/abs/2002.11810))",
    "gan_memory": "GAN Memory, styles of weights ([arXiv 2006.07543](https://arxiv.org/abs/2006.07543))",
    "ticket": "lottery ticket, a mask of weights ([arXiv 2103.00397](https://arxiv.org/abs/2103.00397))",
    "full": "full difference of weights",
    "blend": "weighted combination of adapters",
}
OPTIONS = ("rank", "placement", "parametrization")  # shown where an adapter has them
PUBLISHED = ("README.md", "adapter_config.json", "adapter_model*.safetensors", "images/*.png")
GAP = 4  # white pixels between the pictures of a grid
SAMPLES, SEED = 8, 0  # of the grid of a base


def make_grid(images: list, columns: int):
    """PIL images of one size, row by row, on white."""
    from PIL import Image

    width, height = images[0].size
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return grid


def write_adapter_card(
    adapter, folder, name: str, grid=None, repo_id: str | None = None, base: str | None = None
) -> Path:
    """Write `README.md`, and the sample grid as `images/grid.png`, into the folder of a saved adapter.

    Args:
        adapter: the `Adapter` that the folder holds.
        folder: where it was saved.
        name: title of the card.
        grid: folder of a run's `step-*.png`, of which the newest is taken; a PIL image; or None.
        repo_id: what the card loads it by; None: its name.
        base: repo id of the base, for an adapter that knows its base as a local folder only.

    Returns:
        Path of the card.
    """
    folder, config = Path(folder), adapter.config
    has_grid = _place_grid(grid, folder)
    base, origin = _base_of(config, base)
    roles = Counter(spec["role"] for spec in config.target_modules.values())
    options = [f"{key} {_plain(config[key])}" for key in OPTIONS if config.get(key)]
    options += [f"{len(saved)} layers retrained"] if (saved := config.get("modules_to_save")) else []
    options += [f"of {' and '.join(part['adapter_type'] for part in config['parts'])}"] if config.get("parts") else []
    size = "".join(f", {file.stat().st_size:,} bytes" for file in sorted(folder.glob("adapter_model*.safetensors"))[:1])
    fingerprint = f" (fingerprint `{config.base_fingerprint}`)" if config.base_fingerprint else ""
    lines = [
        f"A few-shot adapter: it teaches a new look to the generator {_named(base)}, whose weights stay as they are.",
        "",
    ]
    if has_grid:
        lines += ["![Above: the base. Below: the same faces or things, adapted.](images/grid.png)", ""]
        lines += ["Above the base's pictures, below the adapted ones, for the same latents; not selected.", ""]
    lines += [
        *_usage(base or "the base", f'pipe.load_adapter("{repo_id or name}")'),
        "## What it is",
        "",
        f"- Type: {', '.join([TYPES.get(adapter.adapter_type, adapter.adapter_type), *options])}",
        f"- Size: {adapter.num_values():,} numbers{size}",
        f"- Layers touched: {len(config.target_modules)} ({', '.join(f'{n} {r}' for r, n in roles.items())})",
        f"- Base: {_named(base)}{fingerprint}; loading it into another one is refused",
        f"- Objective: {METHODS.get(config.method, config.method or 'not recorded')}{_preset(config.training)}",
        "",
        *_licence([origin], "The base's weights, and therefore this adapter,"),
        *_licence_of_images(config.training or {}),
    ]
    lines += _training(config.training)
    return _write(folder, name, lines, has_grid, ["adapter", adapter.adapter_type], [origin], [base])


def write_collection_card(folder, name: str, repo_id: str | None = None) -> Path:
    """Write `README.md` into a folder whose subfolders hold saved adapters.

    Args:
        folder: of the subfolders.
        name: title of the card.
        repo_id: what the card loads them by; None: its name.

    Returns:
        Path of the card.
    """
    folder = Path(folder)
    configs = {n: json.loads((f / "adapter_config.json").read_text()) for n, f in adapter_folders(folder).items()}
    bases, origins = zip(*map(_base_of, configs.values()), strict=True)
    first = next(iter(configs))
    lines = [
        f"{len(configs)} few-shot adapters: each teaches a generator a new look and leaves its weights as they are.",
        "",
        *_usage(bases[0] or "the base", f'pipe.load_adapter("{repo_id or name}", subfolder="{first}")'),
        "## Adapters",
        "",
        "| subfolder | type | bytes | base |",
        "|---|---|---|---|",
    ]
    for (look, config), base in zip(configs.items(), bases, strict=True):
        size = sum(file.stat().st_size for file in (folder / look).glob("adapter_model*.safetensors"))
        lines += [f"| [{look}]({look}) | {config['adapter_type']} | {size:,} | {_named(base)} |"]
    lines += ["", *_licence(origins, "Weights of a base, and therefore its adapters,")]
    kinds = sorted({config["adapter_type"] for config in configs.values()})
    return _write(folder, name, lines, False, ["adapter", *kinds], origins, bases)


def write_hypernetwork_card(network, folder, name: str, repo_id: str | None = None) -> Path:
    """Write `README.md` into the folder of a saved hypernetwork.

    Args:
        network: the `DomainHyperNetwork` that the folder holds.
        folder: where it was saved.
        name: title of the card.
        repo_id: what the card loads it by; None: its name.

    Returns:
        Path of the card.
    """
    config = network.config
    base, origin = _base_of(config)
    record = config.training or {}
    if len(domains := record.get("domains", ())) > 50:
        record = record | {"domains": f"{len(domains)}, named in config.json"}
    lines = [
        f"A hypernetwork: from one picture, or words where its encoder reads them, to a new look of {_named(base)}.",
        "",
        *_usage(base or "the base", f'pipe.adapter_from_image("photo.png", "{repo_id or name}")'),
        "## What it is",
        "",
        f"- HyperDomainNet ([arXiv 2210.08884](https://arxiv.org/abs/2210.08884)): {network.num_values():,} numbers",
        f"- Predicts: domain vectors of {network.num_deltas:,} numbers for {len(config.target_modules)} layers",
        f"- Encoder: {portable_name(config.encoder) or 'not recorded'}, {config.embedding_dim} numbers each",
        f"- Base: {_named(base)} (fingerprint `{config.base_fingerprint}`)",
        "",
        *_licence([origin], "The base's weights, and therefore this hypernetwork,"),
        *_training(record),
    ]
    return _write(Path(folder), name, lines, False, ["hypernetwork"], [origin], [base])


def write_base_card(pipe, folder, name: str, grid=None, repo_id: str | None = None) -> Path:
    """Write `README.md`, and a sample grid as `images/grid.png`, into the folder of a saved base.

    Args:
        pipe: the `FewShotGAN` that was saved there.
        folder: where.
        name: title of the card.
        grid: PIL image; False: no picture; None: draw one from fixed seeds.
        repo_id: what the card loads it by; None: its name.

    Returns:
        Path of the card.
    """
    from .adapters import fingerprint

    folder, generator = Path(folder), pipe.generator
    mark = fingerprint(generator)
    _, origin = _base_of({"base_model_name_or_path": pipe.base_name, "base_fingerprint": mark})
    protocol = "Pictures of this base."
    if grid is None:
        psi = pipe.config.truncation_psi
        look = "__base__" if pipe.bank.fused is None else None  # fused adapters are part of what was saved
        labels = pipe.some_labels(SAMPLES)
        images = pipe(SAMPLES, seed=SEED, truncation_psi=psi, adapter_names=look, class_labels=labels).images
        grid = make_grid(images, SAMPLES // 2)
        shown = "" if labels is None else f", class_labels={labels}"
        call = f"pipe({SAMPLES}, seed={SEED}, truncation_psi={psi}{shown})"
        protocol = f"`{call}`: the first {SAMPLES} pictures, not selected."
    has_grid = _place_grid(grid or None, folder)
    networks = {name: getattr(pipe, name) for name in ("generator", "discriminator", "projected_discriminator")}
    lines = [
        f"A generator of {generator.resolution} px pictures, to be taught new looks by few-shot adapters.",
        "",
        *(["![Samples](images/grid.png)", "", protocol, ""] if has_grid else []),
        *_usage(repo_id or name, labels=pipe.some_labels(4)),
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
    ]
    return _write(folder, name, lines, has_grid, [], [origin])


def _write(folder: Path, name: str, lines: list[str], has_grid: bool, tags: list[str], origins, bases=()) -> Path:
    """The card: front matter, title, `lines`, version. `bases` are those of adapters; the card of a base has none."""
    from huggingface_hub import ModelCard, ModelCardData

    repos = [base for base in dict.fromkeys(bases) if is_repo_id(base)]
    restricted = any(origins)
    data = ModelCardData(
        library_name="fewshot_gan",
        pipeline_tag="unconditional-image-generation",
        license="other" if restricted else "unknown",
        license_name="non-commercial" if restricted else None,
        base_model=(repos if len(repos) > 1 else repos[0]) if repos else None,
        base_model_relation="adapter" if repos else None,
        tags=["fewshot_gan", "gan", "few-shot", *tags],
        widget=[{"text": "-", "output": {"url": "images/grid.png"}}] if has_grid else None,
    )
    body = "\n".join([f"# {name}", "", *lines, f"Written by fewshot_gan {__version__}.", ""])
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
    replace_file(folder / "README.md", lambda temp: temp.write_text(str(card), encoding="utf-8"))
    return folder / "README.md"


def _place_grid(grid, folder: Path) -> bool:
    """Put the picture at `images/grid.png`; whether there was one."""
    if isinstance(grid, str | Path):
        pictures = sorted(Path(grid).glob("step-*.png"))
        grid = pictures[-1] if pictures else None
    if grid is None:
        return False
    save = (lambda temp: shutil.copyfile(grid, temp)) if isinstance(grid, Path) else grid.save
    replace_file(folder / "images" / "grid.png", save)
    return True


def _usage(base: str, load: str | None = None, labels: list[int] | None = None) -> list[str]:
    options = "" if labels is None else f", class_labels={labels}"
    steps = [f'pipe = FewShotGAN.from_pretrained("{base}")', *([load] if load else [])]
    code = ["from fewshot_gan import FewShotGAN", "", *steps, f"images = pipe(num_images=4, seed=0{options}).images"]
    return ["## Use", "", "```python", *code, "```", ""]


def _licence(origins, what: str) -> list[str]:
    known = [f"{what} {EMBEDDED_LICENCES[origin]}" for origin in dict.fromkeys(origins) if origin]
    unknown = "Not recorded: what the weights were made from (a checkpoint, a base, pictures) decides."
    return ["## Licence", "", *(known or [unknown]), ""]


def _licence_of_images(record: dict) -> list[str]:
    """Of a training set that says what it shows and under which licence, see `training.data.provenance`."""
    if not (licence := record.get("images_licence")):
        return []
    return [f"Training images ({record.get('images', 'not named')}): {licence}", ""]


def _base_of(config, instead: str | None = None) -> tuple[str | None, str | None]:
    """Of an adapter's config: a name of its base that means something elsewhere, and the key of its licence.

    A copy of an embedded base is known by its fingerprint; another local folder goes by `instead` or its last part.
    """
    base, mark = config.get("base_model_name_or_path"), config.get("base_fingerprint")
    twins = {
        json.loads((folder / "adapter_config.json").read_text()).get("base_fingerprint"): name
        for name in EMBEDDED_LICENCES
        for folder in embedded_adapters(name).values()
    }
    origin = base if base in EMBEDDED_LICENCES else twins.get(mark) if mark else None
    if not (base in embedded_bases() or is_repo_id(base)):
        base = instead or origin or (base and Path(base).name)
    return base, origin


def portable_base(config, instead: str | None = None) -> str | None:
    """What an adapter's config may call its base on other machines: never a path of this one.

    Args:
        config: of the adapter.
        instead: embedded name or repo id of the base, for an adapter that knows it as a local folder.
    """
    return _base_of(config, instead if instead in embedded_bases() or is_repo_id(instead) else None)[0]


def _named(base: str | None) -> str:
    from huggingface_hub.constants import ENDPOINT

    if base is None:
        return "it was made for"
    if base in EMBEDDED_LICENCES:
        return f"`{base}`, which ships inside the fewshot_gan package"
    return f"[{base}]({ENDPOINT}/{base})" if is_repo_id(base) else f"`{base}`"


def _preset(training: dict | None) -> str:
    """What a preset for few images puts beside or in place of a paper's terms, from the recorded weights."""
    preset = (training or {}).get("preset")
    if preset not in ("few_images", "large_gap"):
        return ""
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
    """Numbers of a network, buffers included: what its file holds."""
    return sum(tensor.numel() for tensor in network.state_dict().values())
