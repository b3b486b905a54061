"""Encoders against sae-lens's own, and weights that are not what they should be."""

import json

import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors.numpy import load_file, save_file

from pipeline_common.errors import UserError
from s1_compute_all_features.sae_configurations import ModelEntry, SaeConfigurations, SaeEntry
from s1_compute_all_features.sae_encoder import SaeLensEncoder, ThresholdEncoder, load_encoder
from s1_compute_all_features.sae_weights import locate_sae
from tests.fake_hub import write_params

D_MODEL, D_SAE = 16, 64


def entry(hook="blocks.0.hook_resid_post", path="layer_0") -> SaeEntry:
    return SaeEntry(name="a", layer=0, average_l0=8, hook=hook, sae_id=path, path=path, neuronpedia_id="")


def configurations(**changes) -> SaeConfigurations:
    values = {
        "format_version": 1,
        "description": "",
        "model": ModelEntry(id="m"),
        "release": "",
        "repo_id": "",
        "weights_format": "gemma_scope",
        "saes": (entry(),),
    }
    return SaeConfigurations(**{**values, **changes})


def states(n_tokens: int = 200) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(n_tokens, D_MODEL)).astype(np.float32))


def sae_lens_folder(folder, architecture="standard", **settings):
    rng = np.random.default_rng(2)
    weights = {
        "W_enc": rng.normal(size=(D_MODEL, D_SAE)),
        "W_dec": rng.normal(size=(D_SAE, D_MODEL)),
        "b_enc": rng.normal(size=D_SAE),
        "b_dec": rng.normal(size=D_MODEL),
    }
    if architecture == "jumprelu":
        weights["threshold"] = rng.uniform(-1, 2, size=D_SAE)
    folder.mkdir(parents=True)
    save_file(
        {name: array.astype(np.float32) for name, array in weights.items()},
        folder / "sae_weights.safetensors",
    )
    metadata = {"sae_lens_version": "6.50.0", "hook_name": "blocks.0.hook_resid_post", "prepend_bos": True}
    (folder / "cfg.json").write_text(
        json.dumps(
            {
                "architecture": architecture,
                "d_in": D_MODEL,
                "d_sae": D_SAE,
                "dtype": "float32",
                "device": "cpu",
                "metadata": {**metadata, **settings.pop("metadata", {})},
                **settings,
            }
        )
    )
    return folder


def test_gemma_scope_params_encode_as_the_formula_says(tmp_path):
    write_params(tmp_path / "layer_0", D_MODEL, D_SAE, seed=5)
    located = locate_sae(configurations(), entry(), tmp_path, tmp_path)
    encoder = load_encoder(located, configurations(), "cpu")
    arrays = np.load(tmp_path / "layer_0" / "params.npz")
    p = states().numpy() @ arrays["W_enc"] + arrays["b_enc"]
    expected = np.maximum(p, 0) * (p > arrays["threshold"])
    got = encoder.encode(states())
    np.testing.assert_allclose(got.to_dense(), expected, rtol=1e-5, atol=1e-5)
    assert got.indices.dtype == np.uint16
    assert (located.spec.d_in, located.spec.d_sae) == (D_MODEL, D_SAE)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
@pytest.mark.parametrize("subtract", [True, False])
def test_the_fast_path_equals_sae_lens(tmp_path, architecture, subtract):
    folder = sae_lens_folder(tmp_path / "layer_0", architecture, apply_b_dec_to_input=subtract)
    encoder = load_encoder(locate_sae(configurations(), entry(), tmp_path, tmp_path), configurations(), "cpu")
    assert isinstance(encoder, ThresholdEncoder)
    expected = SAE.load_from_disk(folder).encode(states()).detach().numpy()
    got = encoder.encode(states()).to_dense()
    # The bias holds b_dec @ W_enc, so additions come in another order: float32 rounding, no more.
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert (expected > 0).mean() > 0.1


@pytest.mark.parametrize(
    ("architecture", "settings"), [("topk", {"k": 5}), ("standard", {"normalize_activations": "layer_norm"})]
)
def test_other_architectures_run_through_sae_lens(tmp_path, architecture, settings):
    folder = sae_lens_folder(tmp_path / "layer_0", architecture, **settings)
    encoder = load_encoder(locate_sae(configurations(), entry(), tmp_path, tmp_path), configurations(), "cpu")
    assert isinstance(encoder, SaeLensEncoder)
    expected = SAE.load_from_disk(folder).encode(states()).detach().numpy()
    np.testing.assert_array_equal(encoder.encode(states()).to_dense(), expected)


