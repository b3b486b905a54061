import csv
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from s0_dataset_generation import dataset_expansion, expand_dataset
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

QUICK_START = (
    'python expand_dataset.py --trait "Dishonesty" --seed-file initial_hendrycks_data/dishonesty.csv '
    "--label3-count 300 --label2-count 250 --label1-count 150 --label0-count 100"
)
COUNTS = ["--label3-count", "8", "--label2-count", "6", "--label1-count", "5", "--label0-count", "4"]


@pytest.fixture
def server():
    with fake_llm_server() as server:
        yield server


@pytest.fixture
def arguments(server, seed_file, tmp_path):
    return [
        *("--trait", "Dishonesty", "--seed-file", str(seed_file), "--batch-size", "4", *COUNTS),
        *("--output-dir", str(tmp_path / "out"), "--base-url", server.base_url),
    ]


def rows_of(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def all_but_label_3(request):
    if not request.is_labelling and "texts of label 3" in request.text:
        return chat_reply(None, refusal="no")
    return plausible_reply(request)


def without_option(arguments, name):
    place = arguments.index(name)
    return arguments[:place] + arguments[place + 2 :]


@pytest.mark.slow
def test_quick_start_line_verbatim_beside_a_shipped_csv(server, seed_file, tmp_path):
    stage = tmp_path / "s0_dataset_generation"
    (stage / "initial_hendrycks_data").mkdir(parents=True)
    (stage / "expanded_data").mkdir()
    shutil.copy(expand_dataset.__file__, stage)
    shutil.copy(seed_file, stage / "initial_hendrycks_data" / "dishonesty.csv")
    shipped = stage / "expanded_data" / "dishonesty.csv"
    shutil.copy(seed_file, shipped)
    before = shipped.read_bytes()
    command = [sys.executable, *shlex.split(QUICK_START)[1:]]
    environment = {**os.environ, "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "sk-hidden-key"}
    run = subprocess.run(command, cwd=stage, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "dishonesty.csv exists and is kept: the result goes to dishonesty_generated.csv" in run.stderr
    assert shipped.read_bytes() == before
    data = read_labelled_sentences(stage / "expanded_data" / "dishonesty_generated.csv")
    assert [int((data.labels == label).sum()) for label in range(4)] == [100, 150, 250, 300]
    assert data.labels.tolist() == [cue_label(sentence) for sentence in data.sentences]
    assert "800 sentences" in run.stdout
    assert "sk-hidden-key" not in run.stdout + run.stderr
    written = sorted(path.name for path in (stage / "expanded_data").iterdir())
    assert written == [
        "dishonesty.csv",
        "dishonesty_generated.csv",
        "dishonesty_generated_provenance.json",
        "dishonesty_generated_ratings.csv",
    ]


def test_labels_are_the_judged_ones_and_the_sidecar_holds_both(server, arguments, tmp_path, capsys):
    def respond(request):
        items = plausible_items(request)
        if request.is_labelling:
            items = [{**item, "label": min(item["label"], 2)} for item in items]
        return items_reply(items)

    server.respond = respond
    assert expand_dataset.main(arguments) == 0
    out = tmp_path / "out"
    ratings = rows_of(out / "dishonesty_ratings.csv")
    data = read_labelled_sentences(out / "dishonesty.csv")
    assert [row["sentence"] for row in ratings] == data.sentences
    assert [int(row["judged_label"]) for row in ratings] == data.labels.tolist()
    assert [int(row["intended_label"]) for row in ratings] == [cue_label(row["sentence"]) for row in ratings]
    assert [int((data.labels == label).sum()) for label in range(4)] == [4, 5, 14, 0]
    assert data.further_columns == {}
    provenance = json.loads((out / "dishonesty_provenance.json").read_text())
    assert provenance["raters"] == 1
    assert provenance["rater_pairs_equal"] is None
    assert provenance["intended_by_judged"] == [[4, 0, 0, 0], [0, 5, 0, 0], [0, 0, 6, 0], [0, 0, 8, 0]]
    output = capsys.readouterr().out
    assert f"Cohen's kappa: {provenance['cohens_kappa']:.3f}\n" in output
    assert f"quadratic-weighted kappa: {provenance['quadratic_weighted_kappa']:.3f}\n" in output
    assert not (out / "dishonesty_temp").exists()


def test_labelling_requests_do_not_tell_the_intended_label(server, arguments):
    assert expand_dataset.main(arguments) == 0
    labelling = [request for request in server.requests if request.is_labelling]
    assert labelling
    for request in labelling:
        assert "intended" not in request.text
        assert all(set(item) == {"id", "sentence"} for item in request.items)
    # Each request mixes intended labels, or their order would tell.
    assert all(len({cue_label(item["sentence"]) for item in request.items}) > 1 for request in labelling[:-1])


def test_a_sentence_without_label_is_replaced_and_told(server, arguments, tmp_path):
    lost = set()

    def respond(request):
        items = plausible_items(request)
        if request.is_labelling:
            if not lost:
                lost.add(request.items[0]["sentence"])
            if lost & {item["sentence"] for item in request.items}:
                return chat_reply(None, refusal="no")
        return items_reply(items)

    server.respond = respond
    assert expand_dataset.main([*arguments, "--concurrency", "1"]) == 0
    data = read_labelled_sentences(tmp_path / "out" / "dishonesty.csv")
    assert [int((data.labels == label).sum()) for label in range(4)] == [4, 5, 6, 8]
    assert not lost & set(data.sentences)
    unlabelled = [
        row for row in rows_of(tmp_path / "out" / "dishonesty_ratings.csv") if row["judged_label"] == ""
    ]
    assert {row["sentence"] for row in unlabelled} == lost


def test_ties_between_two_raters_go_to_the_sidecar_and_are_replaced(server, arguments, tmp_path, capsys):
    tied, asked = set(), {}

    def respond(request):
        items = plausible_items(request)
        if request.is_labelling:
            text_of = {item["id"]: item["sentence"] for item in request.items}
            for item in items:
                sentence = text_of[item["id"]]
                asked[sentence] = asked.get(sentence, 0) + 1
                if len(tied) < 3 and item["label"] == 3:
                    tied.add(sentence)
                if sentence in tied and asked[sentence] == 2:
                    item["label"] = 1
        return items_reply(items)

    server.respond = respond
    assert expand_dataset.main([*arguments, "--raters", "2", "--concurrency", "1"]) == 0
    data = read_labelled_sentences(tmp_path / "out" / "dishonesty.csv")
    assert [int((data.labels == label).sum()) for label in range(4)] == [4, 5, 6, 8]
    rows = rows_of(tmp_path / "out" / "dishonesty_ratings.csv")
    dropped = [row for row in rows if row["judged_label"] == ""]
    assert {row["sentence"] for row in dropped} == tied
    assert all({row["rating_1"], row["rating_2"]} == {"3", "1"} for row in dropped)
    assert {row["agreement"] for row in dropped} == {"0"}
    assert {row["agreement"] for row in rows if row["judged_label"]} == {"1"}
    assert not tied & set(data.sentences)
    assert "3 sentences without label because of a tie" in capsys.readouterr().out
    provenance = json.loads((tmp_path / "out" / "dishonesty_provenance.json").read_text())
    assert (provenance["n_ties"], provenance["n_unlabelled"], provenance["n_sentences"]) == (3, 0, 23)


def test_raters_that_tie_on_and_on_end_in_exit_1_and_a_later_run_goes_on(
    server, arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(dataset_expansion, "MAX_ROUNDS", 2)
    flip = {}

    def respond(request):
        items = plausible_items(request)
        if request.is_labelling:
            for item in items:
                flip[item["id"]] = flip.get(item["id"], 0) + 1
                item["label"] = flip[item["id"]] % 2 * 3
        return items_reply(items)

    server.respond = respond
    arguments += ["--raters", "2", "--concurrency", "1"]
    assert expand_dataset.main(arguments) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "sentences got no label" in message
    assert "because of a tie" in message
    server.respond = plausible_reply
    assert expand_dataset.main(arguments) == 0
    assert len(read_labelled_sentences(tmp_path / "out" / "dishonesty.csv").sentences) == 23


def test_a_shortfall_is_told_with_exit_1_keeps_what_there_is_and_the_next_run_goes_on(
    server, arguments, tmp_path, capsys
):
    server.respond = all_but_label_3
    assert expand_dataset.main(arguments) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    temporary = tmp_path / "out" / "dishonesty_temp"
    assert message.startswith("error: sentences are missing: 8 of label 3; rejected: missing in the reply x")
    assert f"is kept in {temporary}" in message
    assert not (tmp_path / "out" / "dishonesty.csv").exists()
    assert len(rows_of(temporary / "unlabelled.csv")) == 15
    server.respond = plausible_reply
    n_asked = len(server.requests)
    assert expand_dataset.main(arguments) == 0
    new = [request for request in server.requests[n_asked:] if not request.is_labelling]
    assert all("texts of label 3" in request.text for request in new)


def test_a_shortfall_can_be_accepted(server, arguments, tmp_path, capsys):
    server.respond = all_but_label_3
    assert expand_dataset.main(arguments) == 1
    assert "or with --accept-shortfall to end with what there is" in capsys.readouterr().err
    assert expand_dataset.main([*arguments, "--accept-shortfall"]) == 0
    assert "15 sentences; label 0: 4, label 1: 5, label 2: 6, label 3: 0; 8 fewer" in capsys.readouterr().out
    provenance = json.loads((tmp_path / "out" / "dishonesty_provenance.json").read_text())
    assert provenance["counts_asked_for"] == {"0": 4, "1": 5, "2": 6, "3": 8}
    assert provenance["n_sentences"] == 15
    server.respond = lambda _: chat_reply(None, refusal="no")
    elsewhere = [*arguments, "--output-name", "nothing", "--accept-shortfall"]
    assert expand_dataset.main(elsewhere) == 1  # nothing at all is no dataset
    assert not (tmp_path / "out" / "nothing.csv").exists()


def test_replies_to_other_requests_are_not_used_and_that_is_told_before_any_is_asked(
    server, arguments, caplog
):
    server.respond = all_but_label_3
    assert expand_dataset.main(arguments) == 1
    assert expand_dataset.main(arguments) == 1
    assert not any("other requests" in message for message in caplog.messages)
    n_replies = len(server.requests)
    assert expand_dataset.main([*arguments, "--batch-size", "2"]) == 1
    (told,) = [message for message in caplog.messages if "were to other requests" in message]
    assert f" of the {n_replies} replies in " in told
    assert int(told.split()[0]) >= n_replies - 1  # a last batch of one sentence may be the same
    assert (
        expand_dataset.main([*arguments, "--label3-count", "0"]) == 0
    )  # the former requests, less one label's
    assert [message for message in caplog.messages if "were to other requests" in message] == [told]


def test_what_this_script_made_is_not_made_once_more_under_another_name(server, arguments, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dishonesty.csv").write_text("sentence,concept_strength_label\nShe lied.,3\nIt rained.,0\n")
    assert expand_dataset.main(arguments) == 0  # a dataset from elsewhere: beside it
    assert (out / "dishonesty_generated.csv").exists()
    (out / "dishonesty.csv").unlink()
    assert expand_dataset.main(arguments) == 0
    n_asked = len(server.requests)
    assert expand_dataset.main(arguments) == 1
    assert "dishonesty.csv: already exists; choose another --output-name" in capsys.readouterr().err
    assert len(server.requests) == n_asked


def test_keep_temp_keeps_and_names_resolve_and_nothing_is_replaced_unasked(
    server, arguments, tmp_path, capsys
):
    out = tmp_path / "out"
    assert expand_dataset.main([*arguments, "--output-name", "mine.csv", "--keep-temp"]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"mine.csv", "mine_ratings.csv", "mine_provenance.json", "mine_temp"}
    assert {path.name for path in (out / "mine_temp").iterdir()} == {
        "journal.jsonl",
        "ratings.csv",
        "unlabelled.csv",
    }
    before, n_asked = (out / "mine.csv").read_bytes(), len(server.requests)
    assert expand_dataset.main([*arguments, "--output-name", "mine"]) == 1
    assert (
        "mine.csv: already exists; choose another --output-name, or add --overwrite"
        in capsys.readouterr().err
    )
    assert len(server.requests) == n_asked
    assert expand_dataset.main([*arguments, "--output-name", "mine", "--overwrite"]) == 0
    assert (out / "mine.csv").read_bytes() == before
    assert len(server.requests) == n_asked  # all from the journal
    assert not (out / "mine_temp").exists()


def test_a_run_stopped_between_its_files_goes_on(server, arguments, tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("s0_dataset_generation.dataset_expansion.write_labelled_sentences", stopped)
        assert expand_dataset.main(arguments) == 130
    assert (tmp_path / "out" / "dishonesty_ratings.csv").exists()
    asked = len(server.requests)
    assert expand_dataset.main(arguments) == 0, capsys.readouterr().err
    assert len(server.requests) == asked


def test_a_stranger_in_the_temporary_folder_stays(arguments, tmp_path):
    stranger = tmp_path / "out" / "dishonesty_temp" / "notes.txt"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine")
    assert expand_dataset.main(arguments) == 0
    assert [path.name for path in stranger.parent.iterdir()] == ["notes.txt"]


def test_an_unknown_trait_and_a_definition_of_ones_own(server, arguments, tmp_path):
    arguments = without_option(arguments, "--trait")
    assert (
        expand_dataset.main(
            [*arguments, "--trait", "Dry humour", "--definition", "joking with a straight face"]
        )
        == 0
    )
    assert (tmp_path / "out" / "dry_humour.csv").exists()
    assert all(
        "Trait: Dry humour: joking with a straight face." in request.text for request in server.requests
    )


def test_dry_run_needs_no_key_asks_nothing_and_writes_nothing(server, arguments, tmp_path, capsys):
    assert expand_dataset.main([*without_option(arguments, "--base-url"), "--raters", "3", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "--- request 1 of 7, about" in output  # 8, 6, 5 and 4 sentences by 4
    assert "Write 4 texts of label 3" in output
    assert "then, to label the sentences: 18 requests, about" in output
    assert not server.requests
    assert not (tmp_path / "out").exists()


def test_no_key_and_no_server_is_one_line(arguments, capsys):
    assert expand_dataset.main(without_option(arguments, "--base-url")) == 1
    assert capsys.readouterr().err.startswith("error: no LLM key: write OPENAI_API_KEY=... into ")


def test_a_bad_key_stops_at_once(server, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key")
    server.respond = lambda request: error_reply(401, "Incorrect API key provided: sk-wrong-key")
    assert expand_dataset.main(arguments) == 1
    error = capsys.readouterr().err
    assert "the key was refused (401)" in error.splitlines()[-1]
    assert "sk-wrong-key" not in error
    assert not list((tmp_path / "out").glob("**/*.csv"))


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            ["--label3-count", "0", "--label2-count", "0", "--label1-count", "0", "--label0-count", "0"],
            "nothing to write",
        ),
        (["--output-name", "../other"], "expected a name"),
        (["--label3-count", "-1"], "-1 is not at least 0"),
        (["--concurrency", "0"], "0 is not at least 1"),
        (["--raters", "0"], "0 is not at least 1"),
        (["--trait", "  "], "--trait is blank"),
    ],
)
def test_wrong_usage_is_exit_2(arguments, further, message, capsys):
    with pytest.raises(SystemExit) as caught:
        expand_dataset.main([*arguments, *further])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_seed_file_is_exit_1(arguments, capsys):
    assert expand_dataset.main([*arguments, "--seed-file", "nowhere.csv"]) == 1
    assert "error: nowhere.csv: no such file" in capsys.readouterr().err
