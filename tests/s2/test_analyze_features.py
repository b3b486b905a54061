"""The ranking from a store on disk to the results on disk."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features import evidence
from s2_find_top_features.analyze_features import main
from s2_find_top_features.feature_examples import collect_examples
from s2_find_top_features.ranked_features import (
    EVIDENCE,
    METRICS,
    RankedResults,
    read_all_features,
    read_examples,
    read_results,
)
from tests.s2.planted_store import noise, plant, write_planted_store
from tests.s5.layer_store import write_layer_store
from tests.synthetic_store import write_synthetic_store


@pytest.fixture(scope="module", autouse=True)
def _fewer_resamples():
    """Two dozen runs of the script; test_evidence.py holds the intervals to their full number of draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "N_RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_synthetic_store(tmp_path_factory.mktemp("s2") / "features", n_sentences=120)


@pytest.fixture(scope="module")
def fresh_results(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s2") / "results"
    assert main(["--input", str(store), "--output", str(folder), "--top-n", "12"]) == 0
    return folder


@pytest.fixture
def results(fresh_results, tmp_path):
    return shutil.copytree(fresh_results, tmp_path / "results")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_planted_features_come_first(results):
    ranked = read_results(results)
    assert [feature.feature_id for feature in ranked.features[:4]] == [3, 3, 3, 3]
    assert all(feature.passes_filters for feature in ranked.features[:4])
    assert not ranked.features[4].passes_filters
    assert [feature.rank for feature in ranked.features] == list(range(1, 13))
    assert ranked.summary["n_features"] == 4 * 64
    assert ranked.summary["n_passing"] == 4
    best = ranked.features[0]
    assert best.held_out["auroc_3_vs_0"] > 0.9


def test_the_ranking_never_looks_at_the_held_out_split(store, results, tmp_path):
    """Other labels on the held-out sentences change the held-out columns and nothing else."""
    altered = shutil.copytree(store, tmp_path / "altered")
    table = (altered / "sentences.csv").read_text().splitlines()
    rows = [line.split(",") for line in table]
    swapped = [
        ",".join([*row[:2], str(3 - int(row[2])) if row[3] == "test" else row[2], *row[3:]])
        for row in rows[1:]
    ]
    (altered / "sentences.csv").write_text("\n".join([table[0], *swapped]) + "\n")
    assert main(["--input", str(altered), "--output", str(tmp_path / "b"), "--top-n", "12"]) == 0
    before, after = read_results(results).features, read_results(tmp_path / "b").features
    assert [(f.key, f.train) for f in before] == [(f.key, f.train) for f in after]
    assert before[0].held_out["pearson"] != after[0].held_out["pearson"]


def test_one_store_in_one_block_or_many_ranks_alike(tmp_path):
    outcomes = []
    for n_blocks in (1, 5):
        folder = write_synthetic_store(tmp_path / f"store{n_blocks}", n_blocks=n_blocks)
        assert main(["--input", str(folder), "--output", str(tmp_path / f"r{n_blocks}")]) == 0
        outcomes.append(
            [(f.key, f.train, f.held_out) for f in read_results(tmp_path / f"r{n_blocks}").features]
        )
    assert outcomes[0] == outcomes[1]


def test_examples_mark_the_peak_token(store, results):
    example = read_examples(results)[0]
    top = example["examples"]["3"][0]
    reader = FeatureStore(store)
    sae = next(sae for sae in reader.saes if sae.name == example["sae_name"])
    activations = reader.feature_activations(sae, [example["feature_id"]])[:, 0]
    of_sentence = activations[reader.starts[top["sentence_index"]] : reader.starts[top["sentence_index"] + 1]]
    assert top["position"] == int(of_sentence.argmax())
    assert top["max_activation"] == pytest.approx(float(of_sentence.max()))
    assert f">>{top['token'].strip()}<<" in top["marked"]


def test_examples_mark_the_whole_character_of_which_a_piece_is_the_peak(store, results):
    example = read_examples(results)[0]
    top = example["examples"]["3"][0]
    reader = FeatureStore(store)
    peak = int(reader.starts[top["sentence_index"]]) + top["position"]
    text = np.array(reader.tokens.text, dtype="U20")
    text[peak : peak + 2] = ["", "\u201d"]
    reader.__dict__["tokens"] = replace(reader.tokens, text=text)
    feature = next(one for one in read_results(results).features if one.rank == example["rank"])
    (told,) = collect_examples(reader, [feature], 1)
    (again,) = told["examples"]["3"]
    assert (again["position"], again["token"]) == (top["position"], "\u201d 1/2")
    assert ">>\u201d<<" in again["marked"]


def test_labels_0_and_3_alone_are_enough(tmp_path, capsys):
    labels = np.array([0, 3] * 30)
    folder = write_synthetic_store(tmp_path / "store", n_sentences=60, labels=labels)
    assert main(["--input", str(folder), "--output", str(tmp_path / "r")]) == 0
    ranked = read_results(tmp_path / "r")
    assert ranked.features[0].feature_id == 3
    assert ranked.features[0].train["mean_1"] is None
    assert ranked.features[0].train["monotonicity"] is None
    assert ranked.features[0].passes_filters
    assert "no train sentence has label 1 or 2" in capsys.readouterr().out


def test_a_score_that_needs_absent_labels_is_refused_with_advice(tmp_path, capsys):
    labels = np.array([1, 2] * 30)
    folder = write_synthetic_store(tmp_path / "store", n_sentences=60, labels=labels)
    assert main(["--input", str(folder), "--output", str(tmp_path / "r")]) == 1
    assert "--rank-by spearman" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["store"]  # no half-written results either
    assert main(["--input", str(folder), "--output", str(tmp_path / "r"), "--rank-by", "spearman"]) == 0


def test_what_fails_is_told_and_nothing_else_decides_who_passes(results):
    """Against the ranking's own decision; with these filters some of the listed features fail each one."""
    read = read_results(results)
    assert all((read.failed_filters(one) == []) == one.passes_filters for one in read.features)
    strict = dict(read.summary["settings"], min_pearson=2, min_tpr=0.0, max_fpr=1.0)
    failed = RankedResults(read.features, {**read.summary, "settings": strict}).failed_filters
    assert all(failed(one)[0] == "pearson" for one in read.features)
    some = read.features[0]
    for metric, value, fails in (
        ("monotonicity", 0.0, ["monotonicity"]),
        ("monotonicity", None, []),
        ("tpr", 0.0, ["tpr"]),
        ("fpr", 1.0, ["fpr"]),
        ("pearson", None, ["pearson"]),
    ):
        assert read.failed_filters(replace(some, train={**some.train, metric: value})) == fails


def test_a_higher_score_that_fails_a_filter_is_told_above_the_table(tmp_path, capsys):
    """Feature 0 rises evenly in noise; feature 1 hardly fires but on label 3, and skips label 2."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    steady = np.maximum(labels + 1.5 * rng.normal(size=120), 0.05)
    skipping = np.where(labels == 2, 0.0, np.array([0.0, 0.6, 0.0, 6.0])[labels] + 0.1 * rng.random(120))
    activations = np.stack([steady, skipping], axis=1).astype(np.float32)
    store = write_planted_store(tmp_path / "store", [activations], labels)
    command = ["--input", str(store), "--output", str(tmp_path / "results"), "--max-fpr", "1"]
    assert main([*command, "--permutations", "20", "--workers", "1"]) == 0
    read = read_results(tmp_path / "results")
    first, second = read.features
    assert (first.feature_id, first.passes_filters, second.passes_filters) == (0, True, False)
    assert read.failed_filters(second) == ["monotonicity"]
    assert read.first_by_metric is second
    told = capsys.readouterr().out
    assert (
        "features that pass the filters come first, here 1. The best interpretability_score is that" in told
    )
    assert f"of {second.key}, {second.train['interpretability_score']:.2f}, which fails monotonicity" in told
    assert f"{second.key:<16} -m " in told


def test_a_handful_of_held_out_sentences_is_told(tmp_path, capsys):
    labels = np.arange(40) % 4
    rng = np.random.default_rng(0)
    dense = (rng.random((40, 6)) * (labels[:, None] + 1)).astype(np.float32)
    store = write_planted_store(tmp_path / "store", [dense], labels)
    assert main(["--input", str(store), "--output", str(tmp_path / "r"), "--permutations", "0"]) == 0
    assert "only 2 held-out sentences of label 3 and 2 of label 0" in capsys.readouterr().out


def test_noise_passes_no_filter(tmp_path):
    folder = write_synthetic_store(tmp_path / "store", n_sentences=200, effect=0.0)
    assert main(["--input", str(folder), "--output", str(tmp_path / "r")]) == 0
    assert read_results(tmp_path / "r").summary["n_passing"] == 0


def test_display_only_prints_what_is_on_disk(results, capsys):
    capsys.readouterr()
    before = contents(results)
    assert main(["--output", str(results), "--display-only", "--display-top", "2"]) == 0
    printed = capsys.readouterr().out
    assert "bag of words" in printed
    assert "0:8:3" in printed or "0:24:3" in printed or "1:8:3" in printed or "1:24:3" in printed
    assert before == contents(results)


def test_existing_results_stay_unless_told(store, results, capsys):
    capsys.readouterr()
    assert main(["--input", str(store), "--output", str(results)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["--input", str(store), "--output", str(results), "--overwrite"]) == 0


def test_overwrite_leaves_a_foreign_folder_alone(store, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    assert main(["--input", str(store), "--output", str(tmp_path / "precious"), "--overwrite"]) == 1
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "precious" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x"], "--input is needed"),
        (["--input", "s", "--output", "x", "--min-pearson", "1.5"], "not between -1 and 1"),
        (["--input", "s", "--output", "x", "--max-fpr", "-0.1"], "not between 0 and 1"),
        (["--input", "s", "--output", "x", "--top-n", "0"], "not at least 1"),
        (["--input", "s", "--output", "x", "--min-tpr", "2"], "not between 0 and 1"),
        (["--input", "s", "--output", "x", "--permutations", "-1"], "not at least 0"),
        (["--input", "s", "--output", "x", "--workers", "0"], "not at least 1"),
        (["--input", "s", "--output", "x", "--rank-by", "beauty"], "invalid choice"),
        (["--input", "s", "--output", "x", "--contrast"], "expected at least one argument"),
        (["--input", "s", "--output", "x", "--pooling", "sum"], "invalid choice"),
    ],
)
def test_wrong_usage_exits_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_not_a_store_is_said(tmp_path, capsys):
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "not a feature store")):
        assert main(["--input", str(folder), "--output", str(tmp_path / "r")]) == 1
        assert message in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "r"), "--display-only"]) == 1
    assert "results folder" in capsys.readouterr().err


def test_damaged_results_are_said(results, capsys):
    summary = json.loads((results / "summary.json").read_text())
    for content, message in (
        ({**summary, "format_version": 99}, "results format 99"),
        ({"format": "else"}, "holds no results"),
    ):
        (results / "summary.json").write_text(json.dumps(content))
        assert main(["--output", str(results), "--display-only"]) == 1
        assert message in capsys.readouterr().err
    (results / "summary.json").write_text(json.dumps(summary))
    table = (results / "ranked_features.csv").read_text()
    (results / "ranked_features.csv").write_text(table[: len(table) // 2])
    assert main(["--output", str(results), "--display-only"]) == 1
    assert "ranked_features.csv" in capsys.readouterr().err


def test_every_metric_is_a_column(results):
    header = (results / "ranked_features.csv").read_text().splitlines()[0].split(",")
    assert set(METRICS) <= set(header)
    assert {f"held_out_{name}" for name in METRICS} <= set(header)
    assert {*EVIDENCE, "direction", "family", "is_representative"} <= set(header)


def test_every_feature_can_be_looked_up_on_both_splits(store, results):
    reader = FeatureStore(store)
    ranked = read_results(results)
    tables = {sae.name: read_all_features(results, sae.name) for sae in reader.saes}
    for feature in [*ranked.features, *ranked.falling]:
        table = tables[feature.sae_name]
        assert table["passes_filters"][feature.feature_id] == feature.passes_filters
        for split, prefix in ((feature.train, ""), (feature.held_out, "held_out_")):
            for name in METRICS:
                value = np.nan if split[name] is None else split[name]
                np.testing.assert_allclose(table[prefix + name][feature.feature_id], value, rtol=1e-6)
    sae = reader.saes[0]
    dense = reader.pooled_activations(sae, "max").to_dense().astype(np.float64)
    held_out, labels = dense[reader.held_out], reader.labels[reader.held_out]
    table = tables[sae.name]
    np.testing.assert_allclose(table["held_out_density"], (held_out > 0).mean(axis=0), rtol=1e-6)
    threshold = np.quantile(dense[~reader.held_out & (reader.labels == 0)], 0.95, axis=0)
    fired = (held_out[labels == 3] > threshold).mean(axis=0)
    np.testing.assert_allclose(table["held_out_tpr"], fired, rtol=1e-6)
    assert {len(values) for values in table.values()} == {sae.d_sae}
    assert sum(int(table["passes_filters"].sum()) for table in tables.values()) == ranked.summary["n_passing"]
    rho = np.abs(np.concatenate([table["spearman"] for table in tables.values()]))
    found = ranked.summary["significance"]
    n_above = int((rho >= np.float32(found["smallest_discovery"])).sum())
    assert n_above == found["n_discoveries"]
    with pytest.raises(UserError, match="no such file; expected a table of all features"):
        read_all_features(results, "sae_of_another_store")


def test_the_evidence_is_read_as_it_was_written(results):
    ranked = read_results(results)
    best = ranked.features[0]
    assert best.direction == "rising"
    assert best.is_representative
    assert best.evidence["fwer_p"] == pytest.approx(1 / 201)
    assert best.evidence["q_value"] < 0.05
    assert best.evidence["stability"] == 1.0
    assert best.evidence["held_out_score_low"] <= best.held_out["interpretability_score"]
    assert best.evidence["held_out_score_high"] >= best.held_out["interpretability_score"]
    score = "interpretability_score"
    assert best.evidence["optimism"] == pytest.approx(best.train[score] - best.held_out[score])
    found = ranked.summary["significance"]
    assert found["n_tested"] + found["n_excluded"] == ranked.summary["n_features"]
    assert found["n_discoveries"] >= 4
    assert 0 < found["best_of_noise_mean"] < found["best_of_noise_95"] < best.train["spearman"]
    assert ranked.falling
    assert {feature.direction for feature in ranked.falling} == {"falling"}


def test_two_runs_are_byte_identical_whatever_the_workers(store, results, tmp_path):
    arguments = ["--input", str(store), "--output", str(tmp_path / "again"), "--top-n", "12"]
    assert main([*arguments, "--workers", "1"]) == 0
    first, second = contents(results), contents(tmp_path / "again")
    assert len(first) == 8
    assert [name for name in first | second if first.get(name) != second.get(name)] == []


def test_without_permutations_nothing_is_claimed(store, tmp_path, capsys):
    assert main(["--input", str(store), "--output", str(tmp_path / "r"), "--permutations", "0"]) == 0
    assert "nothing here tells a finding from noise" in capsys.readouterr().out
    ranked = read_results(tmp_path / "r")
    assert ranked.summary["significance"] is None
    assert {feature.evidence["q_value"] for feature in ranked.features} == {None}


def test_stratified_permutations_and_another_seed_are_other_nulls(store, results, tmp_path):
    nulls = [read_results(results).summary["significance"]]
    for name, flags in (("s", ["--stratify-by-length"]), ("t", ["--seed", "1"])):
        folder = tmp_path / name
        assert main(["--input", str(store), "--output", str(folder), "--top-n", "12", *flags]) == 0
        nulls.append(read_results(folder).summary["significance"])
    assert len({null["best_of_noise_mean"] for null in nulls}) == 3


def test_poolings_stand_side_by_side(store, tmp_path, capsys):
    output = tmp_path / "r"
    assert main(["--input", str(store), "--output", str(output), "--compare-poolings", "--top-n", "5"]) == 0
    rows = {row["pooling"]: row for row in read_results(output).summary["pooling_comparison"]}
    assert list(rows) == ["max", "mean", "final", "last-content"]
    best = read_results(output).features[0]
    assert rows["max"]["score"] == best.train["interpretability_score"]
    assert rows["max"]["held_out_auroc_3_vs_0"] == best.held_out["auroc_3_vs_0"]
    assert rows["max"]["held_out_auroc_3_vs_0_low"] == best.evidence["held_out_auroc_3_vs_0_low"]
    # The planted feature fires in the middle of the sentence, never on the full stop.
    assert rows["final"]["score"] < rows["mean"]["score"]
    alone = tmp_path / "mean"
    assert main(["--input", str(store), "--output", str(alone), "--pooling", "mean"]) == 0
    assert read_results(alone).features[0].train["interpretability_score"] == rows["mean"]["score"]
    printed = capsys.readouterr().out
    assert "last-content" in printed


def test_one_per_family_prints_representatives_only(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    saes = [noise(rng, 120, 20) for _ in range(2)]
    saes[0][:, 3] = plant(rng, labels, 3.0, 1.0)
    saes[1][:, 4] = saes[0][:, 3]
    folder = write_planted_store(tmp_path / "store", saes, labels)
    assert main(["--input", str(folder), "--output", str(tmp_path / "r"), "--top-n", "4"]) == 0
    assert " 1:8:4 " in capsys.readouterr().out
    assert main(["--output", str(tmp_path / "r"), "--display-only", "--one-per-family"]) == 0
    printed = capsys.readouterr().out
    assert " 0:8:3 " in printed
    assert " 1:8:4 " not in printed


def test_results_of_an_older_version_are_refused(results, capsys):
    summary = json.loads((results / "summary.json").read_text())
    (results / "summary.json").write_text(json.dumps({**summary, "format_version": 1}))
    assert main(["--output", str(results), "--display-only"]) == 1
    assert "results format 1, this program reads format 2" in capsys.readouterr().err


def test_a_store_without_saes_is_told_in_one_line(tmp_path, capsys):
    store = write_layer_store(
        tmp_path / "store", np.arange(40) % 4, {0: np.random.default_rng(0).normal(size=(40, 4))}
    )
    assert main(["--input", str(store), "--output", str(tmp_path / "results")]) == 1
    assert capsys.readouterr().err.endswith(
        "holds no SAE activations to rank; add some by extract_sae_features.py --extend with a --config that "
        "has SAEs, or see what its hidden states say by sweep_layers.py\n"
    )
    assert not (tmp_path / "results").exists()
