"""Asking an LLM: settings, requests, and a client that journals every outcome and knows when to stop."""

import argparse
import asyncio
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline_common.command_line import positive_int
from pipeline_common.errors import UserError
from pipeline_common.files import sha256_of_json
from s0_dataset_generation.llm_connection import Connection
from s0_dataset_generation.llm_refusals import one_line
from s0_dataset_generation.llm_reply import said_in
from s0_dataset_generation.reply_journal import Outcome, ReplyJournal

if TYPE_CHECKING:
    from pydantic import BaseModel

ENV_FILE = Path(__file__).parent / ".env"
DEFAULT_MODEL = "gpt-4.1-mini"
PUBLIC_ENDPOINT = "https://api.openai.com/v1"

_RETRIES = 5
_GIVE_UP_AFTER_FAILURES = 4
_GIVE_UP_AFTER_USELESS = 5
"""Replies at the start without anything of use. More than the requests in flight by default, so that one bad
moment of a server does not end a run."""
_LONGEST_QUOTE = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LLMSettings:
    """Where and how to ask.

    Attributes:
        model: the model's name as the server knows it.
        base_url: of an OpenAI-compatible server, up to and with /v1.
        api_key: shown nowhere.
        concurrency: requests in flight at most.
        timeout_seconds: for one try of a request.
    """

    model: str
    base_url: str
    api_key: str = field(repr=False)
    concurrency: int = 4
    timeout_seconds: float = 120.0

    @property
    def endpoint(self) -> str:
        """The base URL without a user name, password or query, fit for messages and files."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class LLMRequest:
    """One question to the model.

    Attributes:
        messages: chat messages.
        item_type: pydantic model of one item of the reply, ``{"items": [...]}``.
        attempt: tells apart questions whose text is the same; asked again means another attempt.
        is_of_use: whether an item is one that was asked for. A run whose first replies hold none is stopped.
    """

    messages: list[dict[str, str]]
    item_type: "type[BaseModel]"
    attempt: str
    is_of_use: Callable[[Mapping[str, Any]], bool] = field(
        default=lambda item: True, repr=False, compare=False
    )

    @property
    def estimated_prompt_tokens(self) -> int:
        """A rule of thumb for English, four characters a token."""
        return sum(len(message["content"]) for message in self.messages) // 4


def add_llm_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every script that asks an LLM has."""
    group = parser.add_argument_group("language model")
    group.add_argument("--model", help=f"model name (default: OPENAI_MODEL, else {DEFAULT_MODEL})")
    group.add_argument(
        "--base-url", help=f"any OpenAI-compatible server (default: OPENAI_BASE_URL, else {PUBLIC_ENDPOINT})"
    )
    group.add_argument("--batch-size", type=positive_int, default=20, help="sentences per request")
    group.add_argument("--concurrency", type=positive_int, default=4, help="requests in flight at most")
    group.add_argument("--timeout", type=positive_int, default=120, help="seconds for one try of a request")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print the requests and their estimated tokens, ask and write nothing",
    )


def resolve_settings(arguments: argparse.Namespace, needs_key: bool = True) -> LLMSettings:
    """Settings from flags, then the environment, then ``.env``; an empty variable counts as not set.

    Args:
        arguments: with the flags of `add_llm_arguments`.
        needs_key: False for a dry run.

    Raises:
        UserError: a key is needed and there is neither a key nor a base URL, or one of them can't be one.
    """
    from dotenv import dotenv_values

    environment = {**dotenv_values(ENV_FILE), **{name: value for name, value in os.environ.items() if value}}
    base_url = arguments.base_url or environment.get("OPENAI_BASE_URL")
    key = environment.get("OPENAI_API_KEY")
    if needs_key and not key and not base_url:
        raise UserError(
            f"no LLM key: write OPENAI_API_KEY=... into {ENV_FILE} or set it in the environment, or name a "
            "server that needs none with --base-url"
        )
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("OPENAI_API_KEY: holds a character that no key has, such as a space; copy it again")
    if base_url and not re.fullmatch(r"https?://[^\s/?#\[\]]+(/\S*)?", base_url):
        raise UserError("--base-url/OPENAI_BASE_URL: expected an address like http://localhost:8000/v1")
    return LLMSettings(
        model=arguments.model or environment.get("OPENAI_MODEL") or DEFAULT_MODEL,
        base_url=base_url or PUBLIC_ENDPOINT,
        api_key=key or "none",  # the library insists on a key; a server that needs none ignores it
        concurrency=arguments.concurrency,
        timeout_seconds=float(arguments.timeout),
    )


