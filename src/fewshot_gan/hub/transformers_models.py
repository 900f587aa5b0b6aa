"""Download, check and load models of transformers without running code from their repos."""

from pathlib import Path

from ..utils.files import user_path
from .cache import check_cache, refuse_fault_of_cache
from .causes import cause, hub_errors
from .fetch import check_hashes
from .names import is_repo_id

MODEL_FILES = ("*.json", "merges.txt", "model.safetensors", "model-*.safetensors")  # of a model of transformers
NO_CODE = {"trust_remote_code": False}  # otherwise transformers asks on the terminal whether to run code of the repo


def fetch_model(name: str, kind: str, way_out: str) -> Path:
    """Return the folder of a model of transformers: a local folder, or the snapshot of a Hub repo.

    Args:
        name: local folder or Hub repo id.
        kind: kind of model, for messages.
        way_out: alternative to the model, for messages.

    Raises:
        FileNotFoundError: there is no such folder or repo, or no network connection.
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
        if not any(
            folder.glob("model[.-]*safetensors")
        ):  # older repos have a pickle, which `read_model` checks before it is read
            folder = Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, "pytorch_model.bin"]))
    except hub_errors() as error:
        refuse_fault_of_cache(error, f"{kind} {name!r}", None)
        raise FileNotFoundError(
            f"could not fetch the {kind} {name!r} from the Hub ({cause(error)[1]}); {way_out}"
        ) from error
    check_hashes(folder)
    return folder


def read_model(model_class, folder: Path, config) -> tuple:
    """Load a model of transformers in float32, without running code of the repo.

    Args:
        model_class: class with the `from_pretrained` to use.
        folder: result of `fetch_model`.
        config: of the model.

    Returns:
        The model, and the names of its weights that the folder lacks.

    Raises:
        ValueError: the weights are a pickle that would take too much memory or holds other objects than tensors.
    """
    if not any(folder.glob("model[.-]*safetensors")):
        from ..utils.untrusted import check

        for path in folder.glob("pytorch_model*.bin"):
            check(path)
    options = {"config": config, "dtype": "float32", "output_loading_info": True, **NO_CODE}
    model, info = model_class.from_pretrained(folder, **options)
    return model, set(info["missing_keys"])


def refuse_missing(missing: set[str]) -> None:
    """Refuse a model that lacks weights.

    Raises:
        ValueError: `missing` is not empty; names up to four of them.
    """
    if missing:
        raise ValueError(f"it lacks weights: {', '.join(sorted(missing)[:4])}")
