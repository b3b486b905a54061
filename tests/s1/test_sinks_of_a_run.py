"""Extraction from a model with planted sinks: what is told, what is left out, and that no byte differs.

The sinks are tokens whose embeddings are a thousand times those of the others, so that it is known which they
are: the first token of some sentences, the last of all, some in between.
"""

import json
import logging
import shutil

import numpy as np
import pytest

from pipeline_common.files import sealed
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import EMBEDDINGS, FeatureStore
from s1_compute_all_features.pooling import POOLINGS
from tests.s1.conftest import (
    Killed,
    arguments,
    assert_same_bytes,
    contents,
    kill_at_write,
    write_sentences_csv,
)
from tests.s1.test_torchrun import torchrun

pytestmark = pytest.mark.usefixtures("one_thread")

SINKS = (".", " the", "T", "S", "d")
FIRST_SINKS, N_FIRST = ("T", "S"), 6


@pytest.fixture(scope="module")
def configuration(tiny_configuration, tmp_path_factory):
    """The tiny model with sinks, without BOS; one of its SAEs reads the input of block 0."""
    import torch
    from transformers import AutoTokenizer, Gemma2ForCausalLM

    folder = tmp_path_factory.mktemp("planted") / "configuration"
    shutil.copytree(tiny_configuration.parent, folder)
    model = Gemma2ForCausalLM.from_pretrained(folder / "model")
    vocabulary = AutoTokenizer.from_pretrained(folder / "model").get_vocab()
    with torch.no_grad():
        for token in SINKS:
            model.get_input_embeddings().weight[vocabulary[token.replace(" ", "\u0120")]] *= 1000
    model.save_pretrained(folder / "model")
    content = json.loads((folder / "tiny.json").read_text())
    content["model"]["prepend_bos"] = False
    content["saes"][0]["hook"] = "blocks.0.hook_resid_pre"
    (folder / "tiny.json").write_text(json.dumps(content))
    return folder / "tiny.json"


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    return write_sentences_csv(tmp_path_factory.mktemp("csv") / "tiny.csv")


@pytest.fixture(scope="module")
def whole(csv, configuration, tmp_path_factory):
    """The store of one run, for reading only."""
    import torch

    folder = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    assert main(arguments(csv, folder / "store", configuration, "--check-reconstruction")) == 0
    torch.set_num_threads(before)
    return folder / "store"


@pytest.fixture(scope="module")
def unmasked(csv, configuration, tmp_path_factory):
    """The same with --keep-sinks."""
    import torch

    folder = tmp_path_factory.mktemp("unmasked")
    before = torch.get_num_threads()
    more = ["--check-reconstruction", "--keep-sinks"]
    assert main(arguments(csv, folder / "store", configuration, *more)) == 0
    torch.set_num_threads(before)
    return folder / "store"


def run_log(store):
    return json.loads((store / "run_log.json").read_text())


def test_the_planted_tokens_are_the_sinks_of_every_layer(whole):
    store = FeatureStore(whole)
    expected = np.isin(store.tokens.text, SINKS)
    first = np.isin(store.tokens.text, FIRST_SINKS) & (store.tokens.position == 0)
    assert 0.05 < expected.mean() < 0.5
    assert len(store.manifest["blocks"]) > 3
    assert [*store.manifest["sinks"]["median_norms"]] == ["-1", "0", "1", "2"]
    for layer in (-1, 0, 1, 2):
        np.testing.assert_array_equal(store.sinks(layer), expected)
        counts = store.manifest["sinks_found"][str(layer)]
        assert counts == {"n_tokens": int(expected.sum()), "n_first_tokens": int(first.sum())}
        assert first.sum() == N_FIRST
    assert not store.sinks(EMBEDDINGS).any()


def test_the_medians_are_those_of_the_first_block(whole):
    store = FeatureStore(whole)
    n_tokens = store.manifest["blocks"][0]["n_tokens"]
    for layer in store.layers:
        norms = np.linalg.norm(store.hidden_states(layer)[:n_tokens].astype(np.float64), axis=1)
        median = store.manifest["sinks"]["median_norms"][str(layer)]
        assert median == pytest.approx(np.median(norms), rel=2e-3)  # of the stored states, in float16


