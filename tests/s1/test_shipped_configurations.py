"""Shipped configurations on a hub cache in the real layout, with tiny models and SAEs of random weights."""

import json

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors import safe_open

from pipeline_common.errors import UserError
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.sae_configurations import STAGE_FOLDER, read_sae_configurations
from s1_compute_all_features.saes.registry import Selection, build_from_registry
from tests.fake_hub import (
    snapshot,
    write_fake_gemma3,
    write_fake_pythia,
    write_gemma_scope_2_sae,
    write_relu_sae,
)
from tests.s1.conftest import arguments
from tests.s1.registry_replay import filled_in

PYTHIA_70M = STAGE_FOLDER / "pythia_70m_configurations.json"
GEMMA_SCOPE_2_270M = STAGE_FOLDER / "gemma_scope_2_270m_configurations.json"
GEMMA_SCOPE_2_4B = STAGE_FOLDER / "gemma_scope_2_4b_configurations.json"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, off line."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def write_pythia_saes(cache):
    configurations = read_sae_configurations(PYTHIA_70M)
    folder = snapshot(cache, configurations.repo_id)
    for seed, sae in enumerate(configurations.saes):
        block, hook = sae.hook.split(".")[1:]
        cfg = filled_in("sae_lens_3.cfg.json", int(block), hook, "pythia-70m-deduped")
        write_relu_sae(folder / sae.path, cfg, seed=seed)
    return folder


def test_pythia_from_a_hub_cache_reads_in_front_of_and_behind_its_first_block(cache, tmp_path, labelled_csv):
    write_fake_pythia(cache)
    folder = write_pythia_saes(cache)
    assert main(arguments(labelled_csv, tmp_path / "store", PYTHIA_70M)) == 0
    store = FeatureStore(tmp_path / "store", keep_sinks=True)
    assert len(store.saes) == 7
    assert store.manifest["model"]["prepend_bos"] is False
    saes = {sae.name: sae for sae in store.saes}
    embeddings = np.concatenate(
        [
            np.load(block / "embeddings.npz")["states"]
            for block in sorted((tmp_path / "store").glob("block_*"))
        ]
    )
    for name, path, states in (
        ("layer_00_resid_pre", "e-res-sm", embeddings),
        ("layer_00_resid_post", "0-res-sm", store.hidden_states(0)),
        ("layer_05_resid_post", "5-res-sm", store.hidden_states(5)),
    ):
        sae = SAE.load_from_disk(folder / path, device="cpu")
        expected = sae.encode(torch.from_numpy(states.astype(np.float32))).detach().numpy()
        got = store.activations(saes[name]).to_dense()
        assert 0.05 < (got > 0).mean() < 0.95
        # The stored states are float16; the activations come from the full-precision ones.
        np.testing.assert_allclose(got, expected, atol=0.05)


def test_what_a_cached_cfg_json_says_of_bos_is_taken_over_off_line(cache):
    folder = write_pythia_saes(cache)
    built = build_from_registry("pythia-70m-deduped-res-sm")
    assert built.configurations == read_sae_configurations(PYTHIA_70M)
    (folder / "3-res-sm" / "cfg.json").unlink()
    built = build_from_registry("pythia-70m-deduped-res-sm")
    assert built.configurations == read_sae_configurations(PYTHIA_70M)
    assert any("cfg.json of 1 SAEs cannot be had" in note and "as False" in note for note in built.notes)


def test_a_cached_config_json_of_gemma_scope_2_has_to_agree_with_its_folder(cache):
    configurations = read_sae_configurations(GEMMA_SCOPE_2_270M)
    folder = snapshot(cache, configurations.repo_id)
    for seed, sae in enumerate(configurations.saes):
        config = filled_in("gemma_3_resid_post.config.json", sae.site.block)
        write_gemma_scope_2_sae(folder / sae.path, config, seed=seed)
    selection = Selection(width="16k")
    assert build_from_registry(configurations.release, selection).configurations == configurations
    wrong = folder / configurations.saes[0].path / "config.json"
    wrong.write_text(json.dumps({"hf_hook_point_in": "model.layers.6.output"}))
    built = build_from_registry(configurations.release, selection)
    assert [reason for reason in built.left_out if "hf_hook_point_in of its config.json says" in reason]
    assert len(built.configurations.saes) == 11
    with pytest.raises(UserError, match=r"the folder says .*blocks\.5\.hook_resid_post, hf_hook_point_in"):
        build_from_registry(configurations.release, Selection(ids=configurations.saes[0].sae_id))


def write_gemma_scope_2(cache, configurations):
    folder = snapshot(cache, configurations.repo_id)
    for seed, sae in enumerate(configurations.saes):
        config = filled_in("gemma_3_resid_post.config.json", sae.site.block)
        write_gemma_scope_2_sae(folder / sae.path, config, seed=seed)
    return folder


@pytest.mark.parametrize(
    ("path", "n_layers", "has_pictures"), [(GEMMA_SCOPE_2_270M, 18, False), (GEMMA_SCOPE_2_4B, 34, True)]
)
def test_gemma_scope_2_from_a_hub_cache(path, n_layers, has_pictures, cache, tmp_path, labelled_csv):
    """As many layers as the real models have; from 4b on the language model of one that reads pictures."""
    configurations = read_sae_configurations(path)
    write_fake_gemma3(cache, configurations.model.id, n_layers, has_pictures)
    folder = write_gemma_scope_2(cache, configurations)
    assert main(arguments(labelled_csv, tmp_path / "store", path)) == 0
    store = FeatureStore(tmp_path / "store", keep_sinks=True)
    assert len(store.saes) == 12
    assert store.layers == list(range(n_layers))
    assert len({store.find_sae(name=sae.name).name for sae in store.saes}) == 12
    for sae, entry in zip(
        store.saes, sorted(configurations.saes, key=lambda e: (e.layer, e.average_l0)), strict=True
    ):
        assert sae.name == entry.name
        with safe_open(folder / entry.path / "params.safetensors", "numpy") as weights:
            W_enc, b_enc, threshold = (weights.get_tensor(name) for name in ("w_enc", "b_enc", "threshold"))
        p = store.hidden_states(sae.layer) @ W_enc + b_enc
        expected = np.maximum(p, 0) * (p > threshold)
        got = store.activations(sae).to_dense()
        assert 0.02 < (got > 0).mean() < 0.98
        clear = np.abs(p - threshold) > 0.1  # the stored states are float16, the activations are not of them
        np.testing.assert_array_equal((got > 0)[clear], (expected > 0)[clear])
        np.testing.assert_allclose(got[clear], expected[clear], atol=0.1)


def test_an_sae_of_gemma_scope_2_under_another_site_is_refused_before_the_model_runs(
    cache, tmp_path, labelled_csv, capsys
):
    content = json.loads(GEMMA_SCOPE_2_270M.read_text())
    configurations = read_sae_configurations(GEMMA_SCOPE_2_270M)
    write_fake_gemma3(cache, configurations.model.id, 18, False)
    write_gemma_scope_2(cache, configurations)
    content["saes"][-1]["hook"] = "blocks.15.hook_mlp_out"
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    assert main(arguments(labelled_csv, tmp_path / "store", tmp_path / "wrong.json")) == 1
    assert "was trained with hook 'blocks.15.hook_resid_post'" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
