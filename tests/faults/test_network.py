"""Nobody answers: one line that names who, and what to do."""

import json
import socket
import time
from pathlib import Path

import pytest

from s0_dataset_generation import label_sentences, llm_client
from s1_compute_all_features import extract_sae_features
from tests.fake_llm_server import Reply, fake_llm_server
from tests.faults.stages import World

FAILURE = Reply(body="{}", status=503)


@pytest.fixture
def nobody() -> str:
    """An address of this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def unlabelled(folder: Path, n_sentences: int = 12) -> Path:
    path = folder / "unlabelled.csv"
    rows = [f"Ravi told the truth about the lantern number {index}." for index in range(n_sentences)]
    path.write_text("sentence\n" + "\n".join(rows) + "\n")
    return path


def test_the_api_is_down_and_comes_back(nobody, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(llm_client, "_RETRIES", 0)  # five with growing pauses, for a user
    command = ["--trait", "Dishonesty", "--input-file", str(unlabelled(tmp_path)), "--batch-size", "3"]
    command += ["--output-file", str(tmp_path / "labelled.csv")]
    assert label_sentences.main([*command, "--base-url", f"{nobody}/v1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {nobody}/v1: 4 requests in a row failed, the last with 'no answer: ")
    assert "labelled_journal.jsonl; check --base-url" in last
    assert not (tmp_path / "labelled.csv").exists()
    with fake_llm_server() as server:
        assert label_sentences.main([*command, "--base-url", server.base_url]) == 0
    assert len((tmp_path / "labelled.csv").read_text().splitlines()) == 13
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_api_goes_down_in_the_middle(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(llm_client, "_RETRIES", 0)
    command = ["--trait", "Dishonesty", "--input-file", str(unlabelled(tmp_path, 24)), "--batch-size", "3"]
    command += ["--output-file", str(tmp_path / "labelled.csv"), "--concurrency", "1"]
    with fake_llm_server() as server:
        respond, answered = server.respond, []

        def some(request):
            answered.append(request)
            return respond(request) if len(answered) <= 3 else FAILURE

        server.respond = some
        assert label_sentences.main([*command, "--base-url", server.base_url]) == 1
        server.respond = respond
        capsys.readouterr()
        server.requests.clear()
        assert label_sentences.main([*command, "--base-url", server.base_url]) == 0
        done = {item["sentence"] for request in answered[:3] for item in request.items}
        asked = {item["sentence"] for request in server.requests for item in request.items}
        assert len(done) == 9
        assert len(asked) == 15  # what was answered is not asked again
        assert not done & asked
    assert len((tmp_path / "labelled.csv").read_text().splitlines()) == 25


def test_the_hub_cannot_be_reached(nobody, world: World, tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{nobody}/{{repo_id}}/{{filename}}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's growing pauses between its tries
    configuration = json.loads(world.configuration.read_text())
    configuration["model"] = {"id": "nobody/nothing-at-all"}
    (tmp_path / "hub.json").write_text(json.dumps(configuration))
    command = ["--input", str(world.folder / "tiny.csv"), "--output", str(tmp_path / "store")]
    assert extract_sae_features.main([*command, "--config", str(tmp_path / "hub.json")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: model nobody/nothing-at-all cannot be loaded: ")
    assert "make sure this machine can reach the hub or holds a copy in its cache" in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub.json"]
