import re

import pytest

from concept_evaluation.splits import near_duplicate_pairs
from s0_dataset_generation.labelled_sentences import read_labelled_sentences
from s0_dataset_generation.llm_client import LLMClient, LLMSettings
from s0_dataset_generation.reply_journal import ReplyJournal
from s0_dataset_generation.rubric import find_trait
from s0_dataset_generation.sentence_generation import (
    MAX_CHARACTERS,
    MAX_ROUNDS,
    MAX_WORDS,
    MIN_WORDS,
    SentenceGenerator,
    clean_sentence,
)
from tests.fake_llm_server import chat_reply, cue_label, fake_llm_server, items_reply, plausible_items
from tests.s0.conftest import SEEDS

COUNTS = {3: 12, 2: 9, 1: 0, 0: 7}


@pytest.fixture
def server():
    with fake_llm_server() as server:
        yield server


@pytest.fixture
def make_generator(server, tmp_path, seed_file):
    def make(batch_size=5, seed=0, journal="journal.jsonl"):
        settings = LLMSettings("m", server.base_url, "none")
        client = LLMClient(settings, ReplyJournal(tmp_path / journal))
        seeds = read_labelled_sentences(seed_file)
        return SentenceGenerator(client, find_trait("Dishonesty"), seeds, batch_size, seed)

    return make


def sentences_of(generator):
    return [sentence for accepted in generator.accepted.values() for sentence in accepted]


def test_counts_are_met_and_each_sentence_stands_under_the_label_it_was_asked_for(server, make_generator):
    generator = make_generator()
    assert generator.top_up(COUNTS) == {}
    assert {label: len(accepted) for label, accepted in generator.accepted.items()} == {
        0: 7,
        1: 0,
        2: 9,
        3: 12,
    }
    for label, accepted in generator.accepted.items():
        assert {cue_label(sentence) for sentence in accepted} <= {label}
        assert all(MIN_WORDS <= len(sentence.split()) <= MAX_WORDS for sentence in accepted)
    assert not near_duplicate_pairs(sentences_of(generator))


def test_reordered_repeated_numbered_and_unknown_items_do_no_harm(server, make_generator):
    def respond(request):
        items = plausible_items(request)
        doubled = {"id": items[0]["id"], "sentence": "A second text under an id that is taken already."}
        stranger = {"id": "s99", "sentence": "A text that nobody asked this server to write down."}
        numbered = [{**item, "sentence": f"{i}. {item['sentence']}\n"} for i, item in enumerate(items, 1)]
        return items_reply([stranger, *reversed(numbered), doubled])

    server.respond = respond
    generator = make_generator()
    assert generator.top_up({3: 10}) == {}
    assert all(
        re.match(r"[A-Z][a-z]+ ", sentence) and sentence.endswith(".") for sentence in sentences_of(generator)
    )
    assert not any("asked" in sentence or "taken already" in sentence for sentence in sentences_of(generator))
    assert generator.rejected["unknown id"] >= 2
    assert generator.rejected["repeated id"] >= 2


def test_seeds_duplicates_and_near_duplicates_are_rejected_and_topped_up(server, make_generator):
    seed = SEEDS[-1][0]
    first = "The clerk with the grey umbrella signed for a parcel that was never his."
    copies = [seed.upper(), first, f"  {first.lower()}", first.replace("grey", "blue"), "Too short."]
    items = [{"id": f"s{i}", "sentence": copy} for i, copy in enumerate(copies, 1)]
    server.script.append(items_reply(items))
    generator = make_generator()
    assert generator.top_up({3: 5}) == {}
    assert generator.accepted[3][0] == first
    assert len(generator.accepted[3]) == 5
    assert seed.casefold() not in [sentence.casefold() for sentence in sentences_of(generator)]
    assert generator.rejected["duplicate"] == 2
    assert generator.rejected["near-duplicate"] == 1
    assert generator.rejected["length"] == 1
    assert len(server.requests) >= 2


def test_failed_replies_are_asked_for_anew_and_never_made_up(server, make_generator):
    server.script += [chat_reply(None, refusal="no"), chat_reply(""), chat_reply("{"), chat_reply("[1, 2]")]
    generator = make_generator()
    assert generator.top_up({3: 10, 0: 10}) == {}
    # The first four requests got the failures above.
    given = {item["sentence"] for request in server.requests[4:] for item in plausible_items(request)}
    assert set(sentences_of(generator)) <= given


def test_a_server_that_gives_the_same_sentence_each_time_ends_in_a_shortfall_and_a_later_run_goes_on(
    server, make_generator
):
    same = items_reply([{"id": "s1", "sentence": "He sold the same horse to two brothers."}])
    server.respond = lambda request: same
    generator = make_generator()
    assert generator.top_up({3: 3}) == {3: 2}
    assert len(server.requests) == MAX_ROUNDS
    server.respond = lambda request: items_reply(plausible_items(request))
    later = make_generator()
    assert later.top_up({3: 3}) == {}
    assert later.accepted[3][0] == generator.accepted[3][0]


@pytest.mark.parametrize("n_answered", [1, 3, 6])
def test_a_killed_run_goes_on_where_it_stopped_and_ends_alike(server, make_generator, tmp_path, n_answered):
    whole = make_generator(journal="whole.jsonl")
    whole.top_up(COUNTS)
    n_requests = len(server.requests)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[: 1 + n_answered]) + b'{"dig')
    resumed = make_generator(journal="cut.jsonl")
    resumed.top_up(COUNTS)
    assert resumed.accepted == whole.accepted
    assert len(server.requests) - n_requests == n_requests - n_answered


def test_seed_changes_the_questions_and_shuffling_mixes_labels(server, make_generator):
    first, second = make_generator(seed=0), make_generator(seed=1, journal="second.jsonl")
    first.top_up({3: 6, 0: 6})
    second.top_up({3: 6, 0: 6})
    assert set(sentences_of(first)).isdisjoint(sentences_of(second))
    sentences, intended = first.shuffled()
    assert sorted(sentences) == sorted(sentences_of(first))
    assert intended not in (sorted(intended), sorted(intended, reverse=True))
    assert all(cue_label(sentence) == label for sentence, label in zip(sentences, intended, strict=True))


def test_a_text_that_no_table_could_hold_is_no_sentence(server, make_generator):
    def respond(request):
        items = plausible_items(request)
        return items_reply([{**items[0], "sentence": "Ann went home and sai" + "d" * 200_000}, *items[1:]])

    server.script.append(respond)
    generator = make_generator()
    assert generator.top_up({3: 5}) == {}
    assert generator.rejected["length"] == 1
    assert max(map(len, sentences_of(generator))) <= MAX_CHARACTERS


def test_clean_sentence():
    assert clean_sentence(" 12)  He said\n\u0000 so.\t") == "He said so."
    assert clean_sentence("1984 was a long year.") == "1984 was a long year."