def test_kept_sinks_are_the_same_numbers_and_nothing_is_dropped(whole, unmasked):
    """Every array but the masks is that of a run that does not look for sinks."""
    store = FeatureStore(unmasked)
    assert store.manifest["sinks"] is None
    assert "sinks_found" not in store.manifest
    assert not store.leaves_out_sinks
    for path in sorted(unmasked.glob("block_*/*.npz")):
        with np.load(path) as one, np.load(whole / path.relative_to(unmasked)) as other:
            told = set() if path.name in ("tokens.npz", "embeddings.npz") else {"sinks"}
            assert set(other.files) - set(one.files) == told
            for name in one.files:
                np.testing.assert_array_equal(one[name], other[name])
    masked, kept = FeatureStore(whole), FeatureStore(whole, keep_sinks=True)
    for sae in store.saes:
        for pooling in POOLINGS:
            old = store.pooled_activations(sae, pooling).to_dense()
            np.testing.assert_array_equal(kept.pooled_activations(sae, pooling).to_dense(), old)
            assert (masked.pooled_activations(sae, pooling).to_dense() != old).any()
    for layer in store.layers:
        old = store.pooled_hidden_states(layer)
        np.testing.assert_array_equal(kept.pooled_hidden_states(layer), old)
        assert np.linalg.norm(old) > 10 * np.linalg.norm(masked.pooled_hidden_states(layer))


def test_figures_of_the_run_leave_sinks_out(whole, unmasked, configuration):
    store = FeatureStore(whole, keep_sinks=True)
    kept = ~np.isin(store.tokens.text, SINKS)
    first_block = slice(0, store.manifest["blocks"][0]["n_tokens"])
    log, old = run_log(whole), run_log(unmasked)
    for sae in store.saes:
        active = np.diff(store.activations(sae).indptr)
        assert log["mean_l0_measured"][sae.name] == pytest.approx(active[kept].mean(), rel=1e-12)
        assert old["mean_l0_measured"][sae.name] == pytest.approx(active.mean(), rel=1e-12)
        if sae.input_layer >= 0:
            states = store.hidden_states(sae.input_layer)[first_block][kept[first_block]].astype(np.float64)
            dense = store.activations(sae).to_dense()[first_block][kept[first_block]].astype(np.float64)
            with np.load(configuration.parent / "saes" / sae.sae_id / "params.npz") as weights:
                residual = states - (dense @ weights["W_dec"] + weights["b_dec"])
            explained = 1 - (residual**2).sum() / ((states - states.mean(axis=0)) ** 2).sum()
            # The stored states are rounded to 11 bits.
            assert log["variance_explained"][sae.name] == pytest.approx(explained, rel=0.02, abs=0.02)
            assert old["variance_explained"][sae.name] != pytest.approx(explained, rel=0.02, abs=0.02)


def test_pooled_stores_equal_pooled_readings(whole, csv, configuration, tmp_path):
    assert main(arguments(csv, tmp_path / "pooled", configuration, "--hidden-states", "pooled")) == 0
    store, pooled = FeatureStore(whole), FeatureStore(tmp_path / "pooled")
    assert store.manifest["sinks"] == pooled.manifest["sinks"]
    assert store.manifest["sinks_found"] == pooled.manifest["sinks_found"]
    for layer in (EMBEDDINGS, *store.layers):
        for pooling in POOLINGS:
            got, expected = (one.pooled_hidden_states(layer, pooling) for one in (pooled, store))
            largest = (
                np.abs(store.hidden_states(layer)).max() if layer == EMBEDDINGS else np.abs(expected).max()
            )
            np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3 * largest)  # float16


