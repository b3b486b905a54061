import random

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s0_dataset_generation.llm_client import LLMClient, LLMSettings
from s0_dataset_generation.reply_journal import ReplyJournal
from s0_dataset_generation.rubric import find_trait, sentence_id
from s0_dataset_generation.sentence_labelling import (
    agreement_report,
    agreement_text,
    label_sentences,
    read_sentences,
)
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
    def run(sentences=SENTENCES, batch_size=5):
        client = LLMClient(
            LLMSettings("m", server.base_url, "none"), ReplyJournal(tmp_path / "journal.jsonl")
        )
        return label_sentences(client, find_trait("Dishonesty"), sentences, batch_size, seed=0)

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
    return [{**items[0], "label": 7}, {**items[1], "label": "3"}, *items[2:]]


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


def test_agreement_against_the_definition():
    draw = np.random.default_rng(0)
    intended = draw.integers(0, 4, 200)
    judged = np.clip(intended + draw.integers(-1, 2, 200), 0, 3)
    table, kappa = agreement_report(intended.tolist(), judged.tolist())
    observed = np.zeros((4, 4))
    for one, other in zip(intended, judged, strict=True):
        observed[one, other] += 1
    weights = np.subtract.outer(np.arange(4), np.arange(4)) ** 2
    expected = np.outer(observed.sum(1), observed.sum(0)) / 200
    assert table == observed.astype(int).tolist()
    assert kappa == pytest.approx(1 - (weights * observed).sum() / (weights * expected).sum(), abs=1e-12)


def test_agreement_that_is_undefined_is_none():
    assert agreement_report([2, 2], [2, 2])[1] is None
    assert "undefined" in agreement_text([2, 2], [2, 2])
    assert agreement_report([0, 0], [3, 3])[1] == 0.0


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
