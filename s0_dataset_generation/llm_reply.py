"""From the body of a chat-completions reply to checked items, or to the reason why there are none.

Servers and models wrap the JSON that they are asked for in many ways. What is undone here is what can
mean one thing only; where two readings are possible, the reply is a failure. All of it takes time in
proportion to the length of the reply: texts are searched from one end to the other, with no pattern that
goes back.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from s0_dataset_generation.reply_journal import Outcome

if TYPE_CHECKING:
    from pydantic import BaseModel

LONGEST_CONTENT = 2_000_000
"""Characters of a reply that are looked at; thousands of sentences, with the thoughts about them."""

_BYTE_ORDER_MARK = "\ufeff"
_FENCE = "```"
_NOT_THE_JSON = "malformed: the content is not the JSON asked for"

_THOUGHT = r"(?:think|thinking|thought|reasoning)"
_THOUGHTS_BEGIN = re.compile(rf"<{_THOUGHT}>|\[THINK\]", re.IGNORECASE | re.ASCII)
_THOUGHTS_END = re.compile(rf"</{_THOUGHT}>|\[/THINK\]", re.IGNORECASE | re.ASCII)
_THOUGHT_PARTS = ("thinking", "redacted_thinking", "reasoning")
_TEXT_PARTS = ("text", "output_text")
_THOUGHT_KEYS = ("reasoning_content", "reasoning")


def read_reply(body: str, item_type: "type[BaseModel]") -> Outcome:
    """The outcome of a chat-completions reply body, whatever it holds.

    Understood are thoughts in tags before the answer, prose around one fenced or bare JSON value,
    content in parts, a list without its object, a comma before a closing bracket, and byte-order marks.
    Items that do not validate are left out, the others stay. Nothing is filled in: a refusal, an
    empty reply or one that is not the JSON asked for is a failure that says so.

    Args:
        body: the HTTP body.
        item_type: model of one item.
    """
    try:
        reply = json.loads(body.lstrip(_BYTE_ORDER_MARK))
        choice = reply["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Outcome(failure="malformed: the body is not a chat completion")
    usage = reply.get("usage")
    tokens = {
        name: usage[name]
        for name in ("prompt_tokens", "completion_tokens")
        if isinstance(usage, dict) and isinstance(usage.get(name), int)
    }
    text, is_refused = _text_of(content)
    if refusal or is_refused or choice.get("finish_reason") == "content_filter":
        return Outcome(failure="refused", **tokens)
    is_cut = choice.get("finish_reason") == "length"
    if text is None:
        return Outcome(failure=_NOT_THE_JSON, **tokens)
    if not text.strip():
        return Outcome(failure="cut off" if is_cut else _why_empty(message), **tokens)
    try:
        raw_items = _items_in(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Outcome(failure="cut off" if is_cut else _NOT_THE_JSON, **tokens)
    items = []
    for raw in raw_items:
        try:
            item = item_type.model_validate(raw).model_dump()
            json.dumps(item, ensure_ascii=False).encode()  # half a surrogate pair could not be written
        except ValueError:  # pydantic's ValidationError and UnicodeEncodeError are both of this kind
            continue
        items.append(item)
    return Outcome(items=items, failure=None if items else "malformed: no valid item", **tokens)


def said_in(body: str) -> str:
    """What the model said: its refusal, its content or its thoughts; where none can be found, the body."""
    try:
        message = json.loads(body.lstrip(_BYTE_ORDER_MARK))["choices"][0]["message"]
        content, _ = _text_of(message.get("content"))
        texts = [message.get("refusal"), content, *map(message.get, _THOUGHT_KEYS)]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        texts = []
    return next((text for text in texts if isinstance(text, str) and text.strip()), body)


def _why_empty(message: dict[str, Any]) -> str:
    if any(message.get(key) for key in _THOUGHT_KEYS):
        return "empty: thoughts without an answer"
    return "empty"


def _text_of(content: Any) -> tuple[str | None, bool]:
    """The text of a message's content, None where that is no text, and whether a part of it is a refusal."""
    if content is None or isinstance(content, str):
        return content or "", False
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return None, False
    texts = []
    for part in content:
        kind = part.get("type")
        if kind == "refusal":
            return None, True
        if kind in _THOUGHT_PARTS:
            continue
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            return None, False
        texts.append(part["text"])
    return "".join(texts), False


def _items_in(content: str) -> list[Any]:
    """The items of the answer.

    Raises:
        ValueError: no JSON, or more than one thing could be the answer.
        KeyError, TypeError: JSON of another shape.
        RecursionError: JSON nested too deeply.
    """
    if len(content) > LONGEST_CONTENT:
        raise ValueError("too long")
    text = content.strip().strip(_BYTE_ORDER_MARK)
    try:
        value = _loads(text)
    except ValueError:
        value = _loads(_without_last_commas(_bracketed(_inside_fence(_after_thoughts(text)))))
    items = value if isinstance(value, list) else value["items"]
    if not isinstance(items, list):
        raise TypeError("items is no list")
    return items


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_one_value_a_key)


def _one_value_a_key(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    # {"id": "t1", "label": 1, "label": 3}: Python keeps the last, but which was meant nobody can tell.
    result = dict(pairs)
    return result if len(result) == len(pairs) else None


def _after_thoughts(text: str) -> str:
    """What follows the last closing tag; many chat templates put the opening one into the prompt."""
    end = 0
    for tag in _THOUGHTS_END.finditer(text):
        end = tag.end()
    answer = text[end:]
    begin = _THOUGHTS_BEGIN.search(answer)
    if begin is not None and "{" not in answer[: begin.start()]:
        raise ValueError("thoughts that do not end: what stands in them is no answer")
    return answer


def _inside_fence(text: str) -> str:
    """What a Markdown fence encloses; all of a text without one.

    From the first fence to the last, so that what stands between two blocks spoils the JSON: which block
    was the answer, nobody can tell. Neither can they with an object outside.
    """
    start = text.find(_FENCE)
    if start < 0:
        return text
    end = text.rfind(_FENCE)
    inside = text[start + len(_FENCE) : end] if end > start else text[start + len(_FENCE) :]
    outside = text[:start] + (text[end + len(_FENCE) :] if end > start else "")
    if "{" in outside:
        raise ValueError("an object beside the fence")
    return inside


def _bracketed(text: str) -> str:
    """The text from the first bracket to the last: prose with brackets of its own makes it no JSON."""
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    end = max(text.rfind("}"), text.rfind("]"))
    return text[min(starts) : end + 1] if starts else ""


def _without_last_commas(text: str) -> str:
    """The JSON text without commas that nothing but blanks parts from a closing bracket."""
    cuts = []
    comma: int | None = None
    in_text = is_escaped = False
    for place, character in enumerate(text):
        if in_text:
            in_text = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
        elif character == ",":
            comma = place
        elif character not in " \t\r\n":
            if character in "]}" and comma is not None:
                cuts.append(comma)
            comma = None
            in_text = character == '"'
    kept = [-1, *cuts]
    return "".join(text[cut + 1 : end] for cut, end in zip(kept, [*cuts, len(text)], strict=True))


def json_schema_format(item_type: "type[BaseModel]") -> dict[str, Any]:
    """The ``response_format`` that asks for ``{"items": [...]}`` with items of that type."""
    schema = {
        "type": "object",
        "properties": {"items": {"type": "array", "items": item_type.model_json_schema()}},
        "required": ["items"],
        "additionalProperties": False,
    }
    name = item_type.__name__
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
