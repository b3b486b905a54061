"""A ranking without attention sinks is that of sentences without them; with --keep-sinks that of old."""

import json
import shutil

import numpy as np
import pytest

from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.analyze_features import main
from s2_find_top_features.baselines import best_random_direction
from s2_find_top_features.ranked_features import read_examples, read_results
from s2_find_top_features.scoring import Split
from tests.s2.test_ranking import SETTINGS
from tests.synthetic_store import SINK_SIZE, planted_sinks, write_synthetic_store

FAST = ["--permutations", "20", "--top-n", "10"]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A store with sinks at layer 1, where they fire every feature."""
    return write_synthetic_store(tmp_path_factory.mktemp("told") / "lies", sink_layers=(1,))


def change_manifest(store, **changes):
    manifest = json.loads((store / "manifest.json").read_text())
    kept = {key: value for key, value in {**manifest, **changes}.items() if value is not None}
    (store / "manifest.json").write_text(json.dumps(kept))
    return store


@pytest.fixture
def untold(told, tmp_path):
    """The same numbers, of which nobody says that some are sinks'."""
    shutil.copytree(told, tmp_path / "untold" / "lies")
    return change_manifest(tmp_path / "untold" / "lies", sinks=None, sinks_found=None)


@pytest.fixture
def quiet(told, tmp_path):
    """The same store, silent on its sinks: under max pooling, what is left without them."""
    store = shutil.copytree(told, tmp_path / "quiet" / "lies")
    for path in store.glob("block_*/sae_layer_01_*.npz"):
        with np.load(path) as archive:
            arrays = dict(archive)
        lengths = np.diff(arrays["indptr"])
        lengths_left = lengths.copy()
        lengths_left[arrays.pop("sinks")] = 0
        kept = np.repeat(lengths_left > 0, lengths)
        arrays |= {name: arrays[name][kept] for name in ("data", "indices")}
        arrays["indptr"] = np.concatenate([[0], np.cumsum(lengths_left)])
        np.savez(path, **arrays)
    return change_manifest(store, sinks=None, sinks_found=None)


def ranked(store, output, *more):
    assert main(["--input", str(store), "--output", str(output), *FAST, *more]) == 0
    return read_results(output)


def test_the_ranking_is_that_of_a_store_that_is_silent_on_its_sinks(told, quiet, tmp_path, capsys):
    one, other = ranked(told, tmp_path / "a"), ranked(quiet, tmp_path / "b")
    assert one.features == other.features
    assert one.summary["n_active_on_train"] == other.summary["n_active_on_train"]
    assert one.summary["settings"]["keep_sinks"] is False
    assert not one.keep_sinks
    examples = read_examples(tmp_path / "a")
    assert examples == read_examples(tmp_path / "b")
    sinks, starts = planted_sinks(FeatureStore(told).n_tokens), FeatureStore(told).starts
    for entry in examples:
        for example in (example for of_label in entry["examples"].values() for example in of_label):
            assert 0 < example["max_activation"] < SINK_SIZE / 10
            if entry["layer"] == 1:
                assert not sinks[starts[example["sentence_index"]] + example["position"]]
    n_sinks = int(sinks.sum())
    note = f"attention sinks are left out of every pooling: up to {n_sinks} of {starts[-1]} tokens"
    assert f"note: {note}, at layer 1\n" in capsys.readouterr().out


def test_kept_sinks_give_the_ranking_of_old(told, untold, tmp_path, capsys):
    kept, old = ranked(told, tmp_path / "a", "--keep-sinks"), ranked(untold, tmp_path / "b")
    assert kept.features == old.features
    assert kept.keep_sinks
    assert not old.keep_sinks
    assert "count like other tokens (--keep-sinks)" in capsys.readouterr().out
    assert kept.features != ranked(told, tmp_path / "c").features


def test_random_directions_do_not_see_sinks(told, tmp_path):
    """Neither does their size matter, nor what fires on them."""
    store = FeatureStore(told)
    sae, split = store.find_sae(1, 24), Split.of(store)
    one = best_random_direction(store, split, sae, SETTINGS)
    louder = shutil.copytree(told, tmp_path / "louder")
    for path in louder.glob("block_*/hidden_layer_01.npz"):
        with np.load(path) as archive:
            arrays = dict(archive)
        arrays["states"] = arrays["states"].astype(np.float32)
        arrays["states"][arrays["sinks"]] *= -50
        np.savez(path, **arrays)
    other = best_random_direction(FeatureStore(louder), split, sae, SETTINGS)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert one.details == other.details
    kept = np.repeat(split.train, store.n_tokens) & ~store.sinks(1)
    active = np.diff(FeatureStore(told, keep_sinks=True).activations(sae).indptr)
    assert one.details["density"] == pytest.approx(active[kept].mean() / sae.d_sae, rel=1e-12)
    seen = best_random_direction(FeatureStore(louder, keep_sinks=True), split, sae, SETTINGS)
    assert (seen.scores != one.scores).any()


def test_traits_are_compared_with_sinks_or_without(told, untold, tmp_path, capsys):
    other = shutil.copytree(untold, tmp_path / "harm")
    change_manifest(other, input={"file": "harm.csv"})
    where = ["--input", str(told), "--output", str(tmp_path / "results"), *FAST, "--contrast", str(other)]
    assert main(where) == 1
    assert "one was made without a look for attention sinks; make both alike, or add --keep-sinks" in (
        capsys.readouterr().err
    )
    assert main([*where, "--keep-sinks"]) == 0
