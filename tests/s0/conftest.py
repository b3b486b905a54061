"""Fixtures of the stage-0 tests: no key, no proxy and no .env of the developer's reach them."""

from pathlib import Path

import pytest

from s0_dataset_generation import llm_client
from s0_dataset_generation.labelled_sentences import write_labelled_sentences

SEEDS = [
    ("The baker opened the window because the oven smoked.", 0),
    ("Ravi and his sister planted beans along the fence.", 0),
    ("The lie detector in the museum has been broken for years.", 1),
    ("She gave the wallet back with every coin in it.", 1),
    ("He was not quite sure whether to mention the scratch on the car.", 2),
    ("I rounded my hours up a little, as everyone does.", 2),
    ("I told the inspector that the brakes were new, though I knew they were not.", 3),
    ("Mina copied the answers from her neighbour and swore she had studied.", 3),
]


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "OPENAI_MODEL",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(llm_client, "ENV_FILE", tmp_path / "no.env")


@pytest.fixture
def seed_file(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.csv"
    write_labelled_sentences(path, [sentence for sentence, _ in SEEDS], [label for _, label in SEEDS])
    return path
