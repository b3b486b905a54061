import pytest

import run_pipeline as rp
from tests.run_pipeline.fake_stages import FakeStages

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


@pytest.fixture
def stages(project, monkeypatch):
    fake = FakeStages()
    monkeypatch.setattr(rp, "call", fake)
    (rp.S0 / "expanded_data").mkdir()
    (rp.S0 / "expanded_data" / "caring.csv").write_text("sentence,concept_strength_label\nold,0\n")
    (rp.S1 / "tiny_configurations.json").write_text("{}")
    rp.GEMMA_SCOPE.write_text("{}")
    for name in rp.EXPERIMENTS:
        (rp.S5 / name / "working").mkdir(parents=True)
        (rp.S5 / name / "working" / "config.yaml").write_text("estimators: []\n")
        (rp.S5 / name / "working" / "dataset.config").write_text("dataset: shipped.npz\n")
    return fake


@pytest.fixture
def command(project):
    return [
        "--trait",
        "Caring",
        "--config",
        str(project / "s1_compute_all_features" / "tiny_configurations.json"),
    ]
