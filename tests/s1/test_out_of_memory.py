"""Memory that runs out in a batch: the batch is halved, and the store and the log say so."""

import json
import logging

import numpy as np
import pytest
import torch

from pipeline_common.errors import UserError
from s1_compute_all_features import block_states, extraction, sae_encoder
from s1_compute_all_features.batch_halving import BatchLimit, in_parts, is_out_of_memory
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import FeatureStore
from tests.s1.conftest import Killed, arguments, assert_same_bytes, kill_at_write

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def small_forward(monkeypatch, most_positions, error=None):
    """A model that has memory for so many positions at a time; yields the positions that were asked for."""
    forward, asked = block_states.forward_states, []

    def limited(model, batch, layers, sites):
        positions = len(batch) * max(len(sentence.ids) for sentence in batch)
        asked.append(positions)
        if positions > most_positions:
            raise error or torch.OutOfMemoryError(CUDA)
        return forward(model, batch, layers, sites)

    monkeypatch.setattr(block_states, "forward_states", limited)
    return asked


def small_encoder(monkeypatch, most_tokens):
    encode = sae_encoder.SaeEncoder.encode

    def limited(self, states, center=False):
        if len(states) > most_tokens:
            raise torch.OutOfMemoryError(CUDA)
        return encode(self, states, center)

    monkeypatch.setattr(sae_encoder.SaeEncoder, "encode", limited)


def assert_same_numbers(one, other):
    """The same tokens and supports; numbers differ by the rounding of other batch shapes at most."""
    assert np.array_equal(one.tokens.token_id, other.tokens.token_id)
    for layer in one.layers:
        np.testing.assert_allclose(one.hidden_states(layer), other.hidden_states(layer), rtol=2e-3, atol=2e-3)
    for sae in one.saes:
        first, second = one.activations(sae), other.activations(sae)
        np.testing.assert_allclose(first.to_dense(), second.to_dense(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU), MemoryError()], ids=["cuda", "cpu", "python"]
)
def test_a_batch_without_memory_is_halved_and_said_and_recorded(
    error, finished_store, labelled_csv, tiny_configuration, tmp_path, monkeypatch, caplog
):
    asked = small_forward(monkeypatch, 45, error)
    with caplog.at_level(logging.WARNING, "s1_compute_all_features"):
        assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration)) == 0
    halved = FeatureStore(tmp_path / "store")
    assert_same_numbers(halved, FeatureStore(finished_store))
    failures = [positions for positions in asked if positions > 45]
    assert len(failures) == 1  # later batches keep to what was learned
    assert "out of memory in a batch of" in caplog.text
    assert "batches_halved" in caplog.text
    assert json.loads((tmp_path / "store" / "run_log.json").read_text())["batches_halved"] == 1
    flags = [block.get("batches_halved", False) for block in halved.manifest["blocks"]]
    assert any(flags)
    files = [
        (tmp_path / "store" / f"block_{i:04d}" / "out_of_memory.json").exists() for i in range(len(flags))
    ]
    assert flags == files


def test_a_store_of_whole_batches_says_nothing(finished_store):
    assert not any("batches_halved" in block for block in FeatureStore(finished_store).manifest["blocks"])
    assert json.loads((finished_store / "run_log.json").read_text())["batches_halved"] == 0
    assert not list(finished_store.rglob("out_of_memory.json"))


def test_a_kill_does_not_wipe_out_the_record(labelled_csv, tiny_configuration, tmp_path, monkeypatch):
    command = arguments(labelled_csv, tmp_path / "store", tiny_configuration)
    with monkeypatch.context() as patch:
        small_forward(patch, 45)
        kill_at_write(patch, 12)
        with pytest.raises(Killed):
            main(command)
    marked = {path.parent.name for path in (tmp_path / "store").rglob("out_of_memory.json")}
    assert marked
    assert main([*command, "--resume"]) == 0
    store = FeatureStore(tmp_path / "store")
    assert {
        f"block_{number:04d}"
        for number, block in enumerate(store.manifest["blocks"])
        if block.get("batches_halved")
    } == marked
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--verify"]) == 0


def test_tokens_of_an_encoder_are_halved_too(
    finished_store, labelled_csv, tiny_configuration, tmp_path, monkeypatch, caplog
):
    small_encoder(monkeypatch, 9)
    assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration)) == 0
    halved = FeatureStore(tmp_path / "store")
    assert_same_numbers(halved, FeatureStore(finished_store))
    assert all(block["batches_halved"] for block in halved.manifest["blocks"])
    assert "of" in caplog.text
    assert caplog.text.count("out of memory in a batch of") >= 2


def test_a_single_sentence_without_memory_ends_the_run_in_one_line(
    labelled_csv, tiny_configuration, tmp_path, monkeypatch, capsys, finished_store
):
    command = arguments(labelled_csv, tmp_path / "store", tiny_configuration)
    with monkeypatch.context() as patch:
        small_forward(patch, 8)
        assert main(command) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "error: out of memory in a single sentence; what is complete is kept: add --resume"
    )
    assert main([*command, "--overwrite"]) == 0
    assert_same_bytes(tmp_path / "store", finished_store)


def test_memory_that_runs_out_elsewhere_is_told_in_one_line(
    labelled_csv, tiny_configuration, tmp_path, monkeypatch, capsys
):
    def full(*_):
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(extraction, "load_encoder", full)
    assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration)) == 1
    assert "error: out of memory in reading an SAE" in capsys.readouterr().err.splitlines()[-1]


def test_another_error_of_torch_is_no_want_of_memory(labelled_csv, tiny_configuration, tmp_path, monkeypatch):
    small_forward(monkeypatch, 8, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        main(arguments(labelled_csv, tmp_path / "store", tiny_configuration))


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 100])
def test_the_parts_are_the_batch_in_order(most):
    tried = []

    def compute(part):
        tried.append(len(part))
        if len(part) > most:
            raise MemoryError
        return sum(part)

    limit, batch = BatchLimit(), list(range(13))
    parts = list(in_parts(batch, compute, len, limit, "item"))
    assert [item for part, _ in parts for item in part] == batch
    assert [result for _, result in parts] == [sum(part) for part, _ in parts]
    assert max(len(part) for part, _ in parts) <= most
    assert (limit.n_halved == 0) == (most >= 13)
    tried.clear()
    again = list(in_parts(batch, compute, len, limit, "item"))
    assert len(tried) == len(again)  # no second failure


def test_a_single_item_that_fails_is_told():
    def compute(part):
        raise MemoryError

    with pytest.raises(UserError, match="out of memory in a single item"):
        list(in_parts([1, 2], compute, len, BatchLimit(), "item"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError(CPU), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected
