"""The inputs, and what every stage makes of them when nothing goes wrong."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from s0_dataset_generation import llm_client
from tests.fake_llm_server import fake_llm_server
from tests.faults.stages import (
    STAGES,
    Stage,
    World,
    at_write,
    build_world,
    contents,
    quietly,
    start_over,
    without_slow_parts,
)
from tests.synthetic_store import write_synthetic_store


@pytest.fixture(scope="package")  # what it leaves out is there again for every other test
def world(tmp_path_factory, tiny_configuration) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    write_synthetic_store(folder / "lies_features", n_sentences=24, d_sae=16, d_model=8, l0s=(8,))
    with without_slow_parts(), fake_llm_server() as server:
        yield build_world(folder, server.base_url, tiny_configuration)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path):
    """No key and no proxy of the developer's; torch's number of threads and Ctrl-C's handler are put back."""
    import torch

    # A shell's background job ignores Ctrl-C, and so would the tests in it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(llm_client, "ENV_FILE", tmp_path / "no.env")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(params=STAGES, ids=lambda stage: stage.name)
def stage(request) -> Stage:
    return request.param


class Undisturbed:
    """What each stage leaves, and by how many writes; run once."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world, self._folder = world, folder
        self._known: dict[str, tuple[dict[str, bytes | None], int]] = {}

    def of(self, stage: Stage) -> tuple[dict[str, bytes | None], int]:
        if stage.name not in self._known:
            folder = self._folder / stage.name
            command = start_over(stage, self._world, folder)
            with at_write(-1, lambda: None) as writes:
                assert quietly(stage, command) == (0, "")
            self._known[stage.name] = contents(stage, folder), len(writes)
        return self._known[stage.name]


@pytest.fixture(scope="package")
def undisturbed(world, tmp_path_factory) -> Undisturbed:
    return Undisturbed(world, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def disk(tmp_path) -> Iterator["Disk"]:
    """A small disk of its own, where this user may mount one."""
    small = Disk(tmp_path / "disk")
    if not small.mount():
        pytest.skip("a tmpfs cannot be mounted here: this test needs root")
    yield small
    small.unmount()


class Disk:
    """A tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(self.folder)]
        try:
            return os.name == "posix" and subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    def change(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.folder)], check=True)

    def used_bytes(self) -> int:
        usage = os.statvfs(self.folder)
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)
