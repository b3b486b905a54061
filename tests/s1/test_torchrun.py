"""Two processes under torchrun write the store that one process writes, byte for byte."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.work_plan import share_of
from tests.s1.conftest import arguments, assert_same_bytes, write_sentences_csv

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "s1_compute_all_features" / "extract_sae_features.py"


def torchrun(command: list[str]) -> subprocess.CompletedProcess:
    """Two processes of one thread each, which find each other over the loopback interface alone."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        env={**os.environ, **loopback},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("n_units", [1, 2, 3, 7])
def test_every_unit_and_sae_has_one_process_and_no_process_is_idle(world, n_units):
    n_saes = 11
    done, busy = [], set()
    for rank in range(world):
        for unit in range(n_units):
            share = share_of(SimpleNamespace(rank=rank, world=world), unit, n_units)
            if share is not None:
                place, n_places = share
                mine = [(unit, sae) for sae in range(n_saes) if sae % n_places == place]
                done += mine
                busy.add(rank)
    assert sorted(done) == [(unit, sae) for unit in range(n_units) for sae in range(n_saes)]
    assert busy == set(range(world))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block_tokens", "shared"),
    [(60, "units"), (1000, "the SAEs of one unit")],
)
def test_two_processes_give_the_store_of_one(
    block_tokens, shared, labelled_csv, tiny_configuration, tmp_path
):
    more = ["--block-tokens", str(block_tokens), "--check-reconstruction"]
    alone, together = (
        arguments(labelled_csv, tmp_path / name, tiny_configuration, *more) for name in ("alone", "together")
    )
    assert main(alone) == 0
    run = torchrun(together)
    assert_same_bytes(tmp_path / "together", tmp_path / "alone")
    reader = FeatureStore(tmp_path / "together")
    n_blocks = len(reader.manifest["blocks"])
    assert (n_blocks > 2) == (shared == "units")
    assert n_blocks > 2 or n_blocks == 1
    logs = [json.loads((tmp_path / name / "run_log.json").read_text()) for name in ("together", "alone")]
    assert [log["host"]["processes"] for log in logs] == [2, 1]
    assert logs[0]["mean_l0_measured"] == pytest.approx(logs[1]["mean_l0_measured"], rel=1e-12)
    # Said once, not once a process.
    assert run.stdout.count("12 sentences") == 1
    assert all(run.stderr.count(f"{sae.name} ") == 1 for sae in reader.saes)


@pytest.mark.slow
def test_two_processes_mend_a_store_and_take_several_inputs(tiny_configuration, tmp_path):
    csvs = [write_sentences_csv(tmp_path / "a.csv"), write_sentences_csv(tmp_path / "b.csv", 3, 9)]

    def command(folder: str, *more: str) -> list[str]:
        rest = arguments("CSV", "STORE", tiny_configuration, *more)[4:]
        outputs = [str(tmp_path / folder / name) for name in "ab"]
        return ["--input", *map(str, csvs), "--output", *outputs, *rest]

    for folder in ("alone", "together"):
        assert main(command(folder)) == 0
    truncated = tmp_path / "together" / "a" / "block_0001" / "hidden_layer_01.npz"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    (tmp_path / "together" / "b" / "block_0000" / "sae_layer_02_l0_24.npz").unlink()
    torchrun(command("together", "--verify"))
    for name in "ab":
        assert_same_bytes(tmp_path / "together" / name, tmp_path / "alone" / name)
