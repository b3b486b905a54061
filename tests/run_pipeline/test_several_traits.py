"""Several traits in one run: what is compared, and where it stands."""

import pytest

import run_pipeline as rp


@pytest.fixture
def two_traits(stages):
    (rp.S0 / "expanded_data" / "bravery.csv").write_text("sentence,concept_strength_label\nbold,0\n")
    return ["--trait", "bravery", "caring", "--config", str(rp.S1 / "tiny_configurations.json")]


def test_several_traits_are_compared(two_traits, stages, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert rp.main(two_traits) == 0
    by_script = {}
    for _, script, *arguments in stages.commands:
        by_script.setdefault(script, []).append(" ".join(arguments))
    assert [text.split("--contrast ")[1] for text in by_script["analyze_features.py"]] == [
        "../s1_compute_all_features/caring_tiny_features",
        "../s1_compute_all_features/bravery_tiny_features",
    ]
    assert by_script["framework/sweep_layers.py"] == [
        "--input ../s1_compute_all_features/bravery_tiny_features "
        "../s1_compute_all_features/caring_tiny_features --output runs/bravery_caring_tiny/layer_sweep"
    ]
    assert by_script["build_report.py"][-1] == (
        "--index reports/bravery_tiny.html reports/caring_tiny.html --output reports/bravery_caring_tiny.html"
    )
    told = capsys.readouterr().out
    for place in (
        "what was found, bravery_tiny",
        "what was found, caring_tiny",
        "s2_find_top_features/results/bravery_tiny_results/specificity_matrix.csv",
        "s5_classifier_training/runs/bravery_caring_tiny/layer_sweep/layer_sweep_all_traits.png",
        "s3_feature_activation_graphs/reports/bravery_caring_tiny.html",
    ):
        assert place in told
    stages.scripts()
    assert rp.main(two_traits) == 0
    assert stages.scripts() == []


def test_all_means_every_trait_with_seeds_and_sentences(two_traits, stages):
    (rp.S0 / "initial_hendrycks_data").mkdir()
    for trait in ("bravery", "caring", "sloth"):  # no sentences of the last
        (rp.S0 / "initial_hendrycks_data" / f"{trait}.csv").write_text("sentence,concept_strength_label\n")
    assert rp.main(["--trait", "all", *two_traits[3:]]) == 0
    assert (rp.S3 / "reports" / "all_traits_tiny.html").is_file()
    assert sorted(path.name for path in rp.S1.glob("*_features")) == [
        "bravery_tiny_features",
        "caring_tiny_features",
    ]
