"""Let plain diffusers load a saved base, and load a base with our own class without running any file of it.

`DiffusionPipeline.from_pretrained(base, trust_remote_code=True)` makes a `FewShotGAN`, from a folder and from the Hub,
where this package is installed: `model_index.json` names the class, and small Python files in the base import it.
`FewShotGAN.from_pretrained` runs no file of a base.
"""

import json
from pathlib import Path

import fewshot_gan

from .catalogue import BACKBONES
from .utils.files import replace_text

SHIM = '''"""Lets plain diffusers load this base with trust_remote_code=True; needs `pip install fewshot_gan`."""

from fewshot_gan import {name}  # noqa: F401
'''
PIPELINE_FILE, PART_FILE = "pipeline.py", "fewshot_gan.py"  # beside model_index.json, and in the folder of each part
PACKAGE = "fewshot_gan"


def __getattr__(name: str):
    """Return a class of the package: this module is the library that `without_code` names to diffusers."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(fewshot_gan, name)


def by_package(entry):
    """Record a network of this package, or a registered one, under the package's name, not its module's.

    diffusers does so for the libraries in its own table only. Modules may move; `model_index.json` stays as it is.

    Args:
        entry: a value of a pipeline's config: `(library, class name)` of a part, or anything else.

    Returns:
        `("fewshot_gan", class name)` for a part whose library is a module of this package, else `entry`.
    """
    if isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str):
        if entry[0].partition(".")[0] == PACKAGE or _is_registered(*entry):
            return PACKAGE, entry[1]
    return entry


def _is_registered(library: str, name: str) -> bool:
    """Whether a plugin registered a network of this name in `library`: its module, or the package of its module."""
    if not isinstance(name, str) or name not in BACKBONES:
        return False
    module = BACKBONES[name].path.partition(":")[0]
    return module == library or module.startswith(f"{library}.")


def without_code(config: dict) -> dict:
    """Return `model_index.json` changed so that diffusers imports our classes and no file of the base.

    diffusers prefers a file `<part>/<library>.py` of the base to an installed library. No base can have a file of the
    dotted name of this module, and `hub.base_files.check_index` refuses an index that names it.
    """
    library = {PACKAGE: __name__}
    config = {k: [library.get(v[0], v[0]), *v[1:]] if isinstance(v, list) and v else v for k, v in config.items()}
    if isinstance(config.get("_class_name"), list):
        config["_class_name"] = config["_class_name"][-1]
    return config


def finish_base(folder: Path, pipeline) -> None:
    """Complete a base that diffusers has just written: remove local paths from its configs, and add the Python files.

    Args:
        folder: where the base was written.
        pipeline: the pipeline that was written. Classes that derive from ours get no Python files, since this package
            cannot import them.
    """
    indices = [folder / "model_index.json", *(folder / name / "config.json" for name in pipeline.components)]
    written = {path.parent.name: getattr(pipeline, path.parent.name) for path in indices[1:] if path.is_file()}
    for path in (path for path in indices if path.is_file()):
        config = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k != "_name_or_path"}
        if path is indices[0] and _is_exported(type(pipeline)):
            config["_class_name"] = [PIPELINE_FILE.removesuffix(".py"), type(pipeline).__name__]
            replace_text(folder / PIPELINE_FILE, SHIM.format(name=type(pipeline).__name__))
        replace_text(path, json.dumps(config, indent=2) + "\n")
    for name, part in written.items():
        if _is_exported(type(part)):
            replace_text(folder / name / PART_FILE, SHIM.format(name=type(part).__name__))


def _is_exported(cls: type) -> bool:
    return getattr(fewshot_gan, cls.__name__, None) is cls
