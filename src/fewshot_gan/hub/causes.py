"""Error messages for failed downloads and uploads: one sentence with the cause and the way out."""

from ..utils.text import in_short, plain


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that huggingface_hub raises; its connection errors are not derived from OSError."""
    from huggingface_hub import errors

    own = [getattr(errors, name, OSError) for name in ("HTTPError", "RevisionResolutionError", "XetDownloadError")]
    return (OSError, ValueError, RuntimeError, *own)


def why_not_fetched(error: Exception, what: str, page: str, revision: str | None, known: str) -> str:
    """Return the message for a failed download.

    Args:
        error: the exception of huggingface_hub.
        what: kind and name of the repo, e.g. "adapter 'me/ink'".
        page: URL of the repo.
        revision: that was asked for; None: main.
        known: the embedded names, as a clause.
    """
    from huggingface_hub import errors

    status, reason = cause(error)
    if isinstance(error, errors.HFValidationError):
        return f"there is no {what}: the Hub has no such names; {known}; else give a local folder"
    if isinstance(error, errors.IncompleteSnapshotError):
        return (
            f"the cache holds only a part of {what}: its download was interrupted, or was of another subfolder, and "
            f"now the Hub cannot be reached ({reason}); load it again with network to complete it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what} has no revision {revision or 'main'!r}; see its branches and commits at {page}"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"you may not read {what}: ask for access at {page}, and use a token that has it (`hf auth login`, token=)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no {what} that you may read; {known}; a private repo needs `hf auth login` or token=…"
    if status == 401:
        return f"the Hub did not accept the token for {what}; renew it with `hf auth login`, or give another token="
    if status == 429:
        return (
            f"the Hub got too many requests and did not send {what} ({reason}); wait some minutes and load it again; "
            "it allows more with a token (`hf auth login`)"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"could not fetch {what} from the Hub ({reason}): no network, or not in the cache; {known}, which need no "
            "network; else download the repo elsewhere and give its folder"
        )
    return (
        f"the download of {what} was interrupted ({reason}); nothing incomplete is used: "
        "load it again and it goes on where it stopped"
    )


def why_not_pushed(error: Exception) -> str:
    """Return the message for a failed upload."""
    from huggingface_hub import errors

    status, reason = cause(error)
    if isinstance(error, errors.HFValidationError):
        return "a repo id is 'owner/name' or 'name', of letters, digits, '-', '_' and '.'"
    if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
        return "that needs a token with write access; run `hf auth login`, or give token=…"
    if status == 429:
        return f"the Hub got too many requests ({reason}); no file changed there, push again in some minutes"
    if status in (403, 404):
        return f"the token may not write there ({reason}); make one that may at {page_of('settings/tokens')}"
    if status is None and not isinstance(error, ValueError):
        return f"the Hub cannot be reached ({reason}); no file changed there, push again with network"
    return f"the Hub refused ({reason}); no file changed there, push again once that is mended"


def cause(error: Exception) -> tuple[int | None, str]:
    """Return the HTTP status, None if no server answered, and the innermost reason in a few words."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__) is not None:
        chain.append(inner)
    for link in chain:
        if (response := getattr(link, "response", None)) is not None:
            message = plain(getattr(link, "server_message", None) or "")
            return response.status_code, f"HTTP {response.status_code}{message and f': {message[:200]}'}"
    return None, in_short(chain[-1]) or type(error).__name__


def page_of(path: str) -> str:
    """Return the URL of a page of the Hub."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{path}"
