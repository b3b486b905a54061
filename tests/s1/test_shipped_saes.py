"""The SAEs in the box: what the configuration, the files and their card say of them is one thing."""

import json

import pytest
from safetensors import safe_open

from s1_compute_all_features.sae_configurations import STAGE_FOLDER, read_sae_configurations
from s1_compute_all_features.saes.fidelity import Fidelity
from s1_compute_all_features.saes.trained_saes import CARD, MEASUREMENTS, Provenance, model_card

SMOLLM2 = STAGE_FOLDER / "smollm2_configurations.json"
FOLDER = STAGE_FOLDER / "smollm2_saes"
D_MODEL = 576
LARGEST_BYTES = 30_000_000


@pytest.fixture(scope="module")
def configurations():
    return read_sae_configurations(SMOLLM2)


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / MEASUREMENTS).read_text(encoding="utf-8"))


def test_every_sae_of_the_configuration_is_there_and_no_other(configurations):
    assert {sae.path for sae in configurations.saes} == {path.name for path in FOLDER.glob("layer_*")}
    assert (STAGE_FOLDER / configurations.sae_root).samefile(FOLDER)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= LARGEST_BYTES


def test_the_files_are_what_the_configuration_says(configurations):
    for entry in configurations.saes:
        cfg = json.loads((FOLDER / entry.path / "cfg.json").read_text(encoding="utf-8"))
        assert (cfg["architecture"], cfg["normalize_activations"]) == ("jumprelu", "none")
        assert cfg["metadata"]["hook_name"] == entry.hook == f"blocks.{entry.layer}.hook_resid_post"
        assert cfg["metadata"]["prepend_bos"] == configurations.model.prepend_bos
        with safe_open(FOLDER / entry.path / "sae_weights.safetensors", framework="np") as tensors:
            assert tensors.get_slice("W_enc").get_shape() == [D_MODEL, cfg["d_sae"]]
            assert tensors.get_slice("W_dec").get_shape() == [cfg["d_sae"], D_MODEL]
            assert (tensors.get_tensor("threshold") > 0).all()


def test_l0_is_the_measured_one(configurations, record):
    measured = next(iter(record["measured"].values()))
    assert {sae.layer: sae.average_l0 for sae in configurations.saes} == {
        int(layer): round(figure["l0"]) for layer, figure in measured.items()
    }


def test_the_card_is_what_the_measurements_make(configurations, record):
    figures = {
        text: {int(layer): Fidelity(**figure) for layer, figure in by_layer.items()}
        for text, by_layer in record["measured"].items()
    }
    how = Provenance(**{key: value for key, value in record.items() if key != "measured"})
    assert (FOLDER / CARD).read_text(encoding="utf-8") == model_card(configurations, figures, how)


def test_no_dataset_was_trained_on(record):
    trained_on = {text["file"] for text in record["texts"]}
    assert trained_on
    assert not any(name.endswith(".csv") for name in trained_on)
    assert record["n_tokens"] >= 1_500_000
