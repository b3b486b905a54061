"""The only module that talks to an LLM: a chat completion, retried, in a form that the server takes."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_common.errors import UserError
from s0_dataset_generation.llm_refusals import RequestForm, one_line, reason_in, status_meant
from s0_dataset_generation.llm_reply import read_reply
from s0_dataset_generation.reply_journal import Outcome

if TYPE_CHECKING:
    import openai

    from s0_dataset_generation.llm_client import LLMRequest, LLMSettings

_LONGEST_PAUSE_SECONDS = 120
_LONGEST_ERROR = 20_000
_SHORTEST_SECRET = 8
"""Characters. Keys like ``none`` or ``ollama`` are no secrets; hiding them would blank out words."""

_log = logging.getLogger(__name__)


class Connection:
    """Asks a server, and finds out once in which form it takes requests.

    Args:
        settings: where and how.
        journal: where replies are kept, for messages.
        env_file: where a key may stand, for messages.
    """

    def __init__(self, settings: "LLMSettings", journal: Path, env_file: Path) -> None:
        self.settings = settings
        self._journal = journal
        self._env_file = env_file
        self._form = RequestForm()
        self._form_is_decided = False

    def open(self, n_retries: int) -> "openai.AsyncOpenAI":
        """The client library's client, to be used as an asynchronous context.

        The library retries 408, 409, 429, 5xx, timeouts and dropped connections with exponential
        backoff and jitter, and obeys Retry-After up to two minutes.
        """
        import openai

        return openai.AsyncOpenAI(
            api_key=self.settings.api_key,
            base_url=self.settings.base_url,
            max_retries=n_retries,
            timeout=self.settings.timeout_seconds,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [_mend_status]}),
        )

    async def ask(self, client: "openai.AsyncOpenAI", request: "LLMRequest") -> Outcome:
        """What comes of one request.

        Raises:
            UserError: the key or the model is refused, the quota is used up, or the server asks for a
                longer pause than a run can wait.
        """
        import openai

        try:
            body = await self._complete(client, request)
            outcome = read_reply(body, request.item_type)
            return dataclasses.replace(outcome, reply=self._hide_key(body))
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"{self.settings.endpoint}: the key was refused ({error.status_code}); set a valid "
                f"OPENAI_API_KEY in {self._env_file} or in the environment{self._server_says(error)}"
            ) from None
        except openai.NotFoundError as error:
            raise UserError(
                f"{self.settings.endpoint}: no model {self.settings.model!r} there (404); check --model and "
                f"--base-url (which ends in /v1 on most servers){self._server_says(error)}"
            ) from None
        except (openai.RateLimitError, openai.InternalServerError) as error:
            if error.code == "insufficient_quota":
                raise UserError(
                    f"{self.settings.endpoint}: the account's quota is used up "
                    f"(429){self._server_says(error)}"
                ) from None
            # The client library waits for shorter ones.
            if (pause := _requested_pause(error.response.headers)) > _LONGEST_PAUSE_SECONDS:
                raise UserError(
                    f"{self.settings.endpoint}: the server asks for a pause of {pause:.0f} seconds "
                    f"({error.status_code}); replies so far are kept in {self._journal}; run the same "
                    f"command again after that{self._server_says(error)}"
                ) from None
            return Outcome(failure=f"no answer: {self._code_and_reason(error)}")
        except openai.APIConnectionError as error:
            return Outcome(failure=f"no answer: {self._without_key(str(error))}")
        except openai.APIStatusError as error:
            return Outcome(failure=f"rejected: {self._code_and_reason(error)}")

    async def _complete(self, client: "openai.AsyncOpenAI", request: "LLMRequest") -> str:
        """The body of the reply, in the first form that the server takes; the run then keeps to that form."""
        import openai

        if self._form_is_decided:
            return await self._send(client, request, self._form)
        form, patient_client = RequestForm(), client
        forms_of_reason: dict[str, list[str]] = {}
        while True:
            try:
                body = await self._send(client, request, form)
                break
            except (
                openai.BadRequestError,
                openai.NotFoundError,
                openai.UnprocessableEntityError,
                openai.InternalServerError,
            ) as error:
                following = form.plainer(reason_in(_text(error.response)))
                # Meanwhile another request may have found the form that the server takes.
                if self._form_is_decided and self._form != form:
                    return await self._send(patient_client, request, self._form)
                pause = _requested_pause(error.response.headers)
                if self._form_is_decided or following is None or pause > _LONGEST_PAUSE_SECONDS:
                    raise
                forms_of_reason.setdefault(self._code_and_reason(error), []).append(str(form))
                if error.status_code >= 500:
                    # It was asked often enough for a server that is merely busy.
                    client = client.with_options(max_retries=0)
                form = following
        if not self._form_is_decided:
            self._form, self._form_is_decided = form, True
            if forms_of_reason:
                _log.info(
                    "the server refuses requests %s: for the rest of the run they are made %s, and the "
                    "replies checked here",
                    ", ".join(
                        f"{' and '.join(forms)} ({reason})" for reason, forms in forms_of_reason.items()
                    ),
                    form,
                )
        return body

    async def _send(self, client: "openai.AsyncOpenAI", request: "LLMRequest", form: RequestForm) -> str:
        # Typed for literal dictionaries; ours are built at run time.
        create: Callable[..., Any] = client.chat.completions.with_raw_response.create
        parameters = form.parameters(request.messages, request.item_type)
        reply = await create(model=self.settings.model, **parameters)
        return _text(reply)

    def _server_says(self, error: "openai.APIStatusError") -> str:
        reason = self._without_key(reason_in(_text(error.response)))
        return f"; the server says: {reason}" if reason else ""

    def _code_and_reason(self, error: "openai.APIStatusError") -> str:
        reason = self._without_key(reason_in(_text(error.response)))
        return f"Error code: {error.status_code}" + (f" - {reason}" if reason else "")

    def _without_key(self, text: str) -> str:
        # Before the text is cut: half a key would not be found. Servers quote keys with stars in the middle.
        words = self._hide_key(text)[:_LONGEST_ERROR].split()
        return one_line(" ".join("(key)" if "***" in word else word for word in words))

    def _hide_key(self, text: str) -> str:
        key = self.settings.api_key
        return text if len(key) < _SHORTEST_SECRET else text.replace(key, "(key)")


def _requested_pause(headers: Mapping[str, str]) -> float:
    """Seconds that the header Retry-After asks for, as a number or as a date; 0 without it."""
    text = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return 0.0


async def _mend_status(response: Any) -> None:
    """Give a reply the status that it should have had, before the client library decides what to do."""
    await response.aread()
    response.status_code = status_meant(response.status_code, _text(response))


def _text(response: Any) -> str:
    """The body; JSON is UTF-8 by its own standard, whatever charset the header names."""
    text: str = response.content.decode("utf-8", "replace")
    return text
