"""Neuronpedia's scale: what a store holds times the decoder's norms, against sae-lens's own folded SAE."""

import json
import shutil

import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, read_npz, sealed, write_json, write_npz
from s1_compute_all_features.activation_scale import scale_of
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.sae_encoder import SaeEncoder
from s1_compute_all_features.sae_weights import LocatedSae
from s1_compute_all_features.saes.decoder_norms import decoder_norms_of, norms_of_loaded
from s1_compute_all_features.saes.sae_spec import SaeSpec
from tests.s1.conftest import arguments, assert_same_bytes
from tests.s1.test_sae_architectures import save_sae
from tests.s1.test_sae_encoder import D_MODEL, D_SAE, entry

pytestmark = pytest.mark.usefixtures("one_thread")

TRANSCODER = {"d_out": D_MODEL, "apply_b_dec_to_input": False}
RESCALED = {"k": 7, "rescale_acts_by_decoder_norm": True}
FOLDED = {
    "standard": ("standard", {}, False),
    "standard, layer norm": ("standard", {"normalize_activations": "layer_norm"}, False),
    "jumprelu": ("jumprelu", {}, False),
    "gated": ("gated", {}, False),
    "jumprelu transcoder": ("jumprelu_transcoder", TRANSCODER, False),
    "skip transcoder": ("skip_transcoder", TRANSCODER, False),
    "topk, decoder norm": ("topk", RESCALED, False),
}
UNFOLDED = {
    "topk": ("topk", {"k": 7}, False),
    "matching pursuit": ("matching_pursuit", {"max_iterations": 6}, False),
}


@pytest.fixture
def extracted(tiny_configuration, labelled_csv, tmp_path, monkeypatch):
    """Extract one SAE of an architecture; returns its folder, its store and the states that it encoded."""
    seen = []
    encode = SaeEncoder.encode

    def watched(self, states, center=False):
        seen.append(states.clone())
        return encode(self, states, center)

    monkeypatch.setattr(SaeEncoder, "encode", watched)

    def run(architecture, settings, trained, *more):
        folder = save_sae(tmp_path / "saes" / "sae", architecture, settings, trained)
        content = json.loads(tiny_configuration.read_text())
        shutil.copytree(tiny_configuration.parent / "model", tmp_path / "model")
        sae = {**content["saes"][0], "name": "sae", "path": "sae"}
        changes = {"saes": [sae], "sae_root": "saes", "weights_format": "sae_lens"}
        (tmp_path / "c.json").write_text(json.dumps({**content, **changes}))
        assert main(arguments(labelled_csv, tmp_path / "store", tmp_path / "c.json", *more)) == 0
        return folder, FeatureStore(tmp_path / "store"), torch.cat(seen)

    return run


@pytest.mark.parametrize("name", FOLDED)
def test_value_times_norm_is_what_the_folded_sae_encodes(name, extracted):
    folder, store, states = extracted(*FOLDED[name])
    (sae,) = store.saes
    norms, stored = store.decoder_norms(sae), store.activations(sae).to_dense()
    rows = SAE.load_from_disk(folder).W_dec.norm(dim=-1)
    assert norms.dtype == np.float32
    if name == "topk, decoder norm":  # scaled before the k largest are taken
        assert np.array_equal(norms, np.ones(D_SAE))
    else:
        np.testing.assert_allclose(norms, rows.detach().numpy(), rtol=1e-6)
        assert norms.min() > 1.5  # far from 1: a missing factor would show
    with torch.inference_mode():
        folded = SAE.load_from_disk(folder, fold_W_dec_norm=True).encode(states).numpy()
    assert 0.02 < (folded > 0).mean() < 0.9
    np.testing.assert_array_equal(stored > 0, folded > 0)
    # The fold changes the order of products and additions: float32 rounding, no more.
    np.testing.assert_allclose(stored * norms, folded, rtol=2e-4, atol=2e-4)
    if name != "topk, decoder norm":
        assert not np.allclose(stored, folded, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", UNFOLDED)
def test_where_sae_lens_refuses_the_fold_there_are_no_norms(name, tmp_path):
    folder = save_sae(tmp_path / "sae", *UNFOLDED[name])
    with pytest.raises(NotImplementedError, match="Folding W_dec_norm is not"):
        SAE.load_from_disk(folder, fold_W_dec_norm=True)
    assert norms_of_loaded(located(folder / "sae_weights.safetensors"), SAE.load_from_disk(folder)) is None


def test_a_store_has_no_scale_where_there_are_no_norms(extracted):
    _, store, _ = extracted(*UNFOLDED["topk"])
    assert store.decoder_norms(store.saes[0]) is None
    assert store.neuronpedia_scale(store.saes[0]) is None


def test_batchtopk_as_trained_here_is_saved_with_norms_of_one(extracted):
    _, store, _ = extracted("batchtopk", {"k": 7}, True)
    norms = store.decoder_norms(store.saes[0])
    np.testing.assert_allclose(norms, 1, atol=1e-5)
    assert np.array_equal(store.neuronpedia_scale(store.saes[0]), np.ones(D_SAE))


def test_norms_are_those_of_the_weights_whatever_the_precision_of_the_product(extracted):
    _, store, _ = extracted("gated", {}, False, "--sae-dtype", "bfloat16")
    folder = store.path.parent / "saes" / "sae"
    rows = SAE.load_from_disk(folder).W_dec.norm(dim=-1).detach().numpy()
    np.testing.assert_allclose(store.decoder_norms(store.saes[0]), rows, rtol=1e-6)


def test_they_stand_in_the_first_block_alone_and_stay_through_extend(
    finished_store, tiny_configuration, labelled_csv, tmp_path
):
    with_norms = [path for path in finished_store.glob("*/sae_*.npz") if "decoder_norms" in np.load(path)]
    assert {path.parent.name for path in with_norms} == {"block_0000"}
    assert len(with_norms) == len(FeatureStore(finished_store).saes)
    few = arguments(labelled_csv, tmp_path / "store", tiny_configuration, "--saes", "layer_00_l0_8")
    assert main(few) == 0
    assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration, "--extend")) == 0
    assert_same_bytes(tmp_path / "store", finished_store)


