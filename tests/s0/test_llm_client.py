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
from s0_dataset_generation.sentence_generation import WrittenSentence
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
    # A parameter that is not sent is one that no server can refuse.
    assert set(recorded.body) == {"model", "messages", "response_format"}
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


def test_replies_of_earlier_versions_answer_the_same_requests(server, make_client, tmp_path):
    digest = "162351b468914233a265a6214f9b068e7a9ebba5cc1fa362b90b4c1d4b455c26"
    line = {"digest": digest, "items": [ITEM], "failure": None, "prompt_tokens": 5, "completion_tokens": 1}
    journal = [{"reply_journal": 1}, {**line, "reply": "as it came"}]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in journal))
    assert make_client().ask([request()], "asking")[0].items == [ITEM]
    assert server.requests == []


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


def form_of(recorded):
    return recorded.body.get("response_format", {}).get("type", "text")


def server_that_takes(forms, refusal):
    """Answers requests of these forms, and others with the refusal."""
    return lambda recorded: items_reply([ITEM]) if form_of(recorded) in forms else refusal


@pytest.mark.parametrize("status", [400, 404, 422, 500])
@pytest.mark.parametrize(
    ("taken", "tried"),
    [
        (("json_schema", "text"), ["json_schema"]),
        (("json_object", "text"), ["json_schema", "json_object"]),
        (("text",), ["json_schema", "json_object", "text"]),
    ],
)
def test_the_form_that_a_server_takes_is_found_once_and_said_with_its_reason(
    server, make_client, caplog, status, taken, tried
):
    caplog.set_level(logging.INFO)
    reason = "'response_format.type' is not supported by this model"
    server.respond = server_that_takes(taken, error_reply(status, reason))
    client = make_client(concurrency=1)
    start = time.monotonic()
    for text in ("one", "two", "three"):
        assert client.ask([request(text)], "asking")[0].items == [ITEM]
    assert time.monotonic() - start < 5  # nobody waits for a refusal to pass
    assert [form_of(recorded) for recorded in server.requests] == [*tried, tried[-1], tried[-1]]
    told = [message for message in caplog.messages if "the server refuses requests" in message]
    assert len(told) == len(tried) - 1 - (len(tried) == 3)
    words = {"json_object": "in JSON mode", "text": "in plain text"}
    for message in told:
        # A server error that names what it refuses is a bad request in all but its number.
        assert f"with a JSON schema{' and in JSON mode' if len(tried) == 3 else ''} (Error code: " in message
        assert reason in message
        assert f"for the rest of the run they are made {words[tried[-1]]}" in message


def test_requests_at_once_agree_on_a_form_and_no_more_are_refused_than_were_under_way(server, make_client):
    server.respond = server_that_takes(("text",), error_reply(400, "no response_format here"))
    outcomes = make_client(concurrency=4).ask([request(str(number)) for number in range(20)], "asking")
    assert [outcome.items for outcome in outcomes] == [[ITEM]] * 20
    assert sum(form_of(recorded) != "text" for recorded in server.requests) <= 4 * 2


def test_a_server_error_that_names_no_form_is_waited_for_first(server, make_client, monkeypatch):
    monkeypatch.setattr(llm_client, "_RETRIES", 1)
    server.respond = server_that_takes(("text",), error_reply(500, "oops", retry_after="0.01"))
    client = make_client(concurrency=1)
    assert client.ask([request()], "asking")[0].items == [ITEM]
    forms = ["json_schema", "json_schema", "json_object", "text"]
    assert [form_of(recorded) for recorded in server.requests] == forms
    server.script.append(error_reply(500, "oops", retry_after="0.01"))  # decided: now it is only busy
    assert client.ask([request("two")], "asking")[0].items == [ITEM]
    assert [form_of(recorded) for recorded in server.requests[4:]] == ["text", "text"]


