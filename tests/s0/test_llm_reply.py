import json
import random

import pytest

from s0_dataset_generation.llm_reply import json_schema_format, read_reply
from s0_dataset_generation.sentence_generation import WrittenSentence
from s0_dataset_generation.sentence_labelling import GivenLabel
from tests.fake_llm_server import chat_reply, items_reply

GOOD = {"id": "t1", "label": 3}


def test_valid_items_stay_and_others_are_left_out():
    bad = [
        {"id": "t2", "label": 4},
        {"id": "t3", "label": "2"},
        {"id": "t4", "label": True},
        {"id": "t5", "label": 2.0},
        {"id": "t6", "label": None},
        {"id": "t7"},
        {"id": 8, "label": 1},
        "t9: 1",
        None,
    ]
    outcome = read_reply(items_reply([*bad, {**GOOD, "why": "further keys do no harm"}]).body, GivenLabel)
    assert outcome.items == [GOOD]
    assert outcome.failure is None
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (100, 10)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("", "malformed"),
        ("<html>busy</html>", "malformed"),
        ("[]", "malformed"),
        ('{"choices": []}', "malformed"),
        ('{"choices": [{"message": null}]}', "malformed"),
        (chat_reply(None).body, "empty"),
        (chat_reply("  ").body, "empty"),
        (chat_reply(None, refusal="I cannot help with that").body, "refused"),
        (chat_reply("", finish_reason="content_filter").body, "refused"),
        (chat_reply('{"items": [{"id": "t1", "la', finish_reason="length").body, "cut off"),
        (chat_reply("3, 2, 1").body, "malformed"),
        (chat_reply("[[[" * 100_000).body, "malformed"),
        (chat_reply('{"labels": []}').body, "malformed"),
        (chat_reply('{"items": {"id": "t1", "label": 3}}').body, "malformed"),
        (items_reply([]).body, "malformed"),
        (chat_reply('{"items": [], "items": [{"id": "t1", "label": 3}]}').body, "malformed"),
        (chat_reply('{"items": [{"id": "t1", "label": 3, "label": 1}]}').body, "malformed"),
        (chat_reply('{"items": [{"id": "t1", "id": "t2", "label": 3}]}').body, "malformed"),
        (items_reply([{"id": "t1", "sentence": "\ud800 broken text"}]).body, "malformed"),
    ],
)
def test_what_is_no_answer_is_a_failure_without_items(body, failure):
    outcome = read_reply(body, WrittenSentence if "broken" in body else GivenLabel)
    assert outcome.items == []
    assert outcome.failure is not None
    assert outcome.failure.startswith(failure)


def test_a_markdown_fence_around_the_json_is_taken_off():
    content = "```json\n" + json.dumps({"items": [GOOD]}) + "\n```"
    assert read_reply(chat_reply(content).body, GivenLabel).items == [GOOD]


def test_property_damaged_replies_never_yield_an_item_that_was_not_in_them():
    draw = random.Random(7)
    given = [{"id": f"t{i}", "label": i % 4} for i in range(6)]
    content = json.dumps({"items": given})
    n_items = 0
    for _ in range(2000):
        start, length = draw.randrange(len(content)), draw.randrange(6)
        inserted = "".join(draw.choice('{}[]",:0123456789 nul\\') for _ in range(draw.randrange(4)))
        damaged = content[:start] + inserted + content[start + length :]
        outcome = read_reply(chat_reply(damaged).body, GivenLabel)
        n_items += len(outcome.items)
        for item in outcome.items:
            assert type(item["label"]) is int
            assert 0 <= item["label"] <= 3
            assert json.dumps(item["id"])[1:-1] in damaged
        assert bool(outcome.items) != bool(outcome.failure)
    assert n_items > 100  # the damage leaves enough replies readable for the loop to mean something


def anything(draw, depth=0):
    """A random JSON value, made of what replies are made of."""
    kind = draw.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return draw.choice([None, True, False, 0, 1, 3, 4, -1, 2.0, 1e999, 10**30])
    if kind < 6:
        return "".join(draw.choice(ALPHABET) for _ in range(draw.randrange(9)))
    if kind < 7:
        return [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    keys = ["items", "id", "label", "choices", "message", "content", "refusal", "usage", "finish_reason", "x"]
    return {draw.choice(keys): anything(draw, depth + 1) for _ in range(draw.randrange(5))}


ALPHABET = (*'{}[]",:\\`\n 0123tx', "\ud800", "\x00", "\u2028", "é", "𝄞", "items", "```json", "null", "1e9")


def test_property_no_body_whatever_raises_or_is_both_a_failure_and_an_answer():
    draw = random.Random(1)
    kinds = set()
    for _ in range(4000):
        value = anything(draw)
        shape = draw.randrange(4)
        body = json.dumps(value)
        if shape == 0:
            body = "".join(draw.choice(ALPHABET) for _ in range(draw.randrange(60)))
        elif shape == 1:
            body = json.dumps({"choices": [value], "usage": anything(draw)})
        elif shape == 2:
            content = value if draw.random() < 0.3 else json.dumps(value)
            body = json.dumps({"choices": [{"message": {"content": content}}], "usage": anything(draw)})
        outcome = read_reply(body, GivenLabel)
        assert bool(outcome.items) != bool(outcome.failure)
        for tokens in (outcome.prompt_tokens, outcome.completion_tokens):
            assert tokens is None or isinstance(tokens, int)
        kinds.add((outcome.failure or "answer").split(":")[0])
    assert {"malformed", "empty", "refused"} <= kinds  # the bodies reach every branch


def test_property_valid_items_come_back_whole_and_in_order_from_among_any_junk():
    draw = random.Random(2)
    for _ in range(1000):
        valid = [
            {"id": f"t{draw.randrange(50)}", "label": draw.randrange(4)} for _ in range(draw.randrange(6))
        ]
        mixed = list(valid)
        for _ in range(draw.randrange(5)):
            junk = anything(draw)
            is_valid = isinstance(junk, dict) and type(junk.get("label")) is int and "id" in junk
            if not is_valid:
                place = draw.randrange(len(mixed) + 1)
                mixed.insert(place, junk)
        outcome = read_reply(items_reply(mixed).body, GivenLabel)
        assert outcome.items == valid
        content = json.dumps({"items": mixed}, indent=draw.choice([None, 0, 4]))
        fenced = draw.choice(["```json\n%s\n```", "```\n%s```", " \n```json %s ```\n", "%s"]) % content
        assert read_reply(chat_reply(fenced).body, GivenLabel).items == valid


def test_property_a_reply_cut_anywhere_gives_no_item_at_all():
    whole = json.dumps({"items": [{"id": f"t{i}", "label": i % 4} for i in range(5)]})
    for end in range(len(whole)):
        cut = chat_reply(whole[:end], finish_reason="length")
        assert read_reply(cut.body, GivenLabel).items == []
        assert read_reply(cut.body[: end * 3], GivenLabel).items == []


def test_schema_names_every_key_and_forbids_others():
    schema = json_schema_format(GivenLabel)["json_schema"]
    item = schema["schema"]["properties"]["items"]["items"]
    assert schema["strict"] is True
    assert item["additionalProperties"] is False
    assert sorted(item["required"]) == ["id", "label"]
    assert item["properties"]["label"]["enum"] == [0, 1, 2, 3]
