"""What the loader of plain diffusers needs: small files in a saved base, and a library that has our classes.

With them `DiffusionPipeline.from_pretrained(base, trust_remote_code=True)` makes a `FewShotGAN`, from a folder and from
the Hub, where this package is installed. `FewShotGAN.from_pretrained` runs no file of a base.
"""

import json
from pathlib import Path

from diffusers.pipelines import pipeline_loading_utils

import fewshot_gan

from .utils.files import replace_text

SHIM = '''"""Lets plain diffusers load this base with trust_remote_code=True; needs `pip install fewshot_gan`."""

from fewshot_gan import {name}  # noqa: F401
'''
PIPELINE_FILE, PART_FILE = "pipeline.py", "fewshot_gan.py"  # beside model_index.json, and in the folder of each part
MODELS = {"ModelMixin": ["save_pretrained", "from_pretrained"]}
# model_index.json then says ["fewshot_gan", "StyleGAN2Generator"], which loads from folders and from the Hub
pipeline_loading_utils.LOADABLE_CLASSES.setdefault("fewshot_gan", MODELS)
pipeline_loading_utils.LOADABLE_CLASSES.setdefault(__name__, MODELS)


def __getattr__(name: str):
    """Our classes under another name of the package, which no file in a base can have."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(fewshot_gan, name)


def without_code(config: dict) -> dict:
    """What `model_index.json` says, so that diffusers takes the classes of this package and no file of the base."""
    library = {"fewshot_gan": __name__}
    config = {k: [library.get(v[0], v[0]), *v[1:]] if isinstance(v, list) and v else v for k, v in config.items()}
    if isinstance(config.get("_class_name"), list):
        config["_class_name"] = config["_class_name"][-1]
    return config


def finish_base(folder: Path, pipeline) -> None:
    """Name no folder of this machine in a base that diffusers has just written, and put the small files in."""
    indices = [folder / "model_index.json", *(folder / name / "config.json" for name in pipeline.components)]
    ours = {path.parent.name: getattr(pipeline, path.parent.name) for path in indices[1:] if path.is_file()}
    for path in (path for path in indices if path.is_file()):
        config = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k != "_name_or_path"}
        if path is indices[0] and _is_ours(type(pipeline)):
            config["_class_name"] = [PIPELINE_FILE.removesuffix(".py"), type(pipeline).__name__]
            replace_text(folder / PIPELINE_FILE, SHIM.format(name=type(pipeline).__name__))
        replace_text(path, json.dumps(config, indent=2) + "\n")
    for name, part in ours.items():
        if _is_ours(type(part)):
            replace_text(folder / name / PART_FILE, SHIM.format(name=type(part).__name__))


def _is_ours(cls: type) -> bool:
    return getattr(fewshot_gan, cls.__name__, None) is cls