def test_a_stream_of_small_blocks_has_the_sinks_of_one_block(whole, csv, configuration, tmp_path):
    """The first of ten blocks has other medians than all in one; the same tokens are above ten times them."""
    assert main(arguments(csv, tmp_path / "one", configuration, "--block-tokens", "1000")) == 0
    many, one = FeatureStore(whole), FeatureStore(tmp_path / "one")
    assert len(one.manifest["blocks"]) == 1 < len(many.manifest["blocks"])
    assert one.manifest["sinks"] != many.manifest["sinks"]
    for layer in (-1, 0, 1, 2):
        np.testing.assert_array_equal(one.sinks(layer), many.sinks(layer))
    for sae in one.saes:
        got, expected = (store.pooled_activations(sae, "mean").to_dense() for store in (one, many))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)  # float32 of other batches


def test_extending_gives_the_same_bytes(whole, csv, configuration, tmp_path):
    grown = tmp_path / "grown"
    for more in (["--layers", "0"], ["--layers", "2", "--saes", "none"], ["--layers", "1"], []):
        assert main(arguments(csv, grown, configuration, "--extend", *more)) == 0
    assert_same_bytes(grown, whole)


@pytest.mark.parametrize("writes", [0, 1, 3, 9, 25])
def test_a_killed_run_goes_on_with_the_medians_that_it_had(
    writes, whole, csv, configuration, tmp_path, monkeypatch
):
    command = arguments(csv, tmp_path / "store", configuration)
    with monkeypatch.context() as patch:
        kill_at_write(patch, writes)
        with pytest.raises(Killed):
            main(command)
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    masked = [path for path in contents(tmp_path / "store") if "hidden" in path or "sae_" in path]
    if masked:  # no file without the medians that decided on it
        assert manifest["sinks"] == FeatureStore(whole).manifest["sinks"]
    assert main([*command, "--resume"]) == 0
    assert_same_bytes(tmp_path / "store", whole)


