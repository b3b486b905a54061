import random

import pytest

from pipeline_common.errors import UserError
from s0_dataset_generation.llm_client import LLMClient, LLMSettings
from s0_dataset_generation.reply_journal import ReplyJournal
from s0_dataset_generation.rubric import find_trait, sentence_id
from s0_dataset_generation.sentence_labelling import _labels_in_agreement, rate_sentences, read_sentences
from tests.fake_llm_server import chat_reply, fake_llm_server, items_reply

SENTENCES = [f"Sentence number {index} is about something." for index in range(23)]


def true_label(sentence):
    return int(sentence.split()[2]) % 4


def honest_items(request):
    return [{"id": item["id"], "label": true_label(item["sentence"])} for item in request.items]


@pytest.fixture
def server():
    with fake_llm_server(lambda request: items_reply(honest_items(request))) as server:
        yield server


@pytest.fixture
def label(server, tmp_path):
    def run(sentences=SENTENCES, batch_size=5, n_raters=None):
        client = LLMClient(
            LLMSettings("m", server.base_url, "none"), ReplyJournal(tmp_path / "journal.jsonl")
        )
        ratings = rate_sentences(client, find_trait("Dishonesty"), sentences, batch_size, 0, n_raters or 1)
        return ratings if n_raters else [rating for (rating,) in ratings]

    return run


def test_each_sentence_gets_the_label_that_was_given_for_it(server, label):
    assert label() == [true_label(sentence) for sentence in SENTENCES]
    assert len(server.requests) == 5


def test_sentences_that_stand_sorted_in_the_file_are_mixed_before_they_are_sent(server, label):
    label()
    sent = [[item["sentence"] for item in request.items] for request in server.requests]
    assert sorted(sentence for batch in sent for sentence in batch) == sorted(SENTENCES)
    assert SENTENCES[:5] not in [sorted(batch) for batch in sent]


def short(items):
    return items[1:]


def renumbered(items):
    return [{**item, "id": str(i)} for i, item in enumerate(items, 1)]


def shifted(items):
    """A labeller that loses the first text and numbers the rest from one."""
    return renumbered(items[1:])


def contradicting(items):
    return [*items, {"id": items[0]["id"], "label": (items[0]["label"] + 1) % 4}]


def out_of_range(items):
    return [{**items[0], "label": 7}, {**items[1], "label": "three"}, *items[2:]]


def with_a_stray(items):
    """A label for a sentence that this request did not hold."""
    stray = sentence_id(SENTENCES[0])
    return items if stray in [item["id"] for item in items] else [*items, {"id": stray, "label": 3}]


def reordered_and_repeated(items):
    return [*items[::-1], items[0]]


@pytest.mark.parametrize(
    "damage",
    [short, renumbered, shifted, contradicting, out_of_range, with_a_stray, reordered_and_repeated],
)
def test_damaged_replies_never_shift_or_invent_a_label(server, label, damage):
    server.script += [lambda request: items_reply(damage(honest_items(request)))] * 4
    assert label() == [true_label(sentence) for sentence in SENTENCES]


def test_a_sentence_that_is_always_refused_stays_without_label_and_takes_no_other_with_it(server, label):
    def respond(request):
        if "number 7 " in request.text:
            return chat_reply(None, refusal="no")
        return items_reply(honest_items(request))

    server.respond = respond
    labels = label(batch_size=8)
    assert labels[7] is None
    assert [given for index, given in enumerate(labels) if index != 7] == [
        true_label(sentence) for index, sentence in enumerate(SENTENCES) if index != 7
    ]
    server.respond = lambda request: items_reply(honest_items(request))
    n_asked = len(server.requests)
    assert label(batch_size=8) == [true_label(sentence) for sentence in SENTENCES]
    assert len(server.requests) == n_asked + 1


def test_a_third_of_all_replies_faulty_and_every_label_is_still_the_given_one(server, label):
    draw = random.Random(3)
    damages = [short, renumbered, shifted, contradicting, out_of_range]

    def respond(request):
        fault = draw.random()
        if fault < 0.15:
            return draw.choice(
                [chat_reply(None, refusal="no"), chat_reply(""), chat_reply("{"), chat_reply("[]")]
            )
        items = honest_items(request)
        return items_reply(draw.choice(damages)(items) if fault < 0.33 and len(items) > 1 else items)

    server.respond = respond
    sentences = [f"Sentence number {index} is about something." for index in range(300)]
    assert label(sentences, batch_size=10) == [true_label(sentence) for sentence in sentences]


def test_raters_each_see_every_sentence_in_an_order_of_their_own(server, label):
    assert label(n_raters=3) == [(true_label(sentence),) * 3 for sentence in SENTENCES]
    orders = [[item["sentence"] for request in server.requests for item in request.items]]
    assert sorted(orders[0]) == sorted(SENTENCES * 3)
    batches = {tuple(sorted(item["sentence"] for item in request.items)) for request in server.requests}
    assert len(batches) == len(server.requests) == 15


def test_raters_are_asked_anew_and_one_raters_missing_rating_is_not_anothers(server, label):
    n_seen = 0

    def respond(request):
        nonlocal n_seen
        if SENTENCES[7] in [item["sentence"] for item in request.items]:
            n_seen += 1
            if n_seen > 1:  # one rater has it, the other never will
                return chat_reply(None, refusal="no")
        return items_reply(honest_items(request))

    server.respond = respond
    ratings = label(n_raters=2)
    assert sum(None in row for row in ratings) == 1
    assert ratings[7].count(None) == 1
    assert all(
        set(row) == {true_label(text)}
        for text, row in zip(SENTENCES, ratings, strict=True)
        if None not in row
    )


def test_property_any_reply_maps_labels_by_id_alone():
    """Whatever comes back, a sentence has a label exactly if its id came with one label and no other."""
    draw = random.Random(11)
    names = [sentence_id(sentence) for sentence in SENTENCES]
    for _ in range(1500):
        asked = draw.sample(names, draw.randrange(1, len(names)))
        replied = [
            {"id": draw.choice([*names, "s1", "1", ""]), "label": draw.randrange(4)}
            for _ in range(draw.randrange(0, 30))
        ]
        found = _labels_in_agreement(asked, replied)
        for name in asked:
            labels = {item["label"] for item in replied if item["id"] == name}
            assert found.get(name) == (labels.pop() if len(labels) == 1 else None)
        assert set(found) <= set(asked)
        shuffled = draw.sample(replied, len(replied))
        assert _labels_in_agreement(asked, shuffled) == found


def test_read_sentences_with_and_without_intended_labels(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("source,sentence\nx,One.\ny,Two.\n")
    assert read_sentences(path) == (["One.", "Two."], None)
    path.write_text("sentence,intended_label\nOne.,3\nTwo.,0\n")
    assert read_sentences(path) == (["One.", "Two."], [3, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nOne.\n", "column 'sentence' is missing; the header has text"),
        ("sentence\n", "no sentences"),
        ("sentence,x\n ,1\n", "line 2: the sentence is blank"),
        ("sentence\nOne.\nOne.\n", "line 3: the same sentence as in line 2"),
        ("sentence,intended_label\nOne.,5\n", "line 2: intended_label is '5'"),
    ],
)
def test_bad_input_is_named_by_line(tmp_path, content, message):
    path = tmp_path / "in.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_sentences(path)
