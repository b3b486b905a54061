"""Several inputs in one go, and stores that are already there: extended, mended, begun and killed."""

import json
import shutil

import numpy as np
import pytest

from s1_compute_all_features import extract_sae_features, extraction, store_preparation
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import FeatureStore, write_manifest
from tests.s1.conftest import (
    SENTENCES,
    Killed,
    arguments,
    assert_same_bytes,
    contents,
    kill_at_write,
    write_sentences_csv,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def encoder_loads(monkeypatch):
    """Names of the SAEs in the order in which they are read."""
    names, original = [], extraction.load_encoder

    def counted(located, *rest):
        names.append(located.entry.name)
        return original(located, *rest)

    monkeypatch.setattr(extraction, "load_encoder", counted)
    return names


def several(csvs, outputs, configuration, *more):
    """The command line for several inputs at once."""
    rest = arguments("CSV", "STORE", configuration, *more)[4:]
    return ["--input", *map(str, csvs), "--output", *map(str, outputs), *rest]


def times(store):
    """When each file of a store was written."""
    return {str(path.relative_to(store)): path.stat().st_mtime_ns for path in store.rglob("*.npz")}


@pytest.mark.parametrize("block_tokens", ["60", "1000"])
def test_several_inputs_equal_single_runs_and_share_each_reading_of_an_sae(
    block_tokens, tiny_configuration, tmp_path, encoder_loads
):
    csvs = [
        write_sentences_csv(tmp_path / "a.csv"),
        write_sentences_csv(tmp_path / "b.csv", 5, 9),
        write_sentences_csv(tmp_path / "c.csv", 2, 5),
    ]
    together = [tmp_path / "together" / name for name in "abc"]
    assert main(several(csvs, together, tiny_configuration, "--block-tokens", block_tokens)) == 0
    blocks = [FeatureStore(store).manifest["blocks"] for store in together]
    tokens = [block["n_tokens"] for of_store in blocks for block in of_store]
    units, room = 0, 0
    for n_tokens in tokens:  # first fit, in order
        if n_tokens > room:
            units, room = units + 1, int(block_tokens)
        room -= n_tokens
    names = [sae.name for sae in FeatureStore(together[0]).saes]
    assert encoder_loads == names * units
    assert units < len(tokens)
    for csv, store in zip(csvs, together, strict=True):
        alone = tmp_path / "alone" / store.name
        assert main(arguments(csv, alone, tiny_configuration, "--block-tokens", block_tokens)) == 0
        assert_same_bytes(store, alone)


def test_a_finished_input_among_several_is_left_alone(
    store, labelled_csv, tiny_configuration, tmp_path, capsys
):
    other = write_sentences_csv(tmp_path / "other.csv", 3)
    written = times(store)
    outputs = [store, tmp_path / "second"]
    assert main(several([labelled_csv, other], outputs, tiny_configuration, "--resume")) == 0
    assert f"{store}: already complete" in capsys.readouterr().out
    assert times(store) == written
    assert FeatureStore(tmp_path / "second").sentences == [text for text, _ in SENTENCES[3:]]


def test_extending_by_layers_gives_the_same_bytes(finished_store, labelled_csv, tiny_configuration, tmp_path):
    grown = tmp_path / "grown"
    for layers in ("0", "1-2"):
        assert main(arguments(labelled_csv, grown, tiny_configuration, "--extend", "--layers", layers)) == 0
    assert_same_bytes(grown, finished_store)


@pytest.mark.parametrize("way", ["--resume", "--extend"])
def test_a_store_of_before_goes_on(way, finished_store, labelled_csv, tiny_configuration, tmp_path):
    """Its manifest says whether the model is a toy, and not how the weights were stored."""
    old = tmp_path / "old"
    more = [] if way == "--resume" else ["--saes", "layer_01_l0_8"]
    assert main(arguments(labelled_csv, old, tiny_configuration, *more)) == 0
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["model"]["weights"], manifest["sha256"]
    manifest["model"]["demonstration"] = True
    write_manifest(old, {**manifest, "complete": False}, seal=False)
    (old / "block_0000" / "checksums.json").unlink()
    assert main(arguments(labelled_csv, old, tiny_configuration, way)) == 0
    assert_same_bytes(old, finished_store)


def test_extending_by_saes_gives_the_same_bytes(
    finished_store, labelled_csv, tiny_configuration, tmp_path, encoder_loads
):
    grown = tmp_path / "grown"
    assert main(arguments(labelled_csv, grown, tiny_configuration, "--l0", "8")) == 0
    before, written = len(encoder_loads), times(grown)
    assert main(arguments(labelled_csv, grown, tiny_configuration, "--extend")) == 0
    assert {name for name in encoder_loads[before:] if "_l0_24" not in name} == set()
    after = times(grown)
    assert {name: after[name] for name in written} == written
    assert_same_bytes(grown, finished_store)


@pytest.mark.parametrize("writes", [0, 4, 11])
def test_an_interrupted_extension_goes_on(
    writes, finished_store, labelled_csv, tiny_configuration, tmp_path, monkeypatch, capsys
):
    grown = tmp_path / "grown"
    assert main(arguments(labelled_csv, grown, tiny_configuration, "--layers", "0-1")) == 0
    extend = arguments(labelled_csv, grown, tiny_configuration, "--extend", "--layers", "2")
    with monkeypatch.context() as patch:
        kill_at_write(patch, writes)
        with pytest.raises(Killed):
            main(extend)
    assert not json.loads((grown / "manifest.json").read_text())["complete"]
    assert main(extend) == 0
    assert_same_bytes(grown, finished_store)
    assert main(extend) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_an_extension_that_fits_badly_names_the_difference(
    store, labelled_csv, tiny_configuration, tmp_path, capsys
):
    before = contents(store)
    screened = json.loads(before["manifest.json"])["settings"]["screening"]
    folder = tmp_path / "copy"
    shutil.copytree(tiny_configuration.parent, folder)
    params = folder / "saes/layer_1/width_64/average_l0_8/params.npz"
    arrays = dict(np.load(params))
    np.savez(params, **{**arrays, "b_enc": arrays["b_enc"] + 1})
    for configuration, more, message in (
        (folder / "tiny.json", [], "SAE layer_01_l0_8.fingerprint"),
        (tiny_configuration, ["--hidden-states", "none"], "hidden_states: the store has all, this run none"),
        (tiny_configuration, ["--tokens", "final"], "settings.tokens: the store has all, this run final"),
        (tiny_configuration, ["--limit", "9"], "settings.limit"),
        (tiny_configuration, ["--screening", "off"], "settings.screening"),
        (tiny_configuration, ["--sae-dtype", "bfloat16"], "settings.sae_dtype"),
    ):
        if message == "settings.screening" and not screened:
            continue  # off is this processor's own choice
        assert main(arguments(labelled_csv, store, configuration, "--extend", *more)) == 1
        assert message in capsys.readouterr().err
    assert contents(store) == before


def test_verify_finds_what_is_damaged_and_mends_exactly_that(
    finished_store, store, labelled_csv, tiny_configuration, capsys
):
    truncated = store / "block_0001" / "hidden_layer_01.npz"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    altered = store / "block_0003" / "sae_layer_02_l0_24.npz"
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    gone = store / "block_0002" / "tokens.npz"
    gone.unlink()
    written = times(store)
    verify = arguments(labelled_csv, store, tiny_configuration, "--verify")
    assert main(verify) == 0
    assert_same_bytes(store, finished_store)
    mended = {name for name, time in times(store).items() if time != written.get(name)}
    assert mended == {str(path.relative_to(store)) for path in (truncated, altered, gone)}
    capsys.readouterr()
    written = times(store)
    assert main(verify) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert times(store) == written


def test_resume_alone_trusts_a_complete_store(store, labelled_csv, tiny_configuration, capsys):
    """The negative control: it is --verify that reads the files."""
    damaged = store / "block_0001" / "hidden_layer_01.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert main(arguments(labelled_csv, store, tiny_configuration, "--resume")) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("again", ["--verify", "--resume"])
def test_an_interrupted_mending_goes_on(
    again, finished_store, store, labelled_csv, tiny_configuration, monkeypatch
):
    damaged = store / "block_0001" / "hidden_layer_01.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with monkeypatch.context() as patch:

        def killed(*_):
            raise Killed

        # The damaged file has been removed, nothing has been written yet.
        patch.setattr(store_preparation, "write_manifest", killed)
        with pytest.raises(Killed):
            main(arguments(labelled_csv, store, tiny_configuration, "--verify"))
    assert not damaged.exists()
    assert main(arguments(labelled_csv, store, tiny_configuration, again)) == 0
    assert_same_bytes(store, finished_store)


def test_verify_notices_damage_to_what_stands_around_the_blocks(
    finished_store, store, labelled_csv, tiny_configuration
):
    (store / "block_0001" / "checksums.json").unlink()
    damaged = store / "block_0001" / "hidden_layer_01.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    sentences = store / "sentences.csv"
    sentences.write_text(sentences.read_text().replace("gardener", "warden").replace("rain", "snow"))
    assert main(arguments(labelled_csv, store, tiny_configuration, "--verify")) == 0
    assert_same_bytes(store, finished_store)


@pytest.mark.parametrize("moment", ["before the manifest", "within the manifest", "within the sentences"])
def test_a_run_killed_at_its_very_beginning_goes_on(
    moment, finished_store, labelled_csv, tiny_configuration, tmp_path, monkeypatch
):
    """A signal leaves temporary files behind, which an exception would remove."""
    output = tmp_path / "cut"

    def killed(folder, _):
        name = "sentences.csv" if moment == "within the sentences" else "manifest.json"
        if moment != "before the manifest":
            folder.mkdir(parents=True, exist_ok=True)
            stem, suffix = name.split(".")
            (folder / f".{stem}.77.tmp.{suffix}").write_text("half")
        raise Killed

    function = "write_sentences" if moment == "within the sentences" else "write_manifest"
    resume = arguments(labelled_csv, output, tiny_configuration, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(store_preparation, function, killed)
        with pytest.raises(Killed):
            main(resume)
    assert main(resume) == 0
    assert_same_bytes(output, finished_store)


def test_a_run_killed_at_its_very_end_leaves_nothing_behind(
    finished_store, labelled_csv, tiny_configuration, tmp_path, monkeypatch
):
    output = tmp_path / "cut"
    resume = arguments(labelled_csv, output, tiny_configuration, "--resume")

    def killed(path, _):
        path.with_name(f".{path.stem}.77.tmp{path.suffix}").write_text("half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(extract_sae_features, "write_json", killed)  # of run_log.json
        with pytest.raises(Killed):
            main(resume)
    assert main(resume) == 0
    assert_same_bytes(output, finished_store)