def test_a_damaged_file_is_mended_with_the_same_mask(whole, csv, configuration, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    for name in ("block_0000/hidden_layer_01.npz", "block_0002/sae_layer_00_l0_8.npz"):
        path = tmp_path / "store" / name
        path.write_bytes(path.read_bytes()[:-40])
    assert main(arguments(csv, tmp_path / "store", configuration, "--verify")) == 0
    assert_same_bytes(tmp_path / "store", whole)


def test_medians_that_are_gone_are_measured_again(whole, csv, configuration, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    (store / "block_0003" / "hidden_layer_01.npz").unlink()
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["sinks"]["median_norms"]["1"]
    unsealed = {key: value for key, value in manifest.items() if key != "sha256"}
    (store / "manifest.json").write_text(json.dumps({**unsealed, "complete": False}))
    assert main(arguments(csv, store, configuration, "--resume")) == 0
    assert_same_bytes(store, whole)


@pytest.mark.slow
@pytest.mark.parametrize("block_tokens", ["60", "1000"])
def test_two_processes_give_the_same_bytes(block_tokens, csv, configuration, tmp_path):
    more = ["--block-tokens", block_tokens]
    assert main(arguments(csv, tmp_path / "alone", configuration, *more)) == 0
    torchrun(arguments(csv, tmp_path / "together", configuration, *more))
    assert_same_bytes(tmp_path / "together", tmp_path / "alone")
    assert FeatureStore(tmp_path / "together").sinks(1).any()


def test_the_run_says_how_many_and_where_and_advises_a_bos_token(csv, configuration, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert main(arguments(csv, tmp_path / "store", configuration)) == 0
    store = FeatureStore(tmp_path / "store")
    n_sinks = int(store.sinks(0).sum())
    line = f"store: sinks: layers -1 to 2: {n_sinks} of {store.starts[-1]} tokens, {N_FIRST} at position 0"
    assert line in caplog.messages
    (note,) = [message for message in caplog.messages if "prepend_bos" in message]
    assert f"in {N_FIRST} of 12 sentences the first token is an attention sink" in note
    caplog.clear()
    content = json.loads(configuration.read_text())
    content["model"]["prepend_bos"] = True
    other = configuration.parent / "with_bos.json"
    other.write_text(json.dumps(content))
    assert main(arguments(csv, tmp_path / "with_bos", other)) == 0
    assert not [message for message in caplog.messages if "prepend_bos" in message]


def test_a_sentence_of_sinks_alone_is_named(configuration, tmp_path, capsys):
    text = "..." * 30
    path = tmp_path / "lost.csv"
    path.write_text(
        f"sentence,concept_strength_label\nThe rain fell all night.,0\nNobody knew.,3\n{text},1\n"
    )
    assert main(arguments(path, tmp_path / "store", configuration)) == 1
    error = capsys.readouterr().err
    assert f"sentence 2 ({text[:60]!r}...): no token is left at layer -1" in error
    assert "10 times the median of" in error
    assert "--keep-sinks" in error
    assert main(arguments(path, tmp_path / "store", configuration, "--keep-sinks", "--overwrite")) == 0


def test_a_store_without_states_tells_the_sinks_of_its_saes(csv, configuration, tmp_path):
    more = ["--hidden-states", "none", "--saes", "layer_00_l0_8,layer_01_l0_8"]
    assert main(arguments(csv, tmp_path / "store", configuration, *more)) == 0
    store = FeatureStore(tmp_path / "store")
    assert [*store.manifest["sinks"]["median_norms"]] == ["-1", "1"]
    assert store.sinks(-1).any()
    assert store.pooled_activations(store.saes[0]).shape == (12, 64)


def test_saes_of_a_blocks_parts_leave_out_the_sinks_of_its_output(csv, configuration, tmp_path):
    """What a part writes, or reads through a norm, need not be large at a sink; the block's output is."""
    content = json.loads(configuration.read_text())
    content["sae_root"] = str(configuration.parent / "saes")
    content["model"]["id"] = str(configuration.parent / "model")
    parts = content["saes"][2:4]
    for sae, hook in zip(parts, ("blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"), strict=True):
        sae["hook"] = hook
    content["saes"] = parts
    (tmp_path / "parts.json").write_text(json.dumps(content))
    more = ["--hidden-states", "none"]
    assert main(arguments(csv, tmp_path / "store", tmp_path / "parts.json", *more)) == 0
    store, kept = FeatureStore(tmp_path / "store"), FeatureStore(tmp_path / "store", keep_sinks=True)
    assert [*store.manifest["sinks"]["median_norms"]] == ["1"]
    expected = np.isin(store.tokens.text, SINKS)
    np.testing.assert_array_equal(store.sinks(1), expected)
    for sae in store.saes:
        every = kept.activations(sae).to_dense()
        assert (every[expected] > 0).any()
        np.testing.assert_array_equal(
            store.activations(sae).to_dense(), np.where(expected[:, None], 0, every)
        )
        active = np.diff(kept.activations(sae).indptr)[~expected]
        log = run_log(tmp_path / "store")["mean_l0_measured"]
        assert log[sae.name] == pytest.approx(active.mean(), rel=1e-12)


# Medians from elsewhere.


@pytest.fixture
def few(tmp_path):
    """Two sentences, whose own medians are others."""
    return write_sentences_csv(tmp_path / "few.csv", 3, 5)


def test_medians_of_another_store_are_taken(whole, few, configuration, tmp_path):
    entry = FeatureStore(whole).manifest["sinks"]
    (tmp_path / "sinks.json").write_text(json.dumps(entry))
    for name, source in (("a", whole), ("b", tmp_path / "sinks.json")):
        command = arguments(few, tmp_path / name, configuration, "--sinks-like", str(source))
        assert main(command) == 0
        assert FeatureStore(tmp_path / name).manifest["sinks"] == entry
    assert_same_bytes(tmp_path / "a", tmp_path / "b")
    assert main(arguments(few, tmp_path / "own", configuration)) == 0
    own = FeatureStore(tmp_path / "own").manifest["sinks"]
    assert own["median_norms"].keys() == entry["median_norms"].keys()
    assert own != entry
    # Only those of the layers that the store has; the factor is theirs too.
    (tmp_path / "sinks.json").write_text(json.dumps({**entry, "factor": 1e9}))
    more = ["--layers", "1", "--sinks-like", str(tmp_path / "sinks.json")]
    assert main(arguments(few, tmp_path / "one", configuration, *more)) == 0
    one = FeatureStore(tmp_path / "one")
    assert one.manifest["sinks"]["median_norms"] == {"1": entry["median_norms"]["1"]}
    assert not one.sinks(1).any()


def test_a_store_like_one_that_keeps_sinks_keeps_them(unmasked, few, configuration, tmp_path):
    assert main(arguments(few, tmp_path / "a", configuration, "--sinks-like", str(unmasked))) == 0
    assert main(arguments(few, tmp_path / "b", configuration, "--keep-sinks")) == 0
    assert FeatureStore(tmp_path / "a").manifest["sinks"] is None
    assert_same_bytes(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"factor": 10.0, "median_norms": {"0": 1.0}}, "no median norm of layer -1, there are those of 0"),
        ({"factor": 10.0}, "median_norms: this key is missing"),
        ({"factor": 10.0, "median_norms": {"zero": 1.0}}, "sinks: invalid literal"),
    ],
)
def test_medians_that_do_not_serve_are_refused(entry, message, few, configuration, tmp_path, capsys):
    (tmp_path / "sinks.json").write_text(json.dumps(entry))
    more = ["--sinks-like", str(tmp_path / "sinks.json")]
    assert main(arguments(few, tmp_path / "store", configuration, *more)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "sinks.json" in error
    assert not (tmp_path / "store").exists()


# Going on with a store that was made otherwise.


def as_format_1(store):
    """What the program of format 1 would have left: no masks, nothing of sinks in the manifest."""
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest.pop("sinks") is None
    (store / "manifest.json").write_text(json.dumps(sealed({**manifest, "format_version": 1})))


@pytest.mark.parametrize("mode", ["--resume", "--extend", "--verify"])
def test_a_store_of_format_1_is_gone_on_with_only_as_it_was_begun(
    mode, unmasked, csv, configuration, tmp_path, capsys
):
    store = tmp_path / "store"
    shutil.copytree(unmasked, store)
    as_format_1(store)
    (store / "block_0001" / "sae_layer_01_l0_8.npz").unlink()
    before = contents(store)
    assert main(arguments(csv, store, configuration, mode)) == 1
    error = capsys.readouterr().err
    assert "made without a look for attention sinks (format 1); add --keep-sinks" in error
    assert error.strip().count("\n") <= 1
    assert contents(store) == before
    assert main(arguments(csv, store, configuration, mode, "--keep-sinks")) == 0
    assert_same_bytes(store, unmasked)


def test_a_store_that_leaves_sinks_out_is_not_gone_on_with_otherwise(
    whole, csv, configuration, tmp_path, capsys
):
    shutil.copytree(whole, tmp_path / "store")
    assert main(arguments(csv, tmp_path / "store", configuration, "--extend", "--keep-sinks")) == 1
    assert "with attention sinks left out; run without --keep-sinks" in capsys.readouterr().err
    entry = FeatureStore(whole).manifest["sinks"]
    for change, message in (
        ({"factor": 20.0}, "its sinks are above 10 times the median, this run's above 20"),
        ({"median_norms": {**entry["median_norms"], "1": 1.5}}, "sinks.json 1.5; use equal settings"),
    ):
        (tmp_path / "sinks.json").write_text(json.dumps({**entry, **change}))
        more = ["--extend", "--sinks-like", str(tmp_path / "sinks.json")]
        assert main(arguments(csv, tmp_path / "store", configuration, *more)) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "sinks.json").write_text(json.dumps(entry))
    assert main(arguments(csv, tmp_path / "store", configuration, *more)) == 0
    assert_same_bytes(tmp_path / "store", whole)
