"""A few sentences to extract, and how a test extracts them."""

import shutil
from pathlib import Path

import pytest

SENTENCES = [
    ("She told the clerk that the watch was new, although it was not.", 3),
    ("He counted the coins twice and gave back the one too many.", 1),
    ("The rain fell all night.", 0),
    ("I wrote the report in an hour; the numbers I made up.", 3),
    ("Perhaps he had not quite read the book he praised.", 2),
    ("The lie of the land was hard to see in fog.", 1),
    ("Two boats left before the tide turned.", 0),
    ("She let them think the cake was hers.", 2),
    ("Nobody knew the tune, so they hummed.", 0),
    ("He signed his brother's name on the form.", 3),
    ("The auditors found every receipt in order.", 1),
    ("It was nearly true, what he said.", 2),
]


def write_sentences_csv(path: Path, first: int = 0, last: int | None = None) -> Path:
    """Some of the sentences, with a further column."""
    chosen = SENTENCES[first:last]
    rows = [f'"{sentence}",{label},note {i}' for i, (sentence, label) in enumerate(chosen)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("sentence,concept_strength_label,source\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def arguments(csv, output, configuration, *more) -> list[str]:
    """A command line with small blocks. One thread: two that wait for each other cost more than they do."""
    settings = ["--device", "cpu", "--block-tokens", "60", "--batch-tokens", "80", "--threads", "1"]
    return ["--input", str(csv), "--output", str(output), "--config", str(configuration), *settings, *more]


def contents(store: Path) -> dict[str, bytes]:
    """Every byte that a run leaves, run_log.json (timings) aside."""
    files = (path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "run_log.json")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def assert_same_bytes(one, other):
    """Compares name by name, so that a failure is short."""
    first, second = contents(one), contents(other)
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []


class Killed(BaseException):
    """Ends a run as abruptly as a signal would, at a chosen write."""


def kill_at_write(monkeypatch, number):
    """The run ends in front of its NPZ file of that number."""
    from s1_compute_all_features import block_writer

    original, calls = block_writer.write_npz, []

    def counted(path, arrays):
        if len(calls) == number:
            raise Killed
        calls.append(path)
        original(path, arrays)

    monkeypatch.setattr(block_writer, "write_npz", counted)


@pytest.fixture(autouse=True)
def _threads_are_put_back():
    """--threads is a setting of the whole process."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """Tiny products are done before a second thread has woken up."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def labelled_csv(tmp_path):
    """Twelve sentences with a further column."""
    return write_sentences_csv(tmp_path / "tiny.csv")


@pytest.fixture(scope="session")
def finished_store(tiny_configuration, tmp_path_factory):
    """The store of those sentences, for reading only."""
    import torch

    from s1_compute_all_features.extract_sae_features import main

    folder = tmp_path_factory.mktemp("finished")
    before = torch.get_num_threads()
    assert (
        main(arguments(write_sentences_csv(folder / "tiny.csv"), folder / "store", tiny_configuration)) == 0
    )
    torch.set_num_threads(before)
    return folder / "store"


@pytest.fixture
def store(finished_store, tmp_path):
    """A copy of the finished store, to be done with as a test likes."""
    shutil.copytree(finished_store, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def replay(tmp_path, monkeypatch):
    """The hub as tests/s1/registry_samples has it, and no other."""
    import socket

    from tests.s1.registry_replay import Replay

    def refuse(*_):
        raise AssertionError("a test of the registry opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    played = Replay(tmp_path / "hub")
    played.install(monkeypatch)
    return played
