"""Models of transformers: fetched, checked, and read without running code of their repos."""

from pathlib import Path

from ..utils.files import user_path
from .cache import check_cache, refuse_fault_of_cache
from .causes import cause, hub_errors
from .fetch import check_hashes
from .names import is_repo_id

MODEL_FILES = ("*.json", "merges.txt", "model.safetensors", "model-*.safetensors")  # of a model of transformers
NO_CODE = {"trust_remote_code": False}  # for transformers, which else asks on the terminal whether to run a repo's


def fetch_model(name: str, kind: str, way_out: str) -> Path:
    """The folder of a model of transformers: `name` itself, or a Hub repo in the cache, fetched if there is network.

    Args:
        name: local folder or Hub repo id.
        kind: what it is, for messages.
        way_out: what to do without it, for messages.

    Raises:
        FileNotFoundError: no such folder or repo, or no network.
        OSError: the cache cannot be written.
    """
    from huggingface_hub import snapshot_download

    if (folder := user_path(name)).is_dir():
        return folder
    if not is_repo_id(name):
        raise FileNotFoundError(
            f"there is no {kind} {name!r}: it is no folder and no repo id like 'owner/name'; {way_out}"
        )
    check_cache(None)
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
        if not any(folder.glob("model[.-]*safetensors")):  # older repos have a pickle, which is read without running it
            folder = Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, "pytorch_model.bin"]))
    except hub_errors() as error:
        refuse_fault_of_cache(error, f"{kind} {name!r}", None)
        raise FileNotFoundError(
            f"could not fetch the {kind} {name!r} from the Hub ({cause(error)[1]}); {way_out}"
        ) from error
    check_hashes(folder)
    return folder


def read_model(model_class, folder: Path, config) -> tuple:
    """A model of transformers in float32, and the set of its weights that the folder lacks; runs no code of the repo.

    Args:
        model_class: whose `from_pretrained` reads it.
        folder: of `fetch_model`.
        config: its config.

    Raises:
        ValueError: its weights are a pickle that asks for too much or holds more than tensors.
    """
    if not any(folder.glob("model[.-]*safetensors")):
        from ..utils.untrusted import check

        for path in folder.glob("pytorch_model*.bin"):
            check(path)
    options = {"config": config, "dtype": "float32", "output_loading_info": True, **NO_CODE}
    model, info = model_class.from_pretrained(folder, **options)
    return model, set(info["missing_keys"])


def refuse_missing(missing: set[str]) -> None:
    """Refuse a model without these weights.

    Raises:
        ValueError: there are some; the message names four.
    """
    if missing:
        raise ValueError(f"it lacks weights: {', '.join(sorted(missing)[:4])}")