def test_a_model_without_system_messages_gets_one_message_and_keeps_its_schema(server, make_client, caplog):
    caplog.set_level(logging.INFO)

    def respond(recorded):
        if recorded.body["messages"][0]["role"] == "system":
            return error_reply(500, "Jinja error: System role not supported")
        return items_reply([ITEM])

    server.respond = respond
    client = make_client()
    messages = [{"role": "system", "content": "Be careful."}, {"role": "user", "content": "one"}]
    assert client.ask([LLMRequest(messages, GivenLabel, "0")], "asking")[0].items == [ITEM]
    assert server.requests[1].body["messages"] == [{"role": "user", "content": "Be careful.\n\none"}]
    assert [form_of(recorded) for recorded in server.requests] == ["json_schema"] * 2
    assert "they are made with a JSON schema and without a system message" in caplog.text


def in_200(code, message="the reason", **further):
    body = json.dumps({"error": {"message": message, "code": code, **further}})
    return Reply(body, headers={"Retry-After": "0.01"})


def test_an_error_in_a_reply_of_status_200_is_that_error(server, make_client):
    server.script += [
        in_200(429),
        in_200(503),
        in_200("rate_limit_exceeded"),
        in_200(None, type="server_error"),
    ]
    assert make_client().ask([request()], "asking")[0].items == [ITEM]
    assert len(server.requests) == 5  # each was tried again, as the status would have been


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (in_200(401), r"the key was refused \(401\).*the server says: the reason"),
        (in_200("invalid_api_key"), r"the key was refused \(401\)"),
        (in_200(404), r"no model 'm' there \(404\).*the server says: the reason"),
        (in_200("model_not_found"), r"no model 'm' there \(404\)"),
        (in_200(402, "Insufficient credits"), "'rejected: Error code: 402 - Insufficient credits'"),
        (in_200(None), "'rejected: Error code: 400 - the reason'"),
        (in_200(12345), "'rejected: Error code: 400 - the reason'"),
        (Reply('{"error": "the reason", "choices": []}'), "'rejected: Error code: 400 - the reason'"),
        (
            Reply('{"object": "error", "message": "the \\u001b[2Jreason", "error": null}'),
            "Error code: 400 - the",
        ),
        (Reply('{"choices": [{"error": {"code": 402, "message": "m"}, "message": {}}]}'), "code: 402 - m"),
    ],
)
def test_an_error_in_a_reply_of_status_200_ends_the_run_as_its_status_would(
    server, make_client, reply, message
):
    server.respond = lambda recorded: reply
    with pytest.raises(UserError, match=message) as caught:
        make_client(concurrency=1).ask([request(str(number)) for number in range(9)], "asking")
    assert "\x1b" not in str(caught.value)


def test_a_null_error_beside_an_answer_is_none(server, make_client):
    body = {**json.loads(items_reply([ITEM]).body), "error": None}
    server.respond = lambda recorded: Reply(json.dumps(body))
    assert make_client().ask([request()], "asking")[0].items == [ITEM]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"detail": "Not enough memory"}', "Not enough memory"),
        ('{"error": "model is loading"}', "model is loading"),
        ('{"error": {"message": "context\\u001b[31m too long"}}', "context [31m too long"),
        ('{"detail": [{"msg": "bad", "loc": ["body"]}]}', '[{"msg": "bad", "loc": ["body"]}]'),
        ("<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        ("", None),
    ],
)
def test_the_servers_own_reason_is_shown_wherever_it_stands(server, make_client, body, reason):
    server.respond = lambda recorded: Reply(body, 413)
    told = f"rejected: Error code: 413 - {reason}" if reason else "rejected: Error code: 413"
    assert make_client().ask([request()], "asking")[0].failure == told


def test_a_charset_that_is_none_of_text_does_no_harm(server, make_client):
    for charset in ("utf-7", "hex", "idna", "none"):
        headers = {"Content-Type": f"application/json; charset={charset}"}
        server.script.append(items_reply([{"id": "Zoë", "label": 1}], headers=headers))
        assert make_client().ask([request(charset)], "asking")[0].items == [{"id": "Zoë", "label": 1}]


USELESS = {
    "prose": (chat_reply("I\x1b[31m cannot\r\nlabel these texts."), "malformed: the content is not the JSON"),
    "refusals": (chat_reply(None, refusal="I can't help with that"), "refused"),
    "nothing": (chat_reply(""), "empty"),
    "no item that is valid": (items_reply([{"id": "t1", "label": 7}]), "malformed: no valid item"),
    "other items": (items_reply([{"id": "1", "label": 2}]), "nothing that was asked for"),
    "no completion": (Reply("data: {}\n\ndata: [DONE]"), "malformed: the body is not a chat completion"),
}