class LLMClient:
    """Asks many requests at once and journals every outcome.

    Args:
        settings: where and how.
        journal: outcomes of earlier runs, which are not asked again.

    Attributes:
        n_asked: requests sent by this run.
        failures: kinds of failure and how often, journalled ones included.
        prompt_tokens: that the server reported to this run; completion_tokens likewise.
    """

    def __init__(self, settings: LLMSettings, journal: ReplyJournal) -> None:
        self.settings = settings
        self.journal = journal
        self.n_asked = 0
        self.failures: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._connection = Connection(settings, journal.path, ENV_FILE)
        self._failures_in_a_row = 0
        # By kind of item: a model that writes sentences may yet be unable to label them.
        self._useless: dict[str, list[Outcome]] = {}
        self._has_had_use: set[str] = set()
        self._has_asked = False

    def ask(self, requests: Sequence[LLMRequest], description: str) -> list[Outcome]:
        """The outcomes of the requests, in their order; those in the journal come from there.

        Args:
            requests: what to ask.
            description: for the progress bar.

        Raises:
            UserError: the key or the model is refused, the quota is used up, the server gives no answer
                several times in a row, or none of its first replies is of any use.
        """
        digests = [self._digest(request) for request in requests]
        fresh = {
            digest: request
            for digest, request in zip(digests, requests, strict=True)
            if self.journal.get(digest) is None
        }
        if fresh and not self._has_asked:
            self._tell_of_other_requests(len(self.journal) - len(set(digests) - set(fresh)))
        self._has_asked = True
        for digest, request in zip(digests, requests, strict=True):
            self._note_use(request, self.journal.get(digest))
        try:
            if fresh:
                asyncio.run(self._ask_all(fresh, description))
        finally:
            outcomes = [outcome for digest in digests if (outcome := self.journal.get(digest)) is not None]
            self.failures.update(outcome.failure.split(":")[0] for outcome in outcomes if outcome.failure)
        return outcomes

    def usage_line(self) -> str:
        """Requests and tokens of this run, as the server reported them."""
        tokens = f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens as reported"
        if not self.prompt_tokens and not self.completion_tokens:
            tokens = "no tokens reported by the server"
        failures = ", ".join(f"{kind} x{n}" for kind, n in sorted(self.failures.items())) or "none"
        return f"{self.n_asked} requests asked, {tokens}; failed replies: {failures}"

    def _tell_of_other_requests(self, n_idle: int) -> None:
        """Say so before anything is asked, where an earlier run asked something else.

        The first requests of a command are the same each time. So where one of them has no reply yet, an
        earlier run of this command got no further than these, and every other reply is another command's.
        """
        if n_idle:
            _log.warning(
                "%d of the %d replies in %s were to other requests and are not used: seeds, counts, batch "
                "size, model and --seed decide what is asked. They stay there; the command that asked for "
                "them takes them up again",
                n_idle,
                len(self.journal),
                self.journal.path,
            )

    def _digest(self, request: LLMRequest) -> str:
        item = request.item_type.__name__
        return sha256_of_json([self.settings.model, request.messages, item, request.attempt])

    async def _ask_all(self, requests: dict[str, LLMRequest], description: str) -> None:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        gate = asyncio.Semaphore(self.settings.concurrency)
        async with self._connection.open(_RETRIES) as client:

            async def ask_one(digest: str, request: LLMRequest) -> tuple[str, Outcome]:
                async with gate:
                    return digest, await self._connection.ask(client, request)

            tasks = [asyncio.create_task(ask_one(digest, request)) for digest, request in requests.items()]
            try:
                # What is logged meanwhile gets a line of its own, above the bar.
                with (
                    logging_redirect_tqdm(),
                    tqdm(total=len(tasks), desc=description, unit="request") as progress,
                ):
                    for finished in asyncio.as_completed(tasks):
                        digest, outcome = await finished
                        self._record(digest, requests[digest], outcome)
                        progress.update()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _record(self, digest: str, request: LLMRequest, outcome: Outcome) -> None:
        self.journal.append(digest, outcome)
        self.n_asked += 1
        self.prompt_tokens += outcome.prompt_tokens or 0
        self.completion_tokens += outcome.completion_tokens or 0
        unanswered = outcome.failure is not None and outcome.failure.startswith(("no answer", "rejected"))
        self._failures_in_a_row = self._failures_in_a_row + 1 if unanswered else 0
        if self._failures_in_a_row >= _GIVE_UP_AFTER_FAILURES:
            raise UserError(
                f"{self.settings.endpoint}: {self._failures_in_a_row} requests in a row failed, the last "
                f"with {outcome.failure!r}; replies so far are kept in {self.journal.path}; check --base-url "
                "and --model and run again"
            )
        self._note_use(request, outcome)
        kind = request.item_type.__name__
        if kind not in self._has_had_use:
            useless = self._useless.setdefault(kind, [])
            useless.append(outcome)
            if len(useless) >= _GIVE_UP_AFTER_USELESS:
                raise UserError(self._all_are_of_no_use(useless))

    def _note_use(self, request: LLMRequest, outcome: Outcome | None) -> None:
        """One outcome with something that was asked for shows that the server can, in an earlier run too."""
        if outcome is not None and any(map(request.is_of_use, outcome.items)):
            self._has_had_use.add(request.item_type.__name__)

    def _all_are_of_no_use(self, useless: Sequence[Outcome]) -> str:
        kinds = Counter(outcome.failure or "nothing that was asked for" for outcome in useless)
        told = ", ".join(f"{kind} x{n}" for kind, n in sorted(kinds.items()))
        quoted = next((outcome.reply for outcome in reversed(useless) if outcome.reply), None)
        quote = f"; one of them says: {one_line(said_in(quoted), _LONGEST_QUOTE)!r}" if quoted else ""
        return (
            f"{self.settings.endpoint}: the first {len(useless)} replies are of no use ({told}){quote}"
            f"; no more are asked for, and these are kept in {self.journal.path}; try another --model, or "
            "fewer sentences a request with --batch-size"
        )
