"""Links, and explanations from a server on loopback that speaks Neuronpedia's API."""

import http.server
import json
import socket
import threading

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s2_find_top_features import neuronpedia
from s2_find_top_features.analyze_features import main
from s2_find_top_features.neuronpedia import feature_url, fetch_explanations, quick_list_url
from s2_find_top_features.ranked_features import METRICS, RankedFeature, read_explanations
from tests.s2.planted_store import noise, plant, write_planted_store

CANONICAL = "gemma-2-2b/12-gemmascope-res-16k"
SPARSER = "gemma-2-2b/12-gemmascope-res-16k__l0-22"


class Server(http.server.ThreadingHTTPServer):
    """Answers feature requests; ``refusals`` are status codes given first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []
        self.refusals: list[int] = []
        self.body: bytes | None = None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        code = self.server.refusals.pop(0) if self.server.refusals else 200
        body = self.server.body
        if body is None:
            body = json.dumps(
                {
                    "explanations": [{"description": "lies and deceit"}, {"description": ""}],
                    "activations": [
                        {"tokens": ["▁She", "▁lied", "."], "values": [0, 2.5, 1]},
                        {"tokens": ["A", "▁fib"], "values": [0.0, 7.0]},
                        {"tokens": ["broken"], "values": []},
                    ],
                    "index": "5",
                }
            ).encode()
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        monkeypatch.setenv(neuronpedia.SITE_VARIABLE, f"http://127.0.0.1:{running.server_port}/")
        monkeypatch.setattr(neuronpedia.time, "sleep", lambda seconds: None)
        yield running
        running.shutdown()
        thread.join()


def feature(rank, feature_id, page=CANONICAL):
    nothing = dict.fromkeys(METRICS)
    return RankedFeature(
        rank, "sae", 12, 82, feature_id, True, nothing, nothing, feature_url(page, feature_id)
    )


def test_links_are_right_or_empty():
    assert feature_url(SPARSER, 5).endswith("/12-gemmascope-res-16k__l0-22/5")
    assert feature_url("", 5) == ""
    link = quick_list_url("dishonesty", [(CANONICAL, 5), ("", 6)])
    assert "12-gemmascope-res-16k" in link
    assert "%226%22" not in link
    assert quick_list_url("dishonesty", [("", 6)]) == ""


def test_labels_and_texts_are_fetched_once_and_kept(server, tmp_path):
    features = [feature(1, 5), feature(2, 6, ""), feature(3, 7, SPARSER)]
    found = fetch_explanations(features, tmp_path)
    assert [entry["rank"] for entry in found] == [1, 3]
    assert found[0]["labels"] == ["lies and deceit"]
    assert found[0]["top_texts"] == [
        {"text": "A >>fib<<", "max_activation": 7.0},
        {"text": "She >>lied<<.", "max_activation": 2.5},
    ]
    assert server.paths == [f"/api/feature/{CANONICAL}/5", f"/api/feature/{SPARSER}/7"]
    assert fetch_explanations(features, tmp_path) == found
    assert len(server.paths) == 2


def test_requests_keep_their_distance(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(neuronpedia.time, "sleep", waits.append)
    fetch_explanations([feature(rank, rank) for rank in range(1, 4)], tmp_path)
    assert waits == [neuronpedia.SECONDS_BETWEEN_REQUESTS] * 2
    assert min(waits) >= 1.0


def test_a_busy_server_is_asked_again_and_an_unknown_feature_is_remembered(server, tmp_path):
    server.refusals = [429, 503]
    assert len(fetch_explanations([feature(1, 5)], tmp_path)) == 1
    assert len(server.paths) == 3
    server.refusals = [404]
    assert fetch_explanations([feature(1, 8)], tmp_path) == []
    assert fetch_explanations([feature(1, 8)], tmp_path) == []
    assert len(server.paths) == 4


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"explanations": [{}]}'])
def test_an_answer_that_is_not_neuronpedias_is_not_kept(server, tmp_path, body, caplog):
    server.body = body
    assert fetch_explanations([feature(1, 5), feature(2, 6)], tmp_path) == []
    assert "going on without" in caplog.text
    assert len(server.paths) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_keeps_refusing_is_left_alone(server, tmp_path, caplog):
    server.refusals = [500] * 10
    assert fetch_explanations([feature(1, 5), feature(2, 6)], tmp_path) == []
    assert len(server.paths) == neuronpedia.N_ATTEMPTS
    assert "answered 500" in caplog.text


def test_a_damaged_kept_answer_is_named(server, tmp_path):
    fetch_explanations([feature(1, 5)], tmp_path)
    kept = next(tmp_path.iterdir())
    kept.write_text('{"labels": 3}')
    with pytest.raises(UserError, match="delete the cache folder"):
        fetch_explanations([feature(1, 5)], tmp_path)


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    dense = noise(rng, 80, 20)
    dense[:, 3] = plant(rng, labels, 3.0, 1.0)
    return write_planted_store(tmp_path / "store", [dense], labels, neuronpedia_ids=[SPARSER])


def run(store, tmp_path):
    where = ["--input", str(store), "--output", str(tmp_path / "r"), "--overwrite", "--top-n", "2"]
    return main([*where, "--explanations", "--explanations-cache", str(tmp_path / "cache")])


def test_the_script_writes_and_shows_explanations(server, store, tmp_path, capsys):
    assert run(store, tmp_path) == 0
    assert read_explanations(tmp_path / "r")[0]["labels"] == ["lies and deceit"]
    printed = capsys.readouterr().out
    assert "what Neuronpedia says" in printed
    assert "lies and deceit" in printed
    assert f"{neuronpedia.SITE}/{SPARSER}/3" in printed
    assert "quick-list" in printed
    assert main(["--output", str(tmp_path / "r"), "--display-only"]) == 0
    assert "lies and deceit" in capsys.readouterr().out


def test_off_line_the_script_says_so_and_goes_on(store, tmp_path, monkeypatch, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv(neuronpedia.SITE_VARIABLE, f"http://127.0.0.1:{port}")
    assert run(store, tmp_path) == 0
    assert caplog.text.count("going on without its explanations") == 1
    assert read_explanations(tmp_path / "r") == []
