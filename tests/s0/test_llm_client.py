import argparse
import email.utils
import json
import logging
import subprocess
import sys
import threading
import time

import pytest

from pipeline_common.errors import UserError
from s0_dataset_generation import llm_client
from s0_dataset_generation.llm_client import (
    LLMClient,
    LLMRequest,
    LLMSettings,
    add_llm_arguments,
    resolve_settings,
)
from s0_dataset_generation.reply_journal import ReplyJournal
from s0_dataset_generation.sentence_labelling import GivenLabel
from tests.fake_llm_server import Reply, chat_reply, error_reply, fake_llm_server, items_reply

KEY = "sk-secret-0123456789"
ITEM = {"id": "t1", "label": 2}


def request(text="one", attempt="0"):
    return LLMRequest([{"role": "user", "content": text}], GivenLabel, attempt)


@pytest.fixture
def server():
    with fake_llm_server(lambda request: items_reply([ITEM])) as server:
        yield server


@pytest.fixture
def make_client(server, tmp_path):
    def make(**settings):
        defaults = {"model": "m", "base_url": server.base_url, "api_key": KEY, "timeout_seconds": 5.0}
        return LLMClient(LLMSettings(**{**defaults, **settings}), ReplyJournal(tmp_path / "journal.jsonl"))

    return make


def settings_from(*arguments, needs_key=True):
    parser = argparse.ArgumentParser()
    add_llm_arguments(parser)
    return resolve_settings(parser.parse_args(arguments), needs_key)


def test_asks_by_the_protocol_and_counts_reported_tokens(server, make_client):
    client = make_client()
    outcomes = client.ask([request("one"), request("two")], "asking")
    assert [outcome.items for outcome in outcomes] == [[ITEM], [ITEM]]
    assert {recorded.text for recorded in server.requests} == {"one", "two"}
    recorded = server.requests[0]
    assert recorded.path == "/v1/chat/completions"
    assert recorded.body["model"] == "m"
    assert recorded.body["response_format"]["type"] == "json_schema"
    assert recorded.headers["authorization"] == f"Bearer {KEY}"
    assert client.usage_line() == (
        "2 requests asked, 200 prompt and 20 completion tokens as reported; failed replies: none"
    )


def test_outcomes_keep_the_order_of_requests_whatever_the_order_of_replies(server, make_client):
    def respond(recorded):
        number = int(recorded.text)
        return items_reply([{"id": f"t{number}", "label": number % 4}], delay_seconds=0.02 * (6 - number))

    server.respond = respond
    outcomes = make_client(concurrency=6).ask([request(str(number)) for number in range(6)], "asking")
    assert [outcome.items[0]["id"] for outcome in outcomes] == [f"t{number}" for number in range(6)]


def test_concurrency_is_bounded_and_used(server, make_client):
    lock, state = threading.Lock(), {"now": 0, "most": 0}

    def respond(recorded):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(0.03)
        with lock:
            state["now"] -= 1
        return items_reply([ITEM])

    server.respond = respond
    make_client(concurrency=3).ask([request(str(number)) for number in range(9)], "asking")
    assert state["most"] == 3


def test_nothing_is_asked_twice_but_another_attempt_is(server, make_client):
    make_client().ask([request()], "asking")
    client = make_client()
    assert client.ask([request(), request()], "asking")[1].items == [ITEM]
    assert (len(server.requests), client.n_asked) == (1, 0)
    client.ask([request(attempt="1")], "asking")
    make_client(model="other").ask([request()], "asking")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "fault",
    [
        error_reply(429, retry_after="0.05"),
        error_reply(500, retry_after="0.05"),
        error_reply(503, retry_after_ms="50"),
        Reply('{"choices": [{"message"', cut=True),
        items_reply([ITEM], delay_seconds=1.0),
    ],
    ids=["429", "500", "503", "cut connection", "timeout"],
)
def test_passing_faults_are_retried(server, make_client, fault):
    server.script.append(fault)
    outcomes = make_client(timeout_seconds=0.4).ask([request()], "asking")
    assert outcomes[0].items == [ITEM]
    assert len(server.requests) == 2