def labelling_request(number):
    message = {"role": "user", "content": str(number)}
    return LLMRequest([message], GivenLabel, "0", lambda item: item["id"] == "t1")


@pytest.mark.parametrize("kind", USELESS)
def test_a_run_whose_first_replies_are_of_no_use_stops_and_quotes_one(server, make_client, kind):
    reply, failure = USELESS[kind]
    server.respond = lambda recorded: reply
    client = make_client(concurrency=2)
    with pytest.raises(UserError, match="the first 5 replies are of no use") as caught:
        client.ask([labelling_request(number) for number in range(48)], "asking")
    message = str(caught.value)
    assert f"({failure}" in message
    assert " x5)" in message
    assert message.isprintable()
    assert "try another --model, or fewer sentences a request with --batch-size" in message
    assert len(server.requests) <= 5 + 2
    assert len(client.journal) == 5
    assert "failed replies: none" not in client.usage_line() or kind == "other items"


def test_the_quotation_is_short_and_hides_the_key(server, make_client):
    server.respond = lambda recorded: chat_reply(f"Your key {KEY} is known. " + "No. " * 5000)
    with pytest.raises(UserError, match=r"one of them says: 'Your key \(key\) is known. (No. )+") as caught:
        make_client().ask([labelling_request(number) for number in range(9)], "asking")
    assert len(str(caught.value)) < 700


def test_one_useful_reply_in_this_run_or_an_earlier_one_is_enough_to_go_on(server, make_client):
    server.script.append(items_reply([ITEM]))
    server.respond = lambda recorded: chat_reply("no")
    requests = [labelling_request(number) for number in range(9)]
    assert len(make_client(concurrency=1).ask(requests, "asking")) == 9
    more = [labelling_request(number) for number in range(18)]
    assert len(make_client(concurrency=1).ask(more, "asking")) == 18


def test_a_model_that_writes_sentences_but_labels_none_is_stopped_too(server, make_client):
    client = make_client(concurrency=1)
    server.script.append(items_reply([{"id": "s1", "sentence": "He lied."}]))
    client.ask([LLMRequest([{"role": "user", "content": "write"}], WrittenSentence, "0")], "asking")
    server.respond = lambda recorded: chat_reply("no")
    with pytest.raises(UserError, match="the first 5 replies are of no use"):
        client.ask([labelling_request(number) for number in range(48)], "asking")


def test_a_server_that_was_mended_is_asked_again(server, make_client):
    server.respond = lambda recorded: chat_reply("no")
    requests = [labelling_request(number) for number in range(9)]
    for _ in range(2):
        with pytest.raises(UserError, match="the first 5 replies are of no use"):
            make_client(concurrency=1).ask(requests, "asking")
        requests = [labelling_request(number) for number in range(20)]
    server.respond = lambda recorded: items_reply([ITEM])
    outcomes = make_client(concurrency=1).ask(requests, "asking")
    assert sum(outcome.items == [ITEM] for outcome in outcomes) == 20 - 10


def test_a_key_that_is_no_secret_blanks_out_no_letters(server, make_client):
    server.respond = lambda recorded: error_reply(413, "the kettle is too full")
    failure = make_client(api_key="k").ask([request()], "asking")[0].failure
    assert failure == "rejected: Error code: 413 - the kettle is too full"


def test_a_key_that_the_server_shows_in_part_is_hidden(server, make_client):
    server.respond = lambda recorded: error_reply(401, "Incorrect API key provided: sk-se********6789.")
    with pytest.raises(UserError, match=r"the server says: Incorrect API key provided: \(key\)$"):
        make_client().ask([request()], "asking")


def test_a_request_that_is_rejected_in_every_form_is_a_failure_and_schemas_stay(server, make_client):
    server.script += [error_reply(400, "content policy")] * 3
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
    assert len(server.requests) <= 2 * 3 + 1  # a 404 may mean the form of the request: each of three is tried
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
        server.script += [error_reply(500, "x" * n_before + KEY)] * 3
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
