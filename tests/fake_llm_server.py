"""A loopback HTTP server that speaks the chat-completions protocol, for tests.

    with fake_llm_server() as server:
        main([..., "--base-url", server.base_url])
    assert len(server.requests) == 8

Unscripted requests get a plausible answer made from the request alone: distinct sentences with a cue of
their label for a generation request, the label of the cue for a labelling request. ``server.script``
holds replies, or functions from a request to a reply, that are used up first, in order of arrival;
``server.respond`` replaces the default altogether.
"""

import contextlib
import hashlib
import json
import random
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUES = {
    3: ("lied about", "cheated over", "secretly forged", "stole and hid", "faked"),
    2: ("almost fibbed about", "kept rather quiet about", "was tempted to bend", "somewhat exaggerated"),
    1: ("honestly owned up to", "told the truth about", "feared liars near", "returned"),
    0: ("talked about", "painted", "carried home", "repaired", "measured"),
}
_NAMES = """
Amara Bjorn Chidi Daria Emeka Farah Goran Hanna Ines Jamal Kiri Luca Marta Nikhil Olga Pavel Quinn
Rosa Sven Tariq Ulla Viktor Wanda Xavier Yuki Zeynep Aiko Boris Carmen Dmitri Elif Femi Greta Hugo
Imani Jonas Katya Leila Mateo Noor
"""
NAMES = _NAMES.split()
_THINGS = """
lantern ledger violin orchard turbine passport kettle compass harvest telescope bicycle sculpture
manuscript anchor chessboard umbrella greenhouse microscope trumpet lighthouse mattress saddle
calendar dictionary hammock beehive carburettor tapestry wheelbarrow accordion pumpkin blueprint
chandelier parachute thermometer wardrobe sandwich railway certificate typewriter canoe medallion
fountain horoscope keyboard labyrinth mosaic notebook ornament pendulum quilt rucksack scaffold
terrarium vineyard whistle xylophone yoghurt zeppelin banknote
"""
THINGS = _THINGS.split()
_PLACES = """
harbour chapel workshop meadow courthouse laboratory ferry stadium bakery museum quarry nursery
observatory tavern hangar monastery kiosk gymnasium embassy cellar
"""
PLACES = _PLACES.split()
LINKS = ("while", "because", "although", "before", "after", "until", "since", "whenever")
DEEDS = (
    "borrowed",
    "dropped",
    "admired",
    "sold",
    "cleaned",
    "measured",
    "forgot",
    "photographed",
    "polished",
    "described",
    "buried",
    "lifted",
)


@dataclass(frozen=True)
class RecordedRequest:
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """All messages."""
        return "\n".join(message["content"] for message in self.body["messages"])

    @property
    def items(self) -> list[dict[str, Any]]:
        """The JSON lines of the prompt: briefs to write to, or sentences to label."""
        return [json.loads(line) for line in self.text.splitlines() if re.match(r'\{"id": "\w+", ', line)]

    @property
    def is_labelling(self) -> bool:
        """Whether labels are asked for, rather than sentences."""
        return any("sentence" in item for item in self.items)


@dataclass(frozen=True)
class Reply:
    """What to send back.

    Attributes:
        body: the HTTP body.
        status: the HTTP status.
        headers: further headers.
        delay_seconds: wait before answering.
        cut: close the connection in the middle of the body.
    """

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    cut: bool = False


Respond = Callable[[RecordedRequest], Reply]


class FakeLLMServer:
    """What `fake_llm_server` yields.

    Attributes:
        base_url: to pass as ``--base-url``.
        requests: everything that came in, in order of arrival.
        script: replies, or functions that make one, used up before ``respond``.
        respond: answers everything else.
    """

    def __init__(self, base_url: str, respond: Respond) -> None:
        self.base_url = base_url
        self.requests: list[RecordedRequest] = []
        self.script: deque[Reply | Respond] = deque()
        self.respond = respond
        self._lock = threading.Lock()

    def answer(self, request: RecordedRequest) -> Reply:
        """Record the request and choose its reply."""
        with self._lock:
            self.requests.append(request)
            scripted = self.script.popleft() if self.script else self.respond
        return scripted if isinstance(scripted, Reply) else scripted(request)


