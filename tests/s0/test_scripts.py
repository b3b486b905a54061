import csv
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline_common.files import write_csv
from s0_dataset_generation import (
    audit_dataset,
    expand_dataset,
    generate_sentences,
    import_ethics,
    label_sentences,
    visualize_labels,
)
from s0_dataset_generation.labelled_sentences import read_labelled_sentences
from tests.fake_llm_server import (
    chat_reply,
    cue_label,
    error_reply,
    fake_llm_server,
    items_reply,
    plausible_items,
    plausible_reply,
)

COUNTS = ["--label3-count", "8", "--label2-count", "6", "--label1-count", "5", "--label0-count", "4"]


@pytest.fixture
def server():
    with fake_llm_server() as server:
        yield server


def rows_of(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_generate_then_label_gives_the_same_kind_of_dataset(server, seed_file, tmp_path, capsys):
    unlabelled, labelled = tmp_path / "unlabelled.csv", tmp_path / "labelled.csv"
    shared = ["--trait", "Dishonesty", "--base-url", server.base_url, "--batch-size", "4"]
    generate = [*shared, "--seed-file", str(seed_file), "--output-file", str(unlabelled), *COUNTS]
    assert generate_sentences.main(generate) == 0
    rows = rows_of(unlabelled)
    assert list(rows[0]) == ["sentence", "intended_label"]
    assert [int(row["intended_label"]) for row in rows] == [cue_label(row["sentence"]) for row in rows]
    label = [*shared, "--input-file", str(unlabelled), "--output-file", str(labelled)]
    assert label_sentences.main(label) == 0
    data = read_labelled_sentences(labelled)
    assert data.sentences == [row["sentence"] for row in rows]
    assert data.labels.tolist() == [cue_label(sentence) for sentence in data.sentences]
    assert "quadratic-weighted kappa: 1.000" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*labelled*")} == {
        "unlabelled.csv",
        "labelled.csv",
        "labelled_ratings.csv",
    }
    assert generate_sentences.main(generate) == label_sentences.main(label) == 1
    assert capsys.readouterr().err.count("already exists; choose another --output-file") == 2
    n_asked = len(server.requests)
    assert (
        generate_sentences.main([*generate, "--dry-run"]) == label_sentences.main([*label, "--dry-run"]) == 0
    )
    assert "--- request 6 of 6" in capsys.readouterr().out
    assert len(server.requests) == n_asked


def test_labels_that_are_never_given_end_in_exit_1_without_output(server, tmp_path, capsys):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("sentence\nHe lied about the lantern.\nA cup fell.\n")
    server.respond = lambda request: items_reply([item for item in plausible_items(request) if item["label"]])
    arguments = ["--trait", "Dishonesty", "--input-file", str(source), "--output-file", str(target)]
    arguments += ["--base-url", server.base_url]
    assert label_sentences.main(arguments) == 1
    assert "1 of 2 sentences got no label, the first is 'A cup fell.'" in capsys.readouterr().err
    assert not target.exists()
    assert Path(tmp_path / "out_journal.jsonl").exists()


def test_raters_of_a_file_without_intended_labels_drop_ties_to_the_sidecar(server, tmp_path, capsys):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("sentence\nHe lied about the lantern.\nA cup fell.\nShe faked it.\n")
    seen = []

    def respond(request):
        items = plausible_items(request)
        seen.append(request)
        for item, text in zip(items, request.items, strict=True):
            item["label"] = len(seen) if text["sentence"] == "A cup fell." else item["label"]
        return items_reply(items)

    server.respond = respond
    arguments = ["--trait", "Dishonesty", "--input-file", str(source), "--output-file", str(target)]
    arguments += ["--base-url", server.base_url, "--raters", "2", "--concurrency", "1"]
    assert label_sentences.main([*arguments, "--dry-run"]) == 0
    assert "--- request 2 of 2" in capsys.readouterr().out
    assert label_sentences.main(arguments) == 0
    assert (
        "2 raters: 66.7% of pairs of ratings are equal; 1 sentences without label" in capsys.readouterr().out
    )
    assert target.read_text() == (
        "sentence,concept_strength_label\nHe lied about the lantern.,3\nShe faked it.,3\n"
    )
    rows = rows_of(tmp_path / "out_ratings.csv")
    assert list(rows[0]) == ["sentence", "rating_1", "rating_2", "judged_label", "agreement"]
    assert rows[2] == {
        "sentence": "A cup fell.",
        "rating_1": "1",
        "rating_2": "2",
        "judged_label": "",
        "agreement": "0",
    }
    target.unlink()
    assert label_sentences.main(arguments) == 1
    assert "out_ratings.csv: already exists" in capsys.readouterr().err