def test_retry_after_is_honoured(server, make_client):
    server.script.append(error_reply(429, retry_after="1.2"))
    start = time.monotonic()
    make_client().ask([request()], "asking")
    assert time.monotonic() - start >= 1.2


def in_ten_minutes():
    return email.utils.formatdate(time.time() + 600, usegmt=True)


@pytest.mark.parametrize("pause", [lambda: "600", in_ten_minutes], ids=["seconds", "date"])
def test_a_pause_longer_than_a_run_can_wait_stops_it_and_says_how_long(server, make_client, pause):
    server.script.append(items_reply([ITEM]))
    server.respond = lambda recorded: error_reply(429, retry_after=pause())
    client = make_client(concurrency=1)
    with pytest.raises(
        UserError, match=r"asks for a pause of (600|59\d) seconds \(429\); replies so far are kept"
    ):
        client.ask([request(str(number)) for number in range(9)], "asking")
    assert len(server.requests) <= 3
    assert len(client.journal) == 1


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (chat_reply(None, refusal="no"), "refused"),
        (chat_reply(""), "empty"),
        (chat_reply("{"), "malformed: the content is not the JSON asked for"),
        (Reply("not http json"), "malformed: the body is not a chat completion"),
    ],
)
def test_bad_replies_are_recorded_and_not_repeated_by_themselves(server, make_client, reply, failure):
    server.script.append(reply)
    client = make_client()
    assert client.ask([request()], "asking")[0].failure == failure
    assert make_client().ask([request()], "asking")[0].failure == failure
    kept = json.loads(client.journal.path.read_text().splitlines()[-1])
    assert kept["reply"] == reply.body
    assert len(server.requests) == 1
    assert client.failures == {failure.split(":")[0]: 1}


def test_a_reply_is_kept_as_it_came_but_for_the_key(server, make_client):
    server.script.append(items_reply([ITEM, {"id": KEY, "sentence": 3}]))
    client = make_client()
    assert client.ask([request()], "asking")[0].items == [ITEM]
    kept = json.loads(client.journal.path.read_text().splitlines()[-1])
    content = json.loads(kept["reply"])["choices"][0]["message"]["content"]
    assert json.loads(content)["items"] == [ITEM, {"id": "(key)", "sentence": 3}]


def test_a_server_without_json_schemas_gets_json_mode_from_then_on(server, make_client):
    def respond(recorded):
        if recorded.body["response_format"]["type"] == "json_schema":
            return error_reply(400, "response_format json_schema is not supported")
        return items_reply([ITEM])

    server.respond = respond
    outcomes = make_client(concurrency=1).ask([request(str(number)) for number in range(3)], "asking")
    assert [outcome.items for outcome in outcomes] == [[ITEM]] * 3
    kinds = [recorded.body["response_format"]["type"] for recorded in server.requests]
    assert kinds == ["json_schema", "json_object", "json_object", "json_object"]


def test_a_request_that_is_rejected_either_way_is_a_failure_and_schemas_stay(server, make_client):
    server.script += [error_reply(400, "content policy"), error_reply(400, "content policy")]
    outcomes = make_client(concurrency=1).ask([request("one"), request("two")], "asking")
    assert outcomes[0].failure.startswith("rejected: Error code: 400")
    assert outcomes[1].items == [ITEM]
    assert server.requests[-1].body["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error_reply(401, f"Incorrect API key provided: {KEY}"), r"the key was refused \(401\); set a valid"),
        (error_reply(403, f"{KEY} may not"), r"the key was refused \(403\)"),
        (error_reply(404, "no such model"), r"no model 'm' there \(404\); check --model"),
        (error_reply(429, "quota", code="insufficient_quota", x_should_retry="false"), "quota is used up"),
    ],
)
def test_a_lasting_error_stops_at_once_with_one_line_and_no_key(server, make_client, reply, message):
    server.respond = lambda recorded: reply
    client = make_client(concurrency=2)
    with pytest.raises(UserError, match=message) as caught:
        client.ask([request(str(number)) for number in range(30)], "asking")
    assert KEY not in str(caught.value)
    assert len(server.requests) <= 4
    assert len(client.journal) == 0


