"""From the body of a chat-completions reply to checked items, or to the reason why there are none."""

import json
import re
from typing import TYPE_CHECKING, Any

from s0_dataset_generation.reply_journal import Outcome

if TYPE_CHECKING:
    from pydantic import BaseModel


def read_reply(body: str, item_type: "type[BaseModel]") -> Outcome:
    """The outcome of a chat-completions reply body, whatever it holds.

    Items that do not validate are left out, the others stay. Nothing is filled in: a refusal, an
    empty reply or one that is not the JSON asked for is a failure that says so.

    Args:
        body: the HTTP body.
        item_type: model of one item.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        content = choice["message"].get("content")
        refusal = choice["message"].get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Outcome(failure="malformed: the body is not a chat completion")
    usage = reply.get("usage")
    tokens = {
        name: usage[name]
        for name in ("prompt_tokens", "completion_tokens")
        if isinstance(usage, dict) and isinstance(usage.get(name), int)
    }
    if refusal or choice.get("finish_reason") == "content_filter":
        return Outcome(failure="refused", **tokens)
    if not isinstance(content, str) or not content.strip():
        return Outcome(failure="empty", **tokens)
    # Some servers wrap JSON in a Markdown fence even in JSON mode.
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", content, flags=re.DOTALL)
    try:
        raw_items = json.loads(fenced[1] if fenced else content, object_pairs_hook=_one_value_a_key)["items"]
    except (ValueError, KeyError, TypeError, RecursionError):
        cut = choice.get("finish_reason") == "length"
        return Outcome(
            failure="cut off" if cut else "malformed: the content is not the JSON asked for", **tokens
        )
    items = []
    for raw in raw_items if isinstance(raw_items, list) else []:
        try:
            item = item_type.model_validate(raw).model_dump()
            json.dumps(item, ensure_ascii=False).encode()  # half a surrogate pair could not be written
        except ValueError:  # pydantic's ValidationError and UnicodeEncodeError are both of this kind
            continue
        items.append(item)
    return Outcome(items=items, failure=None if items else "malformed: no valid item", **tokens)


def _one_value_a_key(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    # {"id": "t1", "label": 1, "label": 3}: Python keeps the last, but which was meant nobody can tell.
    result = dict(pairs)
    return result if len(result) == len(pairs) else None


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
