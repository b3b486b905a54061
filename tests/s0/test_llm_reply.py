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


def test_schema_names_every_key_and_forbids_others():
    schema = json_schema_format(GivenLabel)["json_schema"]
    item = schema["schema"]["properties"]["items"]["items"]
    assert schema["strict"] is True
    assert item["additionalProperties"] is False
    assert sorted(item["required"]) == ["id", "label"]
    assert item["properties"]["label"]["enum"] == [0, 1, 2, 3]
