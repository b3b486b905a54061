import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s0_dataset_generation.llm_reply import LONGEST_CONTENT, json_schema_format, read_reply, said_in
from s0_dataset_generation.sentence_generation import WrittenSentence
from s0_dataset_generation.sentence_labelling import GivenLabel
from tests.fake_llm_server import chat_reply, items_reply

GOOD = {"id": "t1", "label": 3}


def test_valid_items_stay_and_others_are_left_out():
    bad = [
        {"id": "t2", "label": 4},
        {"id": "t3", "label": "two"},
        {"id": "t4", "label": True},
        {"id": "t5", "label": 2.5},
        {"id": "t5", "label": "2.0"},
        {"id": "t5", "label": "\u0662"},
        {"id": "t5", "label": 1e999},
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


ITEMS = [{"id": "t1", "label": 3}, {"id": "t2", "label": 0}]
ANSWER = json.dumps({"items": ITEMS})
OTHER = json.dumps({"items": [{"id": "t1", "label": 1}]})

UNDERSTOOD = {
    "plain": ANSWER,
    "a fence": f"```json\n{ANSWER}\n```",
    "a fence in capitals": f"```JSON\n{ANSWER}\n```",
    "a fence without a word": f"```\n{ANSWER}```",
    "prose around a fence": f"Here are the labels:\n```json\n{ANSWER}\n```\nTell me if you need more.",
    "prose with brackets around a fence": f"Labels [0-3]:\n```json\n{ANSWER}\n```\nt2 is a [hard] one.",
    "a fence that does not end": f"Sure.\n```json\n{ANSWER}\n",
    "prose without a fence": f"Here is the JSON you asked for: {ANSWER}\n\nI hope it helps!",
    "thoughts": f'<think>\nLet me see, {{"items": maybe}}.\n</think>\n\n{ANSWER}',
    "thoughts that weigh another answer": f"<think>{OTHER}? No.</think>{ANSWER}",
    "thoughts whose beginning the template has": f"Let me see {{1, 2}}.\n</think>\n{ANSWER}",
    "thoughts twice": f"<think>one</think> <think>two {{}}</think> {ANSWER}",
    "thoughts by other names": f"<Thinking>a</Thinking><reasoning>b</reasoning>[THINK]c[/THINK]{ANSWER}",
    "thoughts, prose and a fence": f"<think>x</think>\nThe labels:\n```json\n{ANSWER}\n```",
    "a comma after the last item": ANSWER[:-2] + ",]}",
    "a comma after the last key": ANSWER.replace("0}", "0 ,\n }")[:-1] + " ,\n}",
    "a bare list": json.dumps(ITEMS),
    "a bare list in a fence": f"```json\n{json.dumps(ITEMS, indent=1)}\n```",
    "a byte-order mark": f"\ufeff{ANSWER}",
    "parts": [{"type": "text", "text": ANSWER[:20]}, {"type": "text", "text": ANSWER[20:]}],
    "parts with thoughts": [
        {"type": "thinking", "thinking": [{"type": "text", "text": OTHER}]},
        {"type": "reasoning", "text": OTHER},
        {"type": "text", "text": ANSWER},
    ],
    "labels as texts": json.dumps({"items": [{**item, "label": str(item["label"])} for item in ITEMS]}),
    "labels as floats": json.dumps({"items": [{**item, "label": float(item["label"])} for item in ITEMS]}),
    "all at once": "\ufeffHm.</think>Here:\n```JSON\n"
    + json.dumps(ITEMS).replace("3", '"3"')[:-1]
    + ",\n]\n```\nBye",
}


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_what_can_mean_one_thing_only_is_understood(kind):
    outcome = read_reply(chat_reply(UNDERSTOOD[kind]).body, GivenLabel)
    assert outcome.items == ITEMS
    assert [type(item["label"]) for item in outcome.items] == [int, int]
    assert outcome.failure is None


def test_a_body_with_a_byte_order_mark_is_understood():
    assert read_reply("\ufeff" + chat_reply(ANSWER).body, GivenLabel).items == ITEMS


AMBIGUOUS = {
    "two fences": f"```json\n{ANSWER}\n```\nor\n```json\n{OTHER}\n```",
    "an object beside the fence": f"{OTHER}\n```json\n{ANSWER}\n```",
    "an object after the fence": f"```json\n{ANSWER}\n```\nNo, rather {OTHER}",
    "two objects": f"{ANSWER}\n{OTHER}",
    "two objects in prose": f"First {OTHER}, then {ANSWER}.",
    "prose with brackets": f"By the scale [0-3]: {ANSWER}",
    "two parts with an answer each": [{"type": "text", "text": ANSWER}, {"type": "text", "text": OTHER}],
    "a part of an unknown kind": [{"type": "text", "text": ANSWER}, {"type": "draft", "text": OTHER}],
    "parts that are no objects": [ANSWER],
    "thoughts that do not end": f"<think>It could be {ANSWER}",
    "an answer in the thoughts alone": f"<think>{ANSWER}</think>",
    "an end of thoughts within a sentence": '<think>a</think>{"items": [{"id": "x</think>", "label": 1}]}',
    "two commas": ANSWER[:-2] + ",,]}",
    "a comma between nothing": '{"items": [,]}',
    "single quotes": ANSWER.replace('"', "'"),
    "another key": json.dumps({"GivenLabel": {"items": ITEMS}}),
    "a JSON text in a JSON text": json.dumps(ANSWER),
    "lines of objects": "\n".join(map(json.dumps, ITEMS)),
    "an item by itself": json.dumps(ITEMS[0]),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_could_mean_two_things_is_refused(kind):
    outcome = read_reply(chat_reply(AMBIGUOUS[kind]).body, GivenLabel)
    assert outcome.items == []
    assert outcome.failure.split(":")[0] in ("malformed", "empty")


@pytest.mark.parametrize(
    ("message", "finish", "failure"),
    [
        ({"content": "", "reasoning_content": ANSWER}, "stop", "empty: thoughts without an answer"),
        ({"content": None, "reasoning": ANSWER}, "stop", "empty: thoughts without an answer"),
        ({"content": None, "reasoning_content": "I think"}, "length", "cut off"),
        ({"content": "<think>I think"}, "length", "cut off"),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "stop", "refused"),
        ({"content": []}, "stop", "empty"),
        ({"content": " " * (LONGEST_CONTENT + 1) + ANSWER}, "stop", "malformed: the content is not the JSON"),
    ],
)
def test_replies_without_an_answer_say_what_they_lack(message, finish, failure):
    body = json.dumps({"choices": [{"message": message, "finish_reason": finish}]})
    outcome = read_reply(body, GivenLabel)
    assert outcome.items == []
    assert outcome.failure.startswith(failure)


def test_what_was_said_is_found_for_a_quotation():
    assert said_in(chat_reply("Hello").body) == "Hello"
    assert said_in(chat_reply(None, refusal="I can't").body) == "I can't"
    assert said_in(chat_reply([{"type": "text", "text": "Hello"}]).body) == "Hello"
    assert said_in('{"choices": [{"message": {"content": "", "reasoning_content": "Hm"}}]}') == "Hm"
    assert said_in("<html>busy</html>") == "<html>busy</html>"


N = 200_000
LONG = {
    "a fence and newlines": "```" + "\n" * N,
    "a fence, newlines and a word": "```json" + "\n" * N + "x",
    "fences": "```" * N,
    "openings": "<think>" * N,
    "closings": "</think>" * N,
    "half a tag": "<" * N + "</think" * 1000,
    "brackets": "[" * N,
    "closing brackets": "x" + "]" * N,
    "commas": "{" + "," * N + "]",
    "commas and blanks": "[" + ",    " * N + "]",
    "open texts": '["' + '\\"' * N,
    "backslashes": '["' + "\\" * N,
    "blanks": " " * N + "x" + " " * N,
    "braces in a fence": "```{" + "}{" * N + "```",
}


@pytest.mark.parametrize("kind", LONG)
def test_no_text_takes_more_than_time_in_proportion_to_its_length(kind):
    body = chat_reply(LONG[kind]).body
    start = time.perf_counter()
    assert read_reply(body, GivenLabel).items == []
    # 0.3 s at most on a slow machine; what goes back over the text would take minutes.
    assert time.perf_counter() - start < 5


PROSE = st.text(st.characters(codec="utf-8", exclude_characters="{}[]`<>"), max_size=40)
LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(LABELS, PROSE, PROSE, PROSE, st.booleans(), st.booleans(), st.booleans(), st.data())
def test_property_any_prose_around_an_answer_leaves_it_as_it_is(
    labels, thought, before, after, thinks, is_fenced, is_bare, data
):
    items = [{"id": f"t{number}", "label": label} for number, label in enumerate(labels)]
    written = [
        {**item, "label": data.draw(st.sampled_from([int, float, str]))(item["label"])} for item in items
    ]
    text = json.dumps(
        written if is_bare else {"items": written}, indent=data.draw(st.sampled_from([None, 1]))
    )
    text = f"```json\n{text}\n```" if is_fenced else text
    text = f"{before}{text}{after}"
    text = f"<think>{thought}{ANSWER}</think>{text}" if thinks else text
    assert read_reply(chat_reply(text).body, GivenLabel).items == items


PIECES = [
    *[ANSWER] * 4,
    OTHER,
    "```",
    "```json\n",
    "<think>",
    "</think>",
    "so",
    "\n",
    ",",
    "[",
    "]",
    "{",
    "}",
    '"',
    "\\",
]


def test_property_no_arrangement_yields_but_one_of_the_answers_that_stand_in_it():
    n_read = 0

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.sampled_from(PIECES), max_size=8))
    def property_(pieces):
        nonlocal n_read
        outcome = read_reply(chat_reply("".join(pieces)).body, GivenLabel)
        assert bool(outcome.items) != bool(outcome.failure)
        if outcome.items:
            n_read += 1
            # Another one may stand in thoughts that ended before; it is no answer.
            end = len(pieces) - pieces[::-1].index("</think>") if "</think>" in pieces else 0
            answers = [json.loads(piece)["items"] for piece in pieces[end:] if piece in (ANSWER, OTHER)]
            assert answers == [outcome.items]

    property_()
    assert n_read > 25  # enough are read for the property to mean something


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
            label = junk.get("label") if isinstance(junk, dict) else None
            means_a_label = type(label) in (int, float, str) and str(label) in ["0", "1", "2", "3", "2.0"]
            if not means_a_label:
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
