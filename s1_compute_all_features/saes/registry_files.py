"""The small files of a hub repository that tell where an SAE reads: from the local cache, else asked for."""

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from pipeline_common.errors import UserError
from s1_compute_all_features.hub import reason_of

logger = logging.getLogger(__name__)


class HubFileMissing(UserError):
    """A file of the hub is needed and cannot be had.

    Attributes:
        name: its name, without folders.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class HubFiles:
    """Configuration files of SAE repositories.

    Attributes:
        looks: whether the local cache and the hub are looked at. Where not, a file that is needed is
            missing and every other one is left alone.
        unreachable: why the hub was not reached, once it was asked in vain; it is not asked again.
    """

    def __init__(self, looks: bool = True) -> None:
        self.looks = looks
        self.unreachable = ""
        self._has_asked = False

    def cached(self, repo_id: str, name: str) -> dict[str, Any] | None:
        """The content of a file that the local cache holds; None where it does not.

        Raises:
            UserError: the file is damaged.
        """
        if not self.looks:
            return None
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(repo_id, name)
        return _content(Path(path), repo_id, name) if isinstance(path, str) else None

    def needed(self, repo_id: str, name: str) -> dict[str, Any]:
        """The content of a file that tells what nothing else tells.

        Raises:
            HubFileMissing: it cannot be had.
            UserError: it is damaged.
        """
        content = self.wanted(repo_id, name)
        if content is None:
            raise _missing(repo_id, name, self.unreachable or "it was not asked for")
        return content

    def wanted(self, repo_id: str, name: str) -> dict[str, Any] | None:
        """The content of a file; None where the hub cannot be reached and the cache does not hold it.

        Raises:
            HubFileMissing: the hub was reached and does not give the file.
            UserError: it is damaged.
        """
        found = self.cached(repo_id, name)
        if found is not None or not self.looks or self.unreachable:
            return found
        from huggingface_hub import errors, hf_hub_download

        if not self._has_asked:
            logger.info("asking the hub for %s of %s ...", name.rsplit("/", 1)[-1], repo_id)
            self._has_asked = True
        try:
            path = hf_hub_download(repo_id, name)
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            self.unreachable = reason_of(error)
            return None
        except (OSError, ValueError) as error:
            raise _missing(repo_id, name, reason_of(error)) from None
        return _content(Path(path), repo_id, name)


def _missing(repo_id: str, name: str, reason: str) -> HubFileMissing:
    return HubFileMissing(
        f"{name} of the hub repository {repo_id} cannot be had: {reason}; it tells where the SAE reads, so "
        "run this where the hub can be reached, or with a cache that holds the file",
        name.rsplit("/", 1)[-1],
    )


def _content(path: Path, repo_id: str, name: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path}: {name} of {repo_id} cannot be read ({first}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: {name} of {repo_id} holds no object; fetch it again")
    return content
