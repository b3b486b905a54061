"""Runs extractions in forked children and kills them at random moments; test_kill_and_resume.py starts it.

A process of its own, because only one that has imported torch and has used no thread of it yet can be
forked: so a run costs a fraction of a second, not the eight that the imports cost. What is killed is the
whole process of a run, by SIGKILL.

    python -m tests.s1.killed_runs FOLDER CONFIGURATION SEED
"""

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import sklearn.feature_extraction.text  # noqa: F401 - as the three below: what a run would import later
import transformers.convert_slow_tokenizer
import transformers.models.auto.tokenization_auto
import transformers.models.gemma2.modeling_gemma2  # noqa: F401

from pipeline_common import files
from s1_compute_all_features import block_states, sae_encoder, store_preparation
from s1_compute_all_features.extract_sae_features import main
from tests.s1.conftest import arguments, contents, write_sentences_csv

PHASES = ("forward", "encode", "write", "rename", "manifest")
AT_LEAST = 40  # kills in all
AT_MOST = 160  # kills after which a phase that was never hit is a failure
TIMES_EACH = 2  # a phase is hit at least so often before this stops


class Board:
    """One byte a phase, shared with the child: how many of its threads are inside."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, len(PHASES))

    def clear(self) -> None:
        self.memory[:] = bytes(len(PHASES))

    def inside(self) -> list[str]:
        return [phase for place, phase in enumerate(PHASES) if self.memory[place]]

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        place = PHASES.index(name)
        self.memory[place] += 1  # each phase has one thread: no lock is needed
        try:
            yield
        finally:
            self.memory[place] -= 1


def slow_down(board: Board) -> None:
    """Put the phases on the board, and stretch them so that a random moment can meet each of them."""
    forward, encode = block_states.forward_states, sae_encoder.SaeEncoder.encode
    savez, replace, manifest = np.savez, os.replace, store_preparation.write_manifest

    def slow_forward(*values):
        with board.phase("forward"):
            time.sleep(0.01)
            return forward(*values)

    def slow_encode(*values, **more):
        with board.phase("encode"):
            result = encode(*values, **more)
            time.sleep(0.002)
            return result

    def slow_savez(handle, **arrays):
        whole = BytesIO()
        savez(whole, **arrays)
        half = len(whole.getvalue()) // 2
        with board.phase("write"):
            handle.write(whole.getvalue()[:half])
            handle.flush()
            time.sleep(0.002)
            handle.write(whole.getvalue()[half:])

    def slow_replace(source, target):
        with board.phase("rename"):
            time.sleep(0.001)
            replace(source, target)
            time.sleep(0.001)

    def slow_manifest(*values, **more):
        with board.phase("manifest"):
            time.sleep(0.03)
            manifest(*values, **more)
            time.sleep(0.03)

    block_states.forward_states = slow_forward
    sae_encoder.SaeEncoder.encode = slow_encode
    files.np.savez = slow_savez
    files.os.replace = slow_replace
    store_preparation.write_manifest = slow_manifest


def start(command: list[str], board: Board | None, log: Path) -> int:
    """Fork a run; returns the child's process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            if board is not None:
                slow_down(board)
            code = main(command)
    except BaseException:
        traceback.print_exc()  # into the log: the exit below would swallow it
        raise
    finally:
        os._exit(code)


def ended(child: int, log: Path, seconds: float) -> bool:
    """Whether the child ended by itself within that time, and well."""
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            if status:
                raise SystemExit(f"a run ended with status {status}:\n{log.read_text()[-3000:]}")
            return True
        time.sleep(0.001)
    return False


def check_half_done(stores: list[Path], wanted: dict[str, dict[str, bytes]]) -> None:
    """What carries its final name after a kill is whole, and only a whole store says that it is."""
    for store in stores:
        found = {name: data for name, data in contents(store).items() if ".tmp" not in name}
        manifest = found.pop("manifest.json", None)
        wrong = [name for name, data in found.items() if wanted[store.name].get(name) != data]
        if wrong:
            raise SystemExit(f"after a kill {wrong[0]} stands there under its final name and is not whole")
        if manifest is not None and json.loads(manifest)["complete"]:
            missing = set(wanted[store.name]) - {*found, "manifest.json"}
            if missing or manifest != wanted[store.name]["manifest.json"]:
                raise SystemExit(f"after a kill the store says that it is complete, but lacks {missing}")


def check_equal(stores: list[Path], wanted: dict[str, dict[str, bytes]], what: str) -> None:
    """Every file is there, no other is, and every byte is right."""
    for store in stores:
        found, expected = contents(store), wanted[store.name]
        names = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
        if names:
            raise SystemExit(f"{what} differs from that of a run that was never killed: {sorted(names)}")


def kill_and_resume(folder: Path, configuration: Path, seed: int) -> dict:
    """Kill runs until there were enough kills in every phase; each store in the end equals the reference."""
    draw, board, log = random.Random(seed), Board(), folder / "log.txt"
    csvs = [write_sentences_csv(folder / "a.csv"), write_sentences_csv(folder / "b.csv", 3, 8)]

    def command(stores: list[Path]) -> list[str]:
        rest = arguments("CSV", "STORE", configuration, "--resume")[4:]
        return ["--input", *map(str, csvs), "--output", *map(str, stores), *rest]

    reference = [folder / "reference" / name for name in "ab"]
    if not ended(start(command(reference), None, log), log, 120):
        raise SystemExit("the reference run did not end")
    wanted = {store.name: contents(store) for store in reference}

    # A run that is slowed down and not killed: how long it takes, and that slowing changes nothing.
    stores = [folder / "stores" / name for name in "ab"]
    began = time.monotonic()
    if not ended(start(command(stores), board, log), log, 120):
        raise SystemExit("the slow run did not end")
    whole = time.monotonic() - began
    check_equal(stores, wanted, "a run that was slowed down")

    hits: Counter[str] = Counter()
    kills = finished = 0
    shutil.rmtree(folder / "stores")
    while kills < AT_LEAST or (min(hits[phase] for phase in PHASES) < TIMES_EACH and kills < AT_MOST):
        board.clear()
        child = start(command(stores), board, log)
        if ended(child, log, draw.uniform(0, whole)):
            finished += 1
            check_equal(stores, wanted, f"a store after {kills} kills in all")
            shutil.rmtree(folder / "stores")
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        inside = board.inside()
        hits.update(inside or ["elsewhere"])
        check_half_done([store for store in stores if store.exists()], wanted)
    if not ended(start(command(stores), None, log), log, 120):
        raise SystemExit("the last run did not end")
    check_equal(stores, wanted, "the last store")
    return {"kills": kills, "finished": finished + 1, "hits": dict(hits), "seconds_of_a_run": whole}


if __name__ == "__main__":
    print(json.dumps(kill_and_resume(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
