"""What people see is in Neuronpedia's scale where decoder norms are known and not 1; else as it is stored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_common.files import read_json
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.feature_examples import collect_examples
from s2_find_top_features.ranked_features import read_results
from s3_feature_activation_graphs.activation_summary import as_text, summary_document
from s3_feature_activation_graphs.build_report import main as build_report
from s3_feature_activation_graphs.feature_traces import Traces, activation_caption, load_traces
from s3_feature_activation_graphs.overview_plots import distributions_figure, heatmap_figure
from s3_feature_activation_graphs.picture_style import SentenceToDraw, fitted_style
from s3_feature_activation_graphs.plotting_utils import feature_label
from s3_feature_activation_graphs.sentence_plot import SentencePlotter
from tests.s3.conftest import KEYS, write_ranking
from tests.s3.report_inputs import write_report_inputs
from tests.synthetic_store import write_synthetic_store

NAMES = ("layer_00_l0_8", "layer_00_l0_24", "layer_01_l0_8", "layer_01_l0_24")
LABELS = [0, 1, 2, 3]
SCALE = "in Neuronpedia's scale"


def norms_of(names: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(2, 5, 64).astype(np.float32) for name in names}


def near_one() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.uniform(0.9991, 1.0009, 64).astype(np.float32) for name in NAMES}


def traces_of(folder: Path, norms: dict[str, np.ndarray] | None) -> Traces:
    store = write_synthetic_store(folder / "store", n_sentences=24, decoder_norms=norms)
    results = write_ranking(folder / "results", store, KEYS)
    return load_traces(FeatureStore(store), read_results(results), 5, [])


def document_of(traces: Traces) -> dict[str, Any]:
    return summary_document(traces, LABELS, {}, [])


def examples_of(traces: Traces, folder: Path) -> list[dict[str, Any]]:
    return collect_examples(traces.store, read_results(folder / "results").features, 2)


def y_label(traces: Traces) -> str:
    sentence = SentenceToDraw(0, "text", 0, False, ["a", "b"], traces.activations[:2])
    style, _ = fitted_style([sentence], figsize=(6, 4), dpi=40, max_token_len=9, y_max=None, source="")
    return str(SentencePlotter(traces.features, style).draw(sentence).axes[0].get_ylabel())


def test_shown_activations_are_value_times_norm(tmp_path: Path) -> None:
    norms = norms_of(NAMES)
    plain, scaled = traces_of(tmp_path / "a", None), traces_of(tmp_path / "b", norms)
    for column, feature in enumerate(scaled.features):
        norm = norms[feature.sae.name][feature.feature_id]
        assert feature.decoder_norm == norm
        assert np.array_equal(scaled.activations[:, column], plain.activations[:, column] * norm)
    # What the store gives is what it holds.
    for sae in scaled.store.saes:
        assert np.array_equal(
            scaled.store.activations(sae).data,
            plain.store.activations(plain.store.find_sae(name=sae.name)).data,
        )


def test_captions_and_documents_say_so(tmp_path: Path) -> None:
    norms = norms_of(NAMES)
    plain, scaled = traces_of(tmp_path / "a", None), traces_of(tmp_path / "b", norms)
    assert (y_label(plain), y_label(scaled)) == ("activation", f"activation, {SCALE}")
    assert distributions_figure(scaled, LABELS).axes[0].get_ylabel() == f"largest activation,\n{SCALE}"
    assert heatmap_figure(scaled, LABELS).axes[1].get_ylabel() == f"activation, {SCALE}"
    before, after = document_of(plain), document_of(scaled)
    assert "activation_scale" not in before
    assert after["activation_scale"] == SCALE
    assert SCALE not in as_text(before)
    assert f"Activations are {SCALE}: the store's, times the norm" in as_text(after)
    for one, other in zip(before["features"], after["features"], strict=True):
        for plain_peak, peak in zip(one["peak_value_by_label"], other["peak_value_by_label"], strict=True):
            assert peak["max"] == pytest.approx(plain_peak["max"] * other["decoder_norm"], rel=1e-6)
        assert one["kind"] == other["kind"]
        assert one["peak_position"] == other["peak_position"]


def test_examples_of_stage_2_are_in_that_scale_too(tmp_path: Path) -> None:
    norms = norms_of(NAMES)
    plain = examples_of(traces_of(tmp_path / "a", None), tmp_path / "a")
    scaled = examples_of(traces_of(tmp_path / "b", norms), tmp_path / "b")
    for one, other in zip(plain, scaled, strict=True):
        assert other["activation_scale"] == SCALE
        assert other["decoder_norm"] == norms[other["sae_name"]][other["feature_id"]]
        for label, examples in one["examples"].items():
            for example, its_scaled in zip(examples, other["examples"][label], strict=True):
                wanted = example["max_activation"] * other["decoder_norm"]
                assert its_scaled["max_activation"] == pytest.approx(wanted, rel=1e-6)
                assert its_scaled["marked"] == example["marked"]


def test_norms_near_one_change_nothing(tmp_path: Path) -> None:
    plain, near = traces_of(tmp_path / "a", None), traces_of(tmp_path / "b", near_one())
    assert near.activations.tobytes() == plain.activations.tobytes()
    assert activation_caption(near.features) == "activation"
    assert [feature_label(f) for f in near.features] == [feature_label(f) for f in plain.features]
    one, other = document_of(plain), document_of(near)
    for document in (one, other):
        del document["store"]  # its fingerprint: the norms are in the store
    assert json.dumps(one) == json.dumps(other)
    assert json.dumps(examples_of(plain, tmp_path / "a")) == json.dumps(examples_of(near, tmp_path / "b"))


def test_a_feature_whose_norm_is_not_known_is_marked_beside_others(tmp_path: Path) -> None:
    traces = traces_of(tmp_path, norms_of(NAMES[:1]))
    assert y_label(traces) == f"activation, {SCALE} (* as stored)"
    marked = {feature.key for feature in traces.features if f"{feature.key}*  " in feature_label(feature)}
    assert marked == {feature.key for feature in traces.features if feature.sae.name != NAMES[0]} != set()
    text = as_text(document_of(traces))
    assert "As stored, the norm not being known: 1:24:3, 1:8:7, 0:24:11." in text


def test_the_report_says_so(tmp_path: Path) -> None:
    pages = {}
    for name, norms in (("plain", None), ("near", near_one()), ("scaled", norms_of(NAMES))):
        inputs = write_report_inputs(tmp_path / name, decoder_norms=norms)
        page = tmp_path / f"{name}.html"
        assert build_report([*inputs, "--output", str(page)]) == 0
        pages[name] = page.read_text()
    assert SCALE not in pages["plain"] + pages["near"]
    assert f"Activations are {SCALE}: the store's, times the norm" in pages["scaled"]
    assert f"One activation a sentence, pooled by max, {SCALE};" in pages["scaled"]

    def heat_maps(page: str) -> dict[str, Any]:
        text = page.split('id="heat-maps">')[1].split("</script>")[0]
        content: dict[str, Any] = json.loads(text)
        return content

    assert heat_maps(pages["near"]) == heat_maps(pages["plain"])
    largest = [[f["max"] for f in heat_maps(pages[name])["features"]] for name in ("plain", "scaled")]
    assert all(1.9 < scaled / plain < 5.1 for plain, scaled in zip(*largest, strict=True))


def test_a_store_that_tells_no_norms_is_shown_as_stored(tmp_path: Path) -> None:
    traces = traces_of(tmp_path, None)
    manifest = read_json(traces.store.path / "manifest.json", "manifest")
    assert manifest["format_version"] == 3
    assert {feature.decoder_norm for feature in traces.features} == {None}
    assert activation_caption(traces.features) == "activation"
