"""What a server says where it refuses: its reason in words, what kind of error it is, and how to ask instead.

Servers differ in the ways of asking that they take. Most know JSON schemas, some JSON mode, some neither;
some models take no system message. Which of these a server refuses, it says with one status or another.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from s0_dataset_generation.llm_reply import json_schema_format

if TYPE_CHECKING:
    from pydantic import BaseModel

LONGEST_REASON = 300

_NEXT_FORMAT = {"json_schema": "json_object", "json_object": "text"}
_FORMAT_IN_WORDS = {
    "json_schema": "with a JSON schema",
    "json_object": "in JSON mode",
    "text": "in plain text",
}

# Words by which servers name what they refuse, in lower case.
_FORMAT_WORDS = (
    *("response_format", "response format", "json_schema", "json schema", "json_object", "json mode"),
    *("structured output", "guided", "grammar"),
)
_SYSTEM_WORDS = ("system role", "system message", "role 'system'", 'role "system"', "roles must alternate")

# The statuses that error objects without one stand for, by words in their code and type.
_STATUS_OF_WORDS = (
    (("quota", "rate_limit", "rate limit", "too_many"), 429),
    (("overloaded", "unavailable", "server_error", "internal"), 503),
    (("api_key", "authentication", "unauthorized"), 401),
    (("not_found",), 404),
)
_SAID_NOTHING = 400


@dataclass(frozen=True)
class RequestForm:
    """One way of asking for the same thing.

    Attributes:
        response_format: ``json_schema``, ``json_object`` or ``text``, which sends none.
        has_system_message: False puts its text in front of the user's.
    """

    response_format: str = "json_schema"
    has_system_message: bool = True

    def parameters(self, messages: list[dict[str, str]], item_type: "type[BaseModel]") -> dict[str, Any]:
        """The parameters of the request that depend on the form."""
        if not self.has_system_message:
            text = "\n\n".join(message["content"] for message in messages)
            messages = [{"role": "user", "content": text}]
        if self.response_format == "text":
            return {"messages": messages}
        wanted = {"type": self.response_format}
        if self.response_format == "json_schema":
            wanted = json_schema_format(item_type)
        return {"messages": messages, "response_format": wanted}

    def plainer(self, reason: str) -> "RequestForm | None":
        """The form to try after a refusal, None after the plainest.

        Args:
            reason: the server's.
        """
        if self.has_system_message and _holds(reason, _SYSTEM_WORDS):
            return replace(self, has_system_message=False)
        following = _NEXT_FORMAT.get(self.response_format)
        return None if following is None else replace(self, response_format=following)

    def __str__(self) -> str:
        message = "" if self.has_system_message else " and without a system message"
        return _FORMAT_IN_WORDS[self.response_format] + message


def status_meant(status: int, body: str) -> int:
    """The status that a reply should have had.

    An error object in a reply of status 200 has that of its code, and a server error that names a way of
    asking is a bad request, which asking again does not mend.

    Args:
        status: the reply's own.
        body: its body.
    """
    if status >= 500:
        return 400 if _holds(body, _FORMAT_WORDS) or _holds(body, _SYSTEM_WORDS) else status
    if status >= 300 or '"error"' not in body:
        return status
    try:
        error = _error_in(json.loads(body.lstrip("\ufeff")))
    except (ValueError, RecursionError):
        return status
    return status if error is None else _status_of(error)


def reason_in(body: str) -> str:
    """The reason that the body of an error gives, as it stands there; the body where it is no JSON."""
    try:
        told: object = json.loads(body.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return body.strip()
    told = _error_in(told) or told
    while isinstance(told, Mapping):
        inner = (told.get(key) for key in ("message", "error", "detail", "msg"))
        found = next((value for value in inner if value), None)
        if found is None:
            break
        told = found
    return told if isinstance(told, str) else json.dumps(told, ensure_ascii=False) if told else ""


def one_line(text: str, longest: int = LONGEST_REASON) -> str:
    """The text on one line, without control characters, cut where it is longer."""
    # Twice the length leaves room for blanks that fall together, and bounds the work.
    printable = "".join(one if one.isprintable() else " " for one in text[: 2 * longest])
    line = " ".join(printable.split())
    return line if len(line) <= longest and len(text) <= 2 * longest else f"{line[: longest - 3]}..."


def _error_in(reply: object) -> Mapping[str, Any] | str | None:
    """The error object of a reply, beside or instead of its answer; None without one."""
    if not isinstance(reply, Mapping):
        return None
    places = [reply]
    choices = reply.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        places.append(choices[0])
    for place in places:
        error = place.get("error")
        if error and isinstance(error, Mapping | str):
            return error
    return reply if reply.get("object") == "error" else None


def _status_of(error: Mapping[str, Any] | str) -> int:
    if isinstance(error, str):
        return _SAID_NOTHING
    for key in ("code", "status", "status_code"):
        value = str(error.get(key))
        if len(value) == 3 and value.isdecimal() and 400 <= int(value) <= 599:
            return int(value)
    kind = f"{error.get('code')} {error.get('type')}".lower()
    return next((status for words, status in _STATUS_OF_WORDS if _holds(kind, words)), _SAID_NOTHING)


def _holds(text: str, words: tuple[str, ...]) -> bool:
    lower = text.lower()
    return any(word in lower for word in words)
