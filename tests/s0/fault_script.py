"""A server's script of faults: a set share of replies goes wrong, in every way the protocol allows."""

import hashlib
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.fake_llm_server import (
    RecordedRequest,
    Reply,
    chat_reply,
    error_reply,
    items_reply,
    plausible_items,
)

FAULTS = (
    "429",
    "500",
    "timeout",
    "cut connection",
    "malformed",
    "short",
    "reordered",
    "refused",
    "empty",
    "renumbered",
    "repeated",
)
SHARE = 0.3


def own_label(sentence: str) -> int:
    """A label that belongs to the text alone and to nothing else in a request or its order."""
    return hashlib.sha256(f"label of {sentence}".encode()).digest()[0] % 4


class FaultScript:
    """Answers requests, `SHARE` of them with a fault, each kind as likely as the others.

    Args:
        seed: of the draw.
        label_of: the label that is given to a sentence.
        timeout_seconds: longer than the client waits.

    Attributes:
        n_requests: answered so far.
        played: faults and how often they were played.
        written: sentences that stood in a reply which the client could read.
        given: sentence to the labels that such replies gave to it under its own id.
    """

    def __init__(
        self, seed: int, label_of: Callable[[str], int] = own_label, timeout_seconds: float = 1.5
    ) -> None:
        self.n_requests = 0
        self.played: Counter[str] = Counter()
        self.written: set[str] = set()
        self.given: dict[str, list[int]] = {}
        self._draw = random.Random(seed)
        self._label_of = label_of
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()

    def __call__(self, request: RecordedRequest) -> Reply:
        with self._lock:
            self.n_requests += 1
            fault = self._draw.choice(FAULTS) if self._draw.random() < SHARE else ""
            self.played[fault] += 1 if fault else 0
            items = plausible_items(request)
            if request.is_labelling:
                items = [
                    {**item, "label": self._label_of(text["sentence"])}
                    for item, text in zip(items, request.items, strict=True)
                ]
            return self._reply(fault, request, items)

    def told(self) -> str:
        """How many faults of each kind were played, on one line."""
        kinds = ", ".join(f"{kind} {self.played[kind]}" for kind in FAULTS)
        n_faults = sum(self.played.values())
        return f"{n_faults} faults in {self.n_requests} requests ({n_faults / self.n_requests:.0%}): {kinds}"

    def _reply(self, fault: str, request: RecordedRequest, items: list[dict[str, Any]]) -> Reply:
        whole = items_reply(items)
        if fault in ("429", "500"):
            return error_reply(int(fault), retry_after="0.01")
        if fault == "timeout":
            return Reply(whole.body, delay_seconds=self._timeout_seconds)
        if fault == "cut connection":
            return Reply(whole.body, cut=True)
        if fault == "malformed":
            return chat_reply(whole.body[: self._draw.randrange(len(whole.body))])
        if fault == "refused":
            return chat_reply(None, refusal="I can't help with that")
        if fault == "empty":
            return chat_reply("")
        if fault == "renumbered":
            items = [{**item, "id": str(number)} for number, item in enumerate(items[1:], start=1)]
        if fault == "short":
            items = items[: self._draw.randrange(len(items))]
        if fault == "reordered":
            self._draw.shuffle(items)
        if fault == "repeated":
            items = [item for item in items for _ in range(self._draw.randrange(1, 4))]
        self._note(request, items)
        return items_reply(items)

    def _note(self, request: RecordedRequest, items: list[dict[str, Any]]) -> None:
        text_of = {asked["id"]: asked.get("sentence") for asked in request.items}
        for item in items:
            if item["id"] in text_of and request.is_labelling:
                self.given.setdefault(text_of[item["id"]], []).append(item["label"])
            elif item["id"] in text_of:
                self.written.add(item["sentence"])
