"""Weights that cannot be had, explained in one line."""

from pathlib import Path

from pipeline_common.errors import UserError


def unavailable(what: str, repo_id: str, error: BaseException) -> UserError:
    """The error for a model or SAE that could not be loaded.

    Args:
        what: what was wanted, e.g. ``model google/gemma-2-2b``.
        repo_id: its hub repository; empty for a local folder.
        error: what the library raised.

    Returns:
        One line: the reason, how to get the weights, and which configurations need none of this.
    """
    others = ["SmolLM2, which needs no hub (fetch_demo_model.py, then --config smollm2_configurations.json)"]
    if "gpt2" not in repo_id.lower():
        others.insert(0, "GPT-2, which is not gated (--config gpt2_small_configurations.json)")
    remedy = "check the path"
    if repo_id:
        remedy = (
            f"accept the licence at https://huggingface.co/{repo_id} if it asks for one, set HF_TOKEN to "
            "your access token, make sure this machine can reach the hub or holds a copy in its cache"
        )
    return UserError(
        f"{what} cannot be loaded: {reason_of(error)}; {remedy}, or run {' or '.join(others)}, all in "
        f"{Path(__file__).parent.name}"
    )


def reason_of(error: BaseException) -> str:
    """Why, in a few words: the hub's own exception tells it better than the wrapper around it."""
    from huggingface_hub import errors

    known: list[tuple[type[BaseException], str]] = [
        (errors.GatedRepoError, "the repository is gated and this token has no access"),
        (errors.RepositoryNotFoundError, "no such repository, or no access to it"),
        (errors.RevisionNotFoundError, "no such revision"),
        (
            errors.OfflineModeIsEnabled,
            "the hub is switched off (HF_HUB_OFFLINE) and the file is not in the cache",
        ),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached and the file is not in the cache"),
        (errors.EntryNotFoundError, "the repository does not hold that file"),
    ]
    link: BaseException | None = error
    while link is not None:
        for kind, reason in known:
            if isinstance(link, kind):
                return reason
        link = link.__cause__ or link.__context__
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def resolve_folder(folder: str, relative_to: Path) -> Path | None:
    """The folder that an entry of a configuration file names, if it is one on this disk."""
    candidate = relative_to / Path(folder).expanduser()
    return candidate.resolve() if candidate.is_dir() else None
