"""Model cards of adapters: what it is, what it was made from, under which licence, and how to load it."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

from huggingface_hub.constants import ENDPOINT

from .hub import embedded_bases
from .version import __version__

EMBEDDED_LICENCES = {  # base: what its weights descend from
    "ffhq": "The base's weights, and therefore this adapter, derive from NVIDIA's StyleGAN2-FFHQ (NVIDIA Source Code "
    "License-NC), trained on FFHQ images (CC BY-NC-SA 4.0): **non-commercial use only**. The Apache-2.0 licence of "
    "fewshot_gan covers the code, not these weights.",
}
METHODS = {"lfs_gan": "LFS-GAN ([arXiv 2308.11917](https://arxiv.org/abs/2308.11917))"}
TYPES = {
    "left": "LeFT, learnable factorised tensors ([arXiv 2308.11917](https://arxiv.org/abs/2308.11917))",
    "domain_vector": "domain vector ([arXiv 2210.08884](https://arxiv.org/abs/2210.08884))",
}
PUBLISHED = ("README.md", "adapter_config.json", "adapter_model.safetensors", "images/*.png")


def is_repo_id(name: str | None) -> bool:
    """Whether `name` can be a Hub repo `owner/name`; the Hub rejects cards whose `base_model` is anything else."""
    return bool(name and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)) and not Path(name).exists()


def write_adapter_card(adapter, folder, name: str, grid=None) -> Path:
    """Write `README.md`, and the newest sample grid as `images/grid.png`, into the folder of a saved adapter.

    Args:
        adapter: the `Adapter` that the folder holds.
        folder: where it was saved.
        name: title of the card.
        grid: folder of a run's `step-*.png`, or None.

    Returns:
        Path of the card.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = sorted(Path(grid).glob("step-*.png")) if grid is not None else []
    if pictures:
        (folder / "images").mkdir(exist_ok=True)
        _replace(folder / "images" / "grid.png", lambda temp: shutil.copyfile(pictures[-1], temp))
    base = adapter.config.base_model_name_or_path
    data = ModelCardData(
        library_name="fewshot_gan",
        pipeline_tag="unconditional-image-generation",
        license="other" if base in EMBEDDED_LICENCES else None,
        license_name="non-commercial" if base in EMBEDDED_LICENCES else None,
        base_model=base if is_repo_id(base) else None,
        base_model_relation="adapter" if is_repo_id(base) else None,
        tags=["fewshot_gan", "gan", "few-shot", "adapter", adapter.adapter_type],
        widget=[{"text": "-", "output": {"url": "images/grid.png"}}] if pictures else None,
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(adapter, folder, name, bool(pictures))}")
    _replace(folder / "README.md", lambda temp: temp.write_text(str(card), encoding="utf-8"))
    return folder / "README.md"


def push_adapter_folder(folder, repo_id: str, token: bool | str | None = None) -> str:
    """Upload an adapter with its card and pictures, and nothing else of a training folder.

    Returns:
        Full id of the repo.

    Raises:
        ValueError: the Hub refused or cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi(token=token, library_name="fewshot_gan", library_version=__version__)
    try:
        repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            commit_message="Upload fewshot_gan adapter",
            allow_patterns=list(PUBLISHED),
        )
    except (OSError, getattr(errors, "HTTPError", OSError)) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"could not push {repo_id!r} to the Hub ({reason}); the adapter is complete in {folder}, "
            "check the network and `hf auth login` and push it again"
        ) from error
    return repo_id


def _body(adapter, folder: Path, name: str, has_grid: bool) -> str:
    config = adapter.config
    base = config.base_model_name_or_path
    shown = _portable(base)
    roles = Counter(spec["role"] for spec in config.target_modules.values())
    kind = TYPES.get(adapter.adapter_type, adapter.adapter_type)
    options = [f"{k} {config[k]}" for k in ("rank", "placement") if k in config]
    weights = folder / "adapter_model.safetensors"
    size = f", {weights.stat().st_size:,} bytes" if weights.is_file() else ""
    fingerprint = f" (fingerprint `{config.base_fingerprint}`)" if config.base_fingerprint else ""
    lines = [
        f"# {name}",
        "",
        f"A few-shot adapter: it teaches a new look to the generator {_named(base, shown)}, "
        "whose weights stay as they are.",
        "",
    ]
    if has_grid:
        lines += ["![Above: the base. Below: the same faces or things, adapted.](images/grid.png)", ""]
        lines += ["Above the base's pictures, below the adapted ones, for the same latents; not selected.", ""]
    lines += [
        "## Use",
        "",
        "```python",
        "from fewshot_gan import FewShotGAN",
        "",
        f'pipe = FewShotGAN.from_pretrained("{shown or "the base"}")',
        f'pipe.load_adapter("{name}")  # this folder, or its Hub repo id',
        "images = pipe(num_images=4, seed=0).images",
        "```",
        "",
        "## What it is",
        "",
        f"- Type: {', '.join([kind, *options])}",
        f"- Size: {adapter.num_values():,} numbers{size}",
        f"- Layers touched: {len(config.target_modules)} ({', '.join(f'{n} {r}' for r, n in roles.items())})",
        f"- Base: {_named(base, shown)}{fingerprint}; loading it into another one is refused",
        f"- Objective: {METHODS.get(config.method, config.method or 'not recorded')}{_preset(config.training)}",
        "",
        "## Licence",
        "",
        EMBEDDED_LICENCES.get(base)
        or "An adapter is derived from its base and from its training images: the licences of both apply.",
        "",
    ]
    if config.training:
        lines += ["## Training", "", "| setting | value |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in sorted(config.training.items())]
        lines += [""]
    return "\n".join([*lines, f"Written by fewshot_gan {__version__}.", ""])


def _portable(base: str | None) -> str | None:
    """The base's name without the folders of this machine."""
    return Path(base).name if base and Path(base).is_dir() and base not in embedded_bases() else base


def _preset(training: dict | None) -> str:
    if (training or {}).get("preset") != "few_images":
        return ""
    return (
        ", preset few_images: a projected discriminator ([arXiv 2111.01007](https://arxiv.org/abs/2111.01007)), "
        "feature statistics and content terms in place of the paper's discriminator and mode seeking"
    )


def _named(base: str | None, shown: str | None) -> str:
    if base is None:
        return "it was made for"
    if base in EMBEDDED_LICENCES:
        return f"`{shown}`, which ships inside the fewshot_gan package"
    return f"[{base}]({ENDPOINT}/{base})" if is_repo_id(base) else f"`{shown}`"


def _replace(target: Path, write) -> None:
    """Call `write` on a path beside `target`, then rename: the target is whole or as it was."""
    temp = target.with_name(f".{target.name}.tmp")
    try:
        write(temp)
        os.replace(temp, target)
    finally:
        temp.unlink(missing_ok=True)