def test_raters_that_tie_on_everything_leave_no_file(server, tmp_path, capsys):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("sentence\nOne.\n")
    server.script += [lambda request, n=n: items_reply([{**request.items[0], "label": n}]) for n in (0, 3)]
    arguments = ["--trait", "Dishonesty", "--input-file", str(source), "--output-file", str(target)]
    assert label_sentences.main([*arguments, "--base-url", server.base_url, "--raters", "2"]) == 1
    assert "the raters tied on every sentence; use an odd number of --raters" in capsys.readouterr().err
    assert not target.exists()


TEXTS = ["He lied about the lantern.", "A cup fell.", "Dear Ann\rshe faked it", 'She said "no", twice']
LABELLED = dict(zip(TEXTS, [3, 0, 3, 0], strict=True))


def label_texts(server, folder, *further):
    source = folder / "in.csv"
    write_csv(source, ["sentence"], [[text] for text in TEXTS])
    arguments = ["--trait", "Dishonesty", "--input-file", str(source), "--base-url", server.base_url]
    return label_sentences.main([*arguments, "--output-file", str(folder / "out.csv"), *further])


def thoughtful(request):
    return chat_reply('<think>{"items": maybe}</think>\n' + json.dumps({"items": plausible_items(request)}))


def without_response_format(request):
    if "response_format" in request.body:
        return error_reply(400, "This model does not support response_format; remove it")
    return items_reply(plausible_items(request))


@pytest.mark.parametrize("respond", [plausible_reply, thoughtful, without_response_format])
def test_labels_of_servers_that_reply_in_their_own_way(server, tmp_path, respond):
    server.respond = respond
    assert label_texts(server, tmp_path, "--batch-size", "2") == 0
    data = read_labelled_sentences(tmp_path / "out.csv")
    assert dict(zip(data.sentences, data.labels.tolist(), strict=True)) == LABELLED
    assert [row["sentence"] for row in rows_of(tmp_path / "out_ratings.csv")] == TEXTS


def test_a_server_that_is_of_no_use_costs_a_few_requests_and_the_same_command_goes_on(
    server, tmp_path, capsys, caplog
):
    caplog.set_level(logging.INFO)
    server.respond = lambda request: chat_reply("As a language model I prefer not to.")
    assert label_texts(server, tmp_path, "--raters", "48") == 1
    error = capsys.readouterr().err
    assert "of no use (malformed: the content is not the JSON asked for x5); one of them says: " in error
    assert "'As a language model I prefer not to.'" in error
    assert len(server.requests) <= 5 + 4  # four are under way at once
    assert "5 requests asked" in caplog.text
    assert "failed replies: malformed x5" in caplog.text
    server.respond = plausible_reply
    assert label_texts(server, tmp_path, "--raters", "48") == 0
    data = read_labelled_sentences(tmp_path / "out.csv")
    assert dict(zip(data.sentences, data.labels.tolist(), strict=True)) == LABELLED


def test_sentences_of_other_lengths_than_asked_for_stop_a_run_too(server, seed_file, tmp_path, capsys):
    def respond(request):
        return items_reply([{**item, "sentence": "Too short."} for item in plausible_items(request)])

    server.respond = respond
    generate = ["--trait", "Dishonesty", "--seed-file", str(seed_file), "--base-url", server.base_url]
    generate += ["--output-file", str(tmp_path / "out.csv"), "--batch-size", "2", *COUNTS]
    assert generate_sentences.main(generate) == 1
    error = capsys.readouterr().err
    assert "the first 5 replies are of no use (nothing that was asked for x5)" in error
    assert "Too short." in error


SCRIPTS = [
    expand_dataset,
    generate_sentences,
    label_sentences,
    import_ethics,
    audit_dataset,
    visualize_labels,
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_instant_and_teaches(script):
    path = Path(script.__file__)
    start = time.monotonic()
    run = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 2.5  # importing scikit-learn alone takes longer on a slow machine
    assert f"example:\n  {path.name}" in run.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_usage_names_every_flag(script):
    usage = (Path(script.__file__).parent / "USAGE.md").read_text(encoding="utf-8")
    flags = {flag for action in script.build_parser()._actions for flag in action.option_strings}
    flags -= {"-h", "--help", "--label2-count", "--label1-count"}  # the latter two stand in a range
    assert {flag for flag in flags if f"`{flag}`" not in usage} == set()
