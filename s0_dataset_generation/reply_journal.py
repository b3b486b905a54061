"""The reply journal: every outcome of an LLM request, one JSON line each, so that nothing is asked twice."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError

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
        """Add an outcome; it is on disk when this returns."""
        lines = [{"digest": digest, **asdict(outcome)}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as handle:
            handle.truncate(self._whole_bytes)
            if self._whole_bytes == 0:
                lines.insert(0, dict(_HEADER))
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        self._whole_bytes += len(text)
        self._outcomes[digest] = outcome

    def _load(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        self._whole_bytes = len(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                if number == 1:
                    if entry != _HEADER:
                        raise ValueError(f"its first line is not {json.dumps(_HEADER)}")
                else:
                    digest = entry.pop("digest")
                    self._outcomes[digest] = Outcome(**entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{self.path}: line {number}: not a line of this version's reply journal ({error}); "
                    "delete the file to start afresh"
                ) from None
