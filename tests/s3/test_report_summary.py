"""The report on one screen: what it says of which findings."""

import json

import pytest

from pipeline_common.errors import UserError
from s3_feature_activation_graphs.report_emergence import NUMBERS, SweepRow
from s3_feature_activation_graphs.report_summary import first_layers_as_good, summary_text


def content(**changes):
    baseline = {
        "train": 0.9,
        "cross_validated": 0.7,
        "held_out": 0.71,
        "held_out_low": 0.6,
        "held_out_high": 0.8,
    }
    summary = {
        "significance": {"n_discoveries": 41, "n_tested": 9000, "level": 0.05, "n_permutations": 200},
        "baselines": {"bag_of_words": baseline, "logistic_probe": baseline | {"held_out": 0.95}},
        "verdict": {"word": "beats", "difference_low": 0.01, "difference_high": 0.2},
        "sentences": {"train": {"0": 80, "3": 80}, "held_out": {"0": 21, "3": 21}},
        "messages": [],
    }
    section = {
        "key": "14:40:7",
        "held_out_auroc": 0.834,
        "low": 0.7,
        "high": 0.93,
        "held_out_auroc_3_vs_1": 0.61,
        "peak_tokens": [{"token": " her", "n_sentences": 12}, {"token": "'s", "n_sentences": 3}],
    }
    base = {
        "trait": "caring",
        "store": {"model": "SmolLM2"},
        "summary": summary,
        "features": [section],
        "broken_limits": [],
        "audited": True,
    }
    base["summary"] |= changes.pop("summary", {})
    return base | changes


def row(layer, cv, test, low=None, high=None):
    values = dict.fromkeys(NUMBERS) | {
        "cv_auroc_mean": cv,
        "test_auroc": test,
        "test_auroc_low": low,
        "test_auroc_high": high,
    }
    return SweepRow(layer, "logistic", "mean", values)


def test_the_screen_says_what_was_found_in_the_order_of_importance():
    sweep = [row(-1, 0.8, 0.83), row(12, 0.9, 0.95), row(17, 0.91, 0.98, 0.92, 1.0), row(None, 0.7, 0.71)]
    text = summary_text(content(), sweep, {"logistic": 12})
    assert text.splitlines() == [
        "caring in SmolLM2",
        "",
        "41 of 9,000 tested features go with the label beyond chance (q < 0.05, 200 permutations).",
        "",
        "The best features, chosen on train; AUROC on held-out sentences with 95% intervals:",
        "",
        "  layer:l0:feature 3 against 0        3 against 1  fires on (sentences)",
        "  14:40:7          0.83 [0.70, 0.93]  0.61         her 12, 's 3",
        "",
        "Baselines, 3 against 0 on the same sentences: bag of words 0.71, probe 0.95; the best feature beats",
        "  bag of words.",
        "",
        "Layers: a classifier of hidden states (logistic, mean pooling) reads the trait best at layer 17,",
        "  held-out AUROC 0.98 [0.92, 1.00]; layer 12 is already as good, the embeddings alone have 0.83.",
        "",
        "The audit of the sentences has no warning.",
    ]


def test_warnings_are_all_there():
    changes = {"sentences": {"held_out": {"0": 21, "3": 4}}, "messages": ["no label 2"]}
    text = summary_text(content(summary=changes, broken_limits=["too short", "too alike"]), [], {})
    for warning in (
        "The audit of the sentences warns: too short.",
        "The audit of the sentences warns: too alike.",
        "Only 4 held-out sentences have label 3",
        "Note: no label 2",
    ):
        assert warning in text
    assert "has no warning" not in text


def test_what_does_not_exist_is_left_out():
    changes = {"significance": None, "baselines": {}, "verdict": None}
    text = summary_text(content(summary=changes, audited=False), [], {})
    assert "nothing here tells a finding from noise" in text
    for absent in ("Baselines", "Layers", "audit"):
        assert absent not in text


def test_the_best_layer_is_chosen_by_cross_validation_alone():
    sweep = [row(3, 0.9, 0.6), row(5, 0.8, 0.99)]
    assert "best at layer 3, held-out AUROC 0.60." in summary_text(content(), sweep, {}).replace("\n  ", " ")


def test_first_layers_as_good_are_stage_fives(tmp_path):
    entry = {"estimator": "logistic", "best_layer": 17, "first_layer_as_good": 12}
    (tmp_path / "layer_sweep.json").write_text(
        json.dumps(
            {"traits": [{"trait": "caring", "emergence": [entry]}, {"trait": "other", "emergence": []}]}
        )
    )
    assert first_layers_as_good(tmp_path / "layer_sweep.csv", "caring") == {"logistic": 12}
    assert first_layers_as_good(tmp_path / "layer_sweep.csv", "bravery") == {}
    assert first_layers_as_good(tmp_path / "none" / "layer_sweep.csv", "caring") == {}
    (tmp_path / "layer_sweep.json").write_text('{"traits": [{"trait": "caring"}]}')
    with pytest.raises(UserError, match=r"layer_sweep\.json: 'emergence' is missing"):
        first_layers_as_good(tmp_path / "layer_sweep.csv", "caring")