def test_a_store_of_before_has_none_and_takes_them_for_new_saes(
    store, tiny_configuration, labelled_csv, tmp_path
):
    def without(path):
        arrays = dict(np.load(path))
        arrays.pop("decoder_norms", None)
        write_npz(path, arrays)

    for path in store.glob("*/sae_*.npz"):
        without(path)
    manifest = read_json(store / "manifest.json", "manifest")
    manifest.pop("sha256")
    write_json(store / "manifest.json", sealed({**manifest, "format_version": 2}))
    old = FeatureStore(store)
    assert [old.decoder_norms(sae) for sae in old.saes] == [None] * 6
    assert old.activations(old.saes[0]).data.size


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (np.ones(63, np.float32), r"'decoder_norms' holds float32 of shape \(63,\), not 64 numbers"),
        (np.ones(64, np.int64), "'decoder_norms' holds int64"),
        (np.full(64, np.nan, np.float32), "not finite or not above 0"),
        (np.full(64, np.inf, np.float32), "not finite or not above 0"),
        (np.zeros(64, np.float32), "not finite or not above 0"),
        (-np.ones(64, np.float32), "not finite or not above 0"),
    ],
)
def test_norms_that_are_none_are_refused(store, norms, message):
    opened = FeatureStore(store)
    path = store / "block_0000" / "sae_layer_00_l0_8.npz"
    write_npz(path, {**dict(np.load(path)), "decoder_norms": norms})
    with pytest.raises(UserError, match=message):
        opened.decoder_norms(opened.saes[0])


def located(path) -> LocatedSae:
    return LocatedSae(entry(), path, "f", SaeSpec("standard", 16, 64))


def matrix(n_rows=300, n_columns=16):
    """More rows than one strip."""
    return np.random.default_rng(0).normal(size=(n_rows, n_columns)).astype(np.float32)


@pytest.mark.parametrize(
    "save",
    [
        lambda path, W: np.savez(path.with_suffix(".npz"), W_dec=W),
        lambda path, W: np.savez(path.with_suffix(".npz"), W_dec=np.asfortranarray(W)),
        lambda path, W: np.savez(path.with_suffix(".npz"), W_dec=W.astype(np.float64)),
        lambda path, W: save_file({"W_dec": torch.from_numpy(W)}, path.with_suffix(".safetensors")),
        lambda path, W: save_file({"w_dec": torch.from_numpy(W)}, path.with_suffix(".safetensors")),
    ],
    ids=["npz", "npz by columns", "npz float64", "safetensors", "lower case"],
)
def test_norms_are_read_in_strips_from_every_layout(save, tmp_path):
    save(tmp_path / "weights", matrix())
    (path,) = tmp_path.iterdir()
    norms = decoder_norms_of(located(path), 300)
    np.testing.assert_allclose(norms, np.linalg.norm(matrix().astype(np.float64), axis=1), rtol=1e-6)


def test_a_row_of_zeros_has_the_norm_that_sae_lens_gives_it(tmp_path):
    W_dec = matrix()
    W_dec[7] = 0
    np.savez(tmp_path / "params.npz", W_dec=W_dec)
    assert decoder_norms_of(located(tmp_path / "params.npz"), 300)[7] == np.float32(1e-8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"W_dec": matrix(299)}, "W_dec has 299 rows, W_enc has 300 features"),
        ({"W_dec": matrix() * np.nan}, "W_dec is not finite in .*params.npz"),
        ({"W_dec": matrix()[0]}, "expected a matrix of floats"),
        ({"W_enc": matrix()}, "array 'W_dec' is missing"),
    ],
)
def test_a_decoder_that_is_none_is_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "params.npz", **arrays)
    with pytest.raises(UserError, match=message):
        decoder_norms_of(located(tmp_path / "params.npz"), 300)


def test_the_run_stops_with_one_line_where_a_decoder_is_damaged(extracted, capsys, tmp_path):
    folder, store, _ = extracted("jumprelu", {}, False)
    weights = folder / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"][3, 2] = float("nan")
    save_file(tensors, weights)
    csv, output = tmp_path / "tiny.csv", tmp_path / "again"
    assert main(arguments(csv, output, tmp_path / "c.json")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: SAE sae: W_dec is not finite in ")
    assert not read_json(output / "manifest.json", "manifest")["complete"]
    assert read_npz(store.path / "block_0000" / "sae_sae.npz", (), "x", optional=("none",)) == {}


def test_norms_near_one_are_one():
    near = np.array([1, 1.0009, 0.9991], dtype=np.float32)
    assert np.array_equal(scale_of(near), [1, 1, 1])
    far = np.array([1, 1.002], dtype=np.float32)
    assert scale_of(far) is far
    assert scale_of(None) is None