def test_a_server_that_fails_every_time_is_given_up_and_the_replies_are_kept(
    server, make_client, monkeypatch
):
    monkeypatch.setattr(llm_client, "_RETRIES", 0)
    server.script += [items_reply([ITEM])] * 3
    server.respond = lambda recorded: error_reply(500, f"key {KEY} broke the server")
    client = make_client(concurrency=1)
    with pytest.raises(
        UserError, match="4 requests in a row failed, the last with 'no answer: Error code: 500"
    ) as caught:
        client.ask([request(str(number)) for number in range(30)], "asking")
    assert 7 <= len(server.requests) <= 8  # the next one may have left already
    assert len(client.journal) == 7
    assert KEY not in str(caught.value) + client.journal.path.read_text()


def test_a_closed_port_is_one_line(make_client, monkeypatch):
    monkeypatch.setattr(llm_client, "_RETRIES", 0)
    client = make_client(base_url="http://user:password@127.0.0.1:9/v1?token=x")
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:9/v1: 4 requests in a row failed"):
        client.ask([request(str(number)) for number in range(8)], "asking")


def test_no_key_in_logs_and_representations(server, make_client, caplog):
    caplog.set_level(logging.INFO)
    client = make_client()
    server.script.append(error_reply(400, KEY))
    client.ask([request()], "asking")
    assert KEY not in caplog.text + repr(client.settings) + client.journal.path.read_text()


def test_a_key_that_an_error_text_is_cut_within_is_not_half_shown(server, make_client, monkeypatch):
    monkeypatch.setattr(llm_client, "_RETRIES", 0)
    for n_before in range(200, 300, 7):
        server.script.append(error_reply(500, "x" * n_before + KEY))
        failure = make_client().ask([request(str(n_before))], "asking")[0].failure
        assert "sk-s" not in failure


@pytest.mark.parametrize("key", ["sk-\u2026", "sk-a b", "sk-a\tb"])
def test_a_key_that_cannot_be_one_is_one_line_without_the_key(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds a character that no key has") as caught:
        settings_from()
    assert key not in str(caught.value)


def test_settings_come_from_flags_then_environment_then_env_file(monkeypatch):
    llm_client.ENV_FILE.write_text(
        "OPENAI_API_KEY=from-file\nOPENAI_MODEL=file-model\nOPENAI_BASE_URL=http://file/v1\n"
    )
    settings = settings_from()
    assert (settings.api_key, settings.model, settings.base_url) == (
        "from-file",
        "file-model",
        "http://file/v1",
    )
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    monkeypatch.setenv("OPENAI_MODEL", "environment-model")
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    settings = settings_from("--base-url", "http://flag/v1")
    assert (settings.api_key, settings.model, settings.base_url) == (
        "from-environment",
        "environment-model",
        "http://flag/v1",
    )
    assert settings_from().base_url == "http://file/v1"


def test_without_key_and_server_one_line_says_how_to_set_the_key():
    with pytest.raises(UserError, match=r"OPENAI_API_KEY=.* into .*\.env .*--base-url"):
        settings_from()
    assert settings_from(needs_key=False).endpoint == "https://api.openai.com/v1"


@pytest.mark.parametrize("address", ["localhost:8000/v1", "ftp://x/v1", "http://", "http://[", "file:///etc"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match="expected an address like http://localhost:8000/v1"):
        settings_from("--base-url", address)


def test_importing_the_client_loads_no_heavy_library():
    code = "import sys, s0_dataset_generation.llm_client; print({'openai', 'sklearn'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
