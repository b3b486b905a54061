"""The only module that talks to an LLM: chat completions with structured output, retried and journalled."""

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline_common.command_line import positive_int
from pipeline_common.errors import UserError
from pipeline_common.files import sha256_of_json
from s0_dataset_generation.llm_reply import json_schema_format, read_reply
from s0_dataset_generation.reply_journal import Outcome, ReplyJournal

if TYPE_CHECKING:
    import openai
    from pydantic import BaseModel

ENV_FILE = Path(__file__).parent / ".env"
DEFAULT_MODEL = "gpt-4.1-mini"
PUBLIC_ENDPOINT = "https://api.openai.com/v1"

# The client library retries 408, 409, 429, 5xx, timeouts and dropped connections with exponential
# backoff and jitter, and obeys Retry-After up to two minutes.
_RETRIES = 5
_LONGEST_PAUSE_SECONDS = 120
_GIVE_UP_AFTER_FAILURES = 4

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
    """

    messages: list[dict[str, str]]
    item_type: "type[BaseModel]"
    attempt: str

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
        self._json_schema = True
        self._failures_in_a_row = 0
        self._has_asked = False

    def ask(self, requests: Sequence[LLMRequest], description: str) -> list[Outcome]:
        """The outcomes of the requests, in their order; those in the journal come from there.

        Args:
            requests: what to ask.
            description: for the progress bar.

        Raises:
            UserError: the key or the model is refused, the quota is used up, or the server gives no
                usable answer several times in a row.
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
        if fresh:
            asyncio.run(self._ask_all(fresh, description))
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
        import openai
        from tqdm import tqdm

        gate = asyncio.Semaphore(self.settings.concurrency)
        async with openai.AsyncOpenAI(
            api_key=self.settings.api_key,
            base_url=self.settings.base_url,
            max_retries=_RETRIES,
            timeout=self.settings.timeout_seconds,
        ) as client:

            async def ask_one(digest: str, request: LLMRequest) -> tuple[str, Outcome]:
                async with gate:
                    return digest, await self._ask_one(client, request)

            tasks = [asyncio.create_task(ask_one(digest, request)) for digest, request in requests.items()]
            try:
                with tqdm(total=len(tasks), desc=description, unit="request") as progress:
                    for finished in asyncio.as_completed(tasks):
                        digest, outcome = await finished
                        self._record(digest, outcome)
                        progress.update()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _record(self, digest: str, outcome: Outcome) -> None:
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

    async def _ask_one(self, client: "openai.AsyncOpenAI", request: LLMRequest) -> Outcome:
        import openai

        try:
            body = await self._complete(client, request)
            outcome = read_reply(body, request.item_type)
            return dataclasses.replace(outcome, reply=self._hide_key(body))
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            # The server's own text may quote the key, so it is not shown.
            raise UserError(
                f"{self.settings.endpoint}: the key was refused ({error.status_code}); set a valid "
                f"OPENAI_API_KEY in {ENV_FILE} or in the environment"
            ) from None
        except openai.NotFoundError:
            raise UserError(
                f"{self.settings.endpoint}: no model {self.settings.model!r} there (404); check --model and "
                "--base-url (which ends in /v1 on most servers)"
            ) from None
        except (openai.RateLimitError, openai.InternalServerError) as error:
            if error.code == "insufficient_quota":
                raise UserError(f"{self.settings.endpoint}: the account's quota is used up (429)") from None
            # The client library waits for shorter ones.
            if (pause := _requested_pause(error.response.headers)) > _LONGEST_PAUSE_SECONDS:
                raise UserError(
                    f"{self.settings.endpoint}: the server asks for a pause of {pause:.0f} seconds "
                    f"({error.status_code}); replies so far are kept in {self.journal.path}; run the same "
                    "command again after that"
                ) from None
            return Outcome(failure=self._without_key(f"no answer: {error}"))
        except openai.APIConnectionError as error:
            return Outcome(failure=self._without_key(f"no answer: {error}"))
        except openai.APIStatusError as error:
            return Outcome(failure=self._without_key(f"rejected: {error}"))

    async def _complete(self, client: "openai.AsyncOpenAI", request: LLMRequest) -> str:
        """The body of the reply, asking for JSON mode where the server has no JSON schemas."""
        import openai

        def ask(response_format: dict[str, Any]) -> Awaitable[Any]:
            # Typed for literal dictionaries; ours are built at run time.
            create: Callable[..., Awaitable[Any]] = client.chat.completions.with_raw_response.create
            return create(
                model=self.settings.model, messages=request.messages, response_format=response_format
            )

        if self._json_schema:
            try:
                return (await ask(json_schema_format(request.item_type))).text
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                pass  # no JSON schemas here, or a bad request: JSON mode tells which
        text = (await ask({"type": "json_object"})).text
        if self._json_schema:
            _log.info("the server refuses JSON schemas: JSON mode and our own checks are used")
            self._json_schema = False
        return text

    def _without_key(self, text: str) -> str:
        # Before the text is cut: half a key would not be found.
        return self._hide_key(" ".join(text.split()))[:300]

    def _hide_key(self, text: str) -> str:
        # "none" stands for no key and would blank out a common word.
        key = self.settings.api_key
        return text if key == "none" else text.replace(key, "(key)")


def _requested_pause(headers: Mapping[str, str]) -> float:
    """Seconds that the header Retry-After asks for, as a number or as a date; 0 without it."""
    text = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return 0.0
