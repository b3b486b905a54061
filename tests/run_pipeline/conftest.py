import pytest

import run_pipeline as rp

STAGE_FOLDERS = {
    "S0": "s0_dataset_generation",
    "S1": "s1_compute_all_features",
    "S2": "s2_find_top_features",
    "S3": "s3_feature_activation_graphs",
    "S4": "s4_classifier_data_prep",
    "S5": "s5_classifier_training",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project whose folders run_pipeline takes for its own."""
    monkeypatch.setattr(rp, "ROOT", tmp_path)
    for name, folder in STAGE_FOLDERS.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(rp, name, tmp_path / folder)
    for folder in ("pipeline_common", "concept_evaluation"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(rp, "SHARED_CODE", (tmp_path / "pipeline_common", tmp_path / "concept_evaluation"))
    monkeypatch.setattr(rp, "GEMMA_SCOPE", tmp_path / "s1_compute_all_features" / "gemma.json")
    return tmp_path