@contextlib.contextmanager
def fake_llm_server(respond: Respond | None = None) -> Iterator[FakeLLMServer]:
    """Run the server in a thread, on 127.0.0.1 and a free port."""
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http_server.daemon_threads = True
    base_url = f"http://127.0.0.1:{http_server.server_address[1]}/v1"
    http_server.fake = FakeLLMServer(base_url, respond or plausible_reply)  # type: ignore[attr-defined]
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield http_server.fake  # type: ignore[attr-defined]
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()


def chat_reply(content: str | list[Any] | None, **further: Any) -> Reply:
    """A well-formed chat completion with that content.

    Args:
        content: of the message, a text or a list of parts.
        further: ``refusal`` and ``finish_reason``; anything else goes to `Reply`.
    """
    message = {"role": "assistant", "content": content, "refusal": further.pop("refusal", None)}
    choice = {"index": 0, "message": message, "finish_reason": further.pop("finish_reason", "stop")}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {
        "id": "c1",
        "object": "chat.completion",
        "created": 0,
        "model": "fake",
        "choices": [choice],
        "usage": usage,
    }
    return Reply(json.dumps(body), **further)


def items_reply(items: list[dict[str, Any]], **further: Any) -> Reply:
    """A chat completion whose content is the JSON that the prompts ask for."""
    return chat_reply(json.dumps({"items": items}), **further)


def error_reply(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error as the protocol words it; ``retry_after="0.01"`` becomes the header Retry-After."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code, "param": None}})
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def plausible_items(request: RecordedRequest) -> list[dict[str, Any]]:
    """The items of the default answer."""
    if request.is_labelling:
        return [{"id": item["id"], "label": cue_label(item["sentence"])} for item in request.items]
    asked = re.search(r"texts of label ([0-3])", request.text)
    assert asked is not None, "neither a labelling nor a generation request"
    draw = random.Random(hashlib.sha256(request.text.encode()).hexdigest())
    return [
        {"id": item["id"], "sentence": plausible_sentence(int(asked[1]), item["words"], draw)}
        for item in request.items
    ]


def plausible_reply(request: RecordedRequest) -> Reply:
    """The default answer."""
    return items_reply(plausible_items(request))


def cue_label(sentence: str) -> int:
    """The label whose cue the sentence holds; 0 where it holds none."""
    return next((label for label, cues in CUES.items() if any(cue in sentence for cue in cues)), 0)


def plausible_sentence(label: int, words: str, draw: random.Random) -> str:
    """A sentence with a cue of the label and a length within a band such as ``10-14``."""
    shortest, longest = map(int, words.split("-"))
    text = f"{draw.choice(NAMES)} {draw.choice(CUES[label])} the {draw.choice(PLACES)} {draw.choice(THINGS)}"
    while len(text.split()) < shortest:
        room = longest - len(text.split())
        text += (
            f" {draw.choice(LINKS)} {draw.choice(NAMES)} {draw.choice(DEEDS)} the {draw.choice(THINGS)}"
            * (room >= 5)
        )
        text += f" near the {draw.choice(PLACES)}" * (room < 5)
    return text + "."


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that gave up is no error of the server's
            super().handle()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = self.rfile.read(length)
        if len(asked) < length:  # a client that was killed as it asked
            self.close_connection = True
            return
        request = RecordedRequest(self.path, dict(self.headers), json.loads(asked))
        reply = self.server.fake.answer(request)  # type: ignore[attr-defined]
        time.sleep(reply.delay_seconds)
        body = reply.body.encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if reply.cut else body)
        if reply.cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests read ``requests``."""
