"""The two promises that everything rests on: no label is invented, and nothing answered is lost."""

import csv
import json
import random
import shutil
import subprocess
import sys
import time

import pytest

from s0_dataset_generation import expand_dataset
from s0_dataset_generation.labelled_sentences import read_labelled_sentences
from tests.fake_llm_server import fake_llm_server, items_reply, plausible_items, plausible_reply
from tests.s0.fault_script import FAULTS, SHARE, FaultScript, own_label

SMALL_COUNTS = (4, 5, 6, 8)
FULL_COUNTS = (250, 250, 250, 250)


@pytest.fixture
def server():
    with fake_llm_server() as server:
        yield server


def arguments_for(server, seed_file, folder, counts, batch_size=4, *further):
    return [
        *("--trait", "Dishonesty", "--seed-file", str(seed_file), "--batch-size", str(batch_size)),
        *("--output-dir", str(folder), "--base-url", server.base_url, *further),
        *(text for label, n in enumerate(counts) for text in (f"--label{label}-count", str(n))),
    ]


def rows_of(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def check_complete_and_given(folder, script, counts):
    """Every asked sentence is there, was written by the server, and has the label given for it."""
    data = read_labelled_sentences(folder / "dishonesty.csv")
    intended = [int(row["intended_label"]) for row in rows_of(folder / "dishonesty_ratings.csv")]
    assert [intended.count(label) for label in range(4)] == list(counts)
    assert len(set(data.sentences)) == sum(counts)
    assert set(data.sentences) <= script.written
    assert data.labels.tolist() == [own_label(sentence) for sentence in data.sentences]
    assert all(own_label(sentence) in script.given[sentence] for sentence in data.sentences)


def run_with_faults(server, seed_file, folder, seed, counts, **client):
    script = server.respond = FaultScript(seed)
    further = [text for name, value in client.items() for text in (f"--{name}", str(value))]
    assert expand_dataset.main(arguments_for(server, seed_file, folder, counts, 5, *further)) == 0
    check_complete_and_given(folder, script, counts)
    return script


@pytest.mark.parametrize("seed", range(2))
def test_mixed_faults_leave_a_complete_dataset_of_given_labels(server, seed_file, tmp_path, seed):
    run_with_faults(server, seed_file, tmp_path, seed, SMALL_COUNTS, timeout=1, concurrency=8)


@pytest.mark.slow
def test_mixed_faults_at_scale(server, seed_file, tmp_path, capsys):
    script = run_with_faults(server, seed_file, tmp_path, 0, FULL_COUNTS, timeout=1, concurrency=16)
    with capsys.disabled():
        print(f"\nfault injection: {sum(FULL_COUNTS):,} sentences complete; {script.told()}")
    assert all(script.played[kind] >= 5 for kind in FAULTS)
    # Binomial: three standard errors of the share at 400 requests are 0.07.
    assert abs(sum(script.played.values()) / script.n_requests - SHARE) < 0.07


def test_several_raters_under_faults_give_the_median_of_what_was_given(server, seed_file, tmp_path):
    draw = random.Random(5)
    # The server changes its mind from one request to the next; only ratings that it gave may stand.
    script = server.respond = FaultScript(1, label_of=lambda sentence: draw.randrange(4))
    further = ["--raters", "3", "--timeout", "1", "--concurrency", "8"]
    arguments = arguments_for(server, seed_file, tmp_path, SMALL_COUNTS, 5, *further)
    assert expand_dataset.main(arguments) == 0
    data = read_labelled_sentences(tmp_path / "dishonesty.csv")
    rows = rows_of(tmp_path / "dishonesty_ratings.csv")
    assert len(rows) == sum(SMALL_COUNTS)  # three ratings never tie
    for row, sentence, label in zip(rows, data.sentences, data.labels.tolist(), strict=True):
        ratings = [int(row[f"rating_{rater}"]) for rater in (1, 2, 3)]
        assert row["sentence"] == sentence
        assert label == int(row["judged_label"]) == sorted(ratings)[1]
        for rating in ratings:
            assert ratings.count(rating) <= script.given[sentence].count(rating)


def kill_when(process, journal, n_lines):
    """Kill the process as soon as the journal has that many lines."""
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < n_lines:
        assert time.monotonic() < deadline, "the run does not get on"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("n_lines", [4, 10], ids=["while generating", "while labelling"])
def test_a_run_killed_in_the_middle_goes_on_and_ends_byte_identical(server, seed_file, tmp_path, n_lines):
    arguments = arguments_for(server, seed_file, tmp_path / "out", SMALL_COUNTS)
    assert expand_dataset.main(arguments) == 0
    n_requests = len(server.requests)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.csv")}
    shutil.rmtree(tmp_path / "out")

    server.requests.clear()
    server.respond = lambda request: items_reply(plausible_items(request), delay_seconds=0.15)
    process = subprocess.Popen(
        [sys.executable, expand_dataset.__file__, *arguments, "--concurrency", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = tmp_path / "out" / "dishonesty_temp" / "journal.jsonl"
    kill_when(process, journal, n_lines)
    n_journalled = journal.read_bytes().count(b"\n") - 1  # the first line is the header
    assert n_lines - 1 <= n_journalled < n_requests
    assert any(request.is_labelling for request in server.requests) == (n_lines == 10)

    server.requests.clear()
    server.respond = plausible_reply
    assert expand_dataset.main(arguments) == 0
    assert len(server.requests) == n_requests - n_journalled
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.csv")} == whole


@pytest.mark.slow
def test_killed_again_and_again_under_faults_it_still_ends_complete(server, seed_file, tmp_path, capsys):
    script = server.respond = FaultScript(3)
    counts = (12, 12, 12, 12)
    further = ["--timeout", "1", "--concurrency", "4", "--keep-temp"]
    arguments = arguments_for(server, seed_file, tmp_path, counts, 4, *further)
    journal = tmp_path / "dishonesty_temp" / "journal.jsonl"
    for n_lines in (6, 16):
        process = subprocess.Popen(
            [sys.executable, expand_dataset.__file__, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        kill_when(process, journal, n_lines)
        with journal.open("ab") as handle:
            handle.write(b'{"digest": "half a li')  # what a kill within a write leaves
    assert expand_dataset.main(arguments) == 0
    check_complete_and_given(tmp_path, script, counts)
    digests = [json.loads(line)["digest"] for line in journal.read_text().splitlines()[1:]]
    assert len(digests) == len(set(digests))  # nothing that was answered was asked again
    with capsys.disabled():
        print(f"\nkilled twice: {sum(counts)} sentences complete; {script.told()}")