def test_centring_subtracts_each_tokens_mean(tmp_path):
    write_params(tmp_path / "layer_0", D_MODEL, D_SAE, seed=5)
    encoder = load_encoder(locate_sae(configurations(), entry(), tmp_path, tmp_path), configurations(), "cpu")
    shifted = states() + 3.0
    centred = encoder.encode(shifted, center=True).to_dense()
    by_hand = encoder.encode(shifted - shifted.mean(dim=1, keepdim=True)).to_dense()
    np.testing.assert_array_equal(centred, by_hand)
    assert not np.allclose(centred, encoder.encode(shifted).to_dense())


def test_strips_equal_one_product(tmp_path):
    write_params(tmp_path / "layer_0", D_MODEL, D_SAE, seed=5)
    encoder = load_encoder(locate_sae(configurations(), entry(), tmp_path, tmp_path), configurations(), "cpu")
    whole, pieces = (
        encoder.encode(states(2500)),
        [encoder.encode(states(2500)[i : i + 500]) for i in range(0, 2500, 500)],
    )
    np.testing.assert_allclose(
        whole.to_dense(), np.concatenate([p.to_dense() for p in pieces]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"metadata": {"hook_name": "blocks.3.hook_resid_post"}},
            "trained with hook 'blocks.3.hook_resid_post'",
        ),
        ({"metadata": {"prepend_bos": False}}, "trained with prepend_bos False"),
        ({"normalize_activations": "expected_average_only_in"}, "scaled by a factor"),
    ],
)
def test_an_sae_of_something_else_is_refused(tmp_path, settings, message):
    sae_lens_folder(tmp_path / "layer_0", **settings)
    with pytest.raises(UserError, match=message):
        locate_sae(configurations(), entry(), tmp_path, tmp_path)


def test_missing_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(
        UserError, match=r"none of params\.npz, params\.safetensors, sae_weights\.safetensors there"
    ):
        locate_sae(configurations(), entry(), tmp_path, tmp_path)
    write_params(tmp_path / "layer_0", D_MODEL, D_SAE, seed=5)
    path = tmp_path / "layer_0" / "params.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"params\.npz: damaged"):
        locate_sae(configurations(), entry(), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("W_enc", (3, 5), np.nan),
        ("W_enc", (0, 0), np.inf),
        ("b_enc", (7,), np.nan),
        ("threshold", (2,), np.nan),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path, name, place, value):
    """NaN is above no threshold: the feature would be silent everywhere, which looks like a result."""
    write_params(tmp_path / "layer_0", D_MODEL, D_SAE, seed=5)
    path = tmp_path / "layer_0" / "params.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays[name][place] = value
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"SAE \S+: weights that are not finite in .*params\.npz"):
        load_encoder(locate_sae(configurations(), entry(), tmp_path, tmp_path), configurations(), "cpu")


def test_a_threshold_that_nothing_reaches_is_sound(tmp_path):
    write_params(tmp_path / "layer_0", D_MODEL, D_SAE, seed=5)
    path = tmp_path / "layer_0" / "params.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["threshold"][2] = np.inf
    np.savez(path, **arrays)
    encoder = load_encoder(locate_sae(configurations(), entry(), tmp_path, tmp_path), configurations(), "cpu")
    dense = encoder.encode(states()).to_dense()
    assert not dense[:, 2].any()
    assert dense.any()


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_nan_in_an_sae_lens_folder_is_refused_too(tmp_path, architecture):
    more = {"k": 4} if architecture == "topk" else {}
    sae_lens_folder(tmp_path / "layer_0", architecture, **more)
    path = tmp_path / "layer_0" / "sae_weights.safetensors"
    weights = load_file(path)
    weights["W_enc"][1, 2] = np.nan
    save_file(weights, path)
    located = locate_sae(configurations(), entry(), tmp_path, tmp_path)
    with pytest.raises(UserError, match="weights that are not finite"):
        load_encoder(located, configurations(), "cpu")
