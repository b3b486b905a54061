"""The reply journal: every outcome of an LLM request, one JSON line each, so that nothing is asked twice."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError, cannot_write
from pipeline_common.files import is_changed, sealed

FORMAT_VERSION = 1
_HEADER = {"reply_journal": FORMAT_VERSION}


@dataclass(frozen=True)
class Outcome:
    """What came of one request.

    Attributes:
        items: the valid items of the reply, in reply order; empty after a failure.
        failure: why there is no reply, or None.
        prompt_tokens: as the server reported, or None.
        completion_tokens: likewise.
        reply: the body as it came, less the key; None where no reply came.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reply: str | None = None


class ReplyJournal:
    """Outcomes by request digest, on disk.

    A line that a kill left unfinished is passed over, and cut off before the next one is added; its
    request is simply asked again.

    Args:
        path: the JSONL file; made with its folder at the first outcome.

    Raises:
        UserError: the file is not a reply journal of this version, or a finished line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._outcomes: dict[str, Outcome] = {}
        self._whole_bytes = 0
        if path.exists():
            self._load()

    def __len__(self) -> int:
        return len(self._outcomes)

    def get(self, digest: str) -> Outcome | None:
        """The outcome of the request with that digest, if it was asked before."""
        return self._outcomes.get(digest)

    def append(self, digest: str, outcome: Outcome) -> None:
        """Add an outcome; it is on disk when this returns.

        Raises:
            UserError: the disk is full or cannot be written; earlier outcomes are kept.
        """
        lines = [sealed({"digest": digest, **asdict(outcome)})]
        if self._whole_bytes == 0:
            lines.insert(0, dict(_HEADER))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as handle:
                handle.truncate(self._whole_bytes)
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) or error from None
        self._whole_bytes += len(text)
        self._outcomes[digest] = outcome

    def _load(self) -> None:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read as a reply journal: {error.strerror}; move it away"
            ) from None
        whole = content[: content.rfind(b"\n") + 1]
        self._whole_bytes = len(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                if number == 1:
                    if entry != _HEADER:
                        raise ValueError(f"its first line is not {json.dumps(_HEADER)}")
                else:
                    if is_changed(entry):
                        raise ValueError("it was damaged or changed")
                    entry.pop("sha256", None)
                    digest = entry.pop("digest")
                    self._outcomes[digest] = _outcome(entry)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    f"{self.path}: line {number}: not a line of this version's reply journal ({error}); "
                    "delete the file to start afresh"
                ) from None


def _outcome(entry: dict[str, Any]) -> Outcome:
    """A line's outcome.

    Raises:
        TypeError: an unknown key, or a value of another kind.
    """
    outcome = Outcome(**entry)
    kinds: dict[str, Any] = {
        "items": list,
        "failure": str | None,
        "prompt_tokens": int | None,
        "completion_tokens": int | None,
        "reply": str | None,
    }
    for name, kind in kinds.items():
        if not isinstance(getattr(outcome, name), kind):
            raise TypeError(f"{name} is {getattr(outcome, name)!r:.60}")
    if not all(isinstance(item, dict) for item in outcome.items):
        raise TypeError("items holds what is no object")
    return outcome
