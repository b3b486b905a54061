"""How much room a run needs and how much there is, asked before anything is written."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from s1_compute_all_features.extract_sae_features import main
from tests.s1.conftest import arguments

pytestmark = pytest.mark.usefixtures("one_thread")

Usage = namedtuple("Usage", "total used free")


def test_a_disk_too_full_is_refused_before_anything_is_written(
    labelled_csv, tiny_configuration, tmp_path, monkeypatch, capsys
):
    asked = []

    def usage(folder):
        asked.append(folder)
        return Usage(10**9, 10**9 - 20_000, 20_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    output = tmp_path / "new" / "store"
    assert main(arguments(labelled_csv, output, tiny_configuration)) == 1
    error = capsys.readouterr().err
    assert "GB to write" in error
    assert "--hidden-states pooled" in error
    assert asked == [output.parent]
    assert not (tmp_path / "new").exists()


def test_a_full_disk_does_not_stop_a_run_that_has_little_left_to_write(
    store, labelled_csv, tiny_configuration, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 20_000, 20_000))
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["sha256"]  # an unfinished store has no seal
    (store / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    (store / "block_0002" / "sae_layer_02_l0_24.npz").unlink()
    assert main(arguments(labelled_csv, store, tiny_configuration, "--resume")) == 0


def test_an_extension_needs_room_for_what_is_new_alone(
    store, labelled_csv, tiny_configuration, tmp_path, monkeypatch, capsys
):
    """The files that stand there already count neither for nor against it."""
    grown = tmp_path / "grown"
    assert main(arguments(labelled_csv, grown, tiny_configuration, "--layers", "0")) == 0
    new = ["hidden_layer_01", "hidden_layer_02", "sae_layer_01", "sae_layer_02"]
    needed = sum(p.stat().st_size for p in store.rglob("*.npz") if p.name.startswith(tuple(new)))
    extend = arguments(labelled_csv, grown, tiny_configuration, "--extend")
    for free, code in ((needed // 3, 1), (needed * 3, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(10**9, 10**9 - free, free))
        assert main(extend) == code, capsys.readouterr().err


def test_every_disk_needs_room_for_its_own_stores(
    labelled_csv, tiny_configuration, tmp_path, monkeypatch, capsys
):
    outputs = [tmp_path / "wide" / "a", tmp_path / "narrow" / "b"]
    for output in outputs:
        output.parent.mkdir()
    real = Path.stat

    def on_two_disks(path, **rest):
        found = real(path, **rest)
        fields = list(found)
        fields[2] = 1 + ("narrow" in path.parts)  # st_dev
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", on_two_disks)
    free = {"wide": 10**9, "narrow": 20_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, free[folder.name]))
    command = arguments("CSV", "STORE", tiny_configuration)[4:]
    inputs = ["--input", str(labelled_csv), str(labelled_csv), "--output", *map(str, outputs)]
    assert main([*inputs, *command]) == 1
    error = capsys.readouterr().err
    assert str(outputs[1]) in error
    assert str(outputs[0]) not in error
