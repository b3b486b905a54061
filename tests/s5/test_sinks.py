"""Sinks of new sentences are what the training store's medians say, and sweeps do not mix stores."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from s1_compute_all_features.feature_store import FeatureStore
from s4_classifier_data_prep.classifier_dataset import read_dataset
from s5_classifier_training.framework import predict, prediction, sweep_layers, transfer
from tests.s5.test_predict import LOGISTIC, RIDGE, arguments, flags_of, labelled, make_version, read_rows
from tests.synthetic_store import write_synthetic_store

__all__ = ["labelled"]  # a fixture


@pytest.fixture(scope="module")
def configuration(tiny_configuration, tmp_path_factory):
    """The tiny model with a sink: the letter e, whose embedding is a thousand times that of the others."""
    import torch
    from transformers import AutoTokenizer, Gemma2ForCausalLM

    folder = tmp_path_factory.mktemp("planted") / "configuration"
    shutil.copytree(tiny_configuration.parent, folder)
    model = Gemma2ForCausalLM.from_pretrained(folder / "model")
    sink = AutoTokenizer.from_pretrained(folder / "model").get_vocab()["e"]
    with torch.no_grad():
        model.get_input_embeddings().weight[sink] *= 1000
    model.save_pretrained(folder / "model")
    return folder / "tiny.json"


@pytest.fixture(scope="module")
def store(labelled, configuration, tmp_path_factory):
    from s1_compute_all_features.extract_sae_features import main

    path = tmp_path_factory.mktemp("store") / "features"
    assert main(["--input", str(labelled), "--output", str(path), "--config", str(configuration)]) == 0
    return path


@pytest.fixture
def commands(monkeypatch):
    """Runs stage 1 in this process, and keeps its command lines and the medians that they name."""
    from s1_compute_all_features.extract_sae_features import main

    seen = []

    def run(argv):
        flags = flags_of(argv)
        given = json.loads(Path(flags["--sinks-like"]).read_text()) if "--sinks-like" in flags else None
        seen.append((argv, given))
        return main(argv)

    monkeypatch.setattr(prediction, "run_extraction", run)
    return seen


@pytest.mark.parametrize(
    ("strategy", "config"),
    [
        (["--strategy", "hidden-to-concept", "--layers", "0,2"], LOGISTIC),
        (["--strategy", "sae-to-concept", "--layer", "1", "--target-l0", "24"], LOGISTIC),
        (["--strategy", "hidden-to-feature", "--input-layer", "1"], RIDGE),
    ],
)
def test_few_sentences_get_the_answers_of_the_whole_store(
    strategy, config, labelled, store, configuration, commands, tmp_path
):
    """Eight of the old sentences: medians of their own would be others, those of the store are taken."""
    reader = FeatureStore(store)
    if "hidden-to-feature" in strategy:
        fires = reader.feature_activations(reader.find_sae(2, 24), range(64)) > 0
        feature = fires[~reader.held_out[reader.tokens.sentence_index]].sum(axis=0).argmax()
        strategy = [*strategy, "--target-layer", "2", "--target-l0", "24", "--target-feature", str(feature)]
    version = make_version(tmp_path, store, strategy, config)
    rows = read_rows(labelled)[:8]
    few = tmp_path / "few.csv"
    with few.open("w", newline="") as handle:
        csv.writer(handle).writerows([["sentence"], *([row["sentence"]] for row in rows)])
    assert predict.main(arguments(version, few, tmp_path / "out.csv", configuration)) == 0
    ((command, given),) = commands
    assert "--keep-sinks" not in command
    assert given == reader.manifest["sinks"]
    found = read_rows(tmp_path / "out.csv")
    dataset = read_dataset(tmp_path / "d3_test.npz")
    in_few = dataset.sentence_index < 8
    assert len(found) == in_few.sum()
    stored = {
        (row["sentence_index"], row.get("position")): row for row in read_rows(version / "predictions.csv")
    }
    compared = 0
    for row in found:
        same = stored[row["sentence_index"], row.get("position")]
        if same["split"] == "test":
            compared += 1
            assert float(row["predicted"]) == pytest.approx(float(same["predicted"]), rel=1e-4)
    assert compared
    if "hidden-to-feature" in strategy:
        assert "e" not in {row["token"] for row in found}
        assert sum(reader.n_tokens[:8]) - len(found) == reader.sinks(1)[: reader.starts[8]].sum() > 0


def test_a_checkpoint_without_a_word_of_sinks_keeps_them(store, labelled, configuration, commands, tmp_path):
    version = make_version(
        tmp_path, store, ["--strategy", "hidden-to-concept", "--layer", "1", "--keep-sinks"]
    )
    assert predict.main(arguments(version, labelled, tmp_path / "out.csv", configuration)) == 0
    ((command, given),) = commands
    assert "--keep-sinks" in command
    assert given is None
    stored = [row for row in read_rows(version / "predictions.csv") if row["split"] == "test"]
    found = read_rows(tmp_path / "out.csv")
    assert [found[int(row["sentence_index"])]["probability_3"] for row in stored] == [
        row["probability_3"] for row in stored
    ]


def test_an_older_dataset_says_nothing_of_sinks_and_has_none_left_out(tmp_path):
    metadata = {
        "input": {"kind": "embeddings", "layers": []},
        "model_details": {"dtype": "float32"},
        "extraction": {"hidden_states": "all", "tokens": "all", "sae_dtype": "float32"},
    }
    weights = prediction.Weights(tmp_path / "c.json", None, None, "cpu")
    flags = prediction.extraction_arguments(metadata, weights, tmp_path / "sinks.json")
    assert "--keep-sinks" in flags
    assert "--sinks-like" not in flags


def test_sweeps_and_transfers_do_not_mix_stores_with_sinks_and_without(tmp_path, capsys):
    told = write_synthetic_store(tmp_path / "told", sink_layers=(1,), input_name="lies.csv")
    untold = write_synthetic_store(tmp_path / "untold", seed=1, input_name="harm.csv")
    output = ["--output", str(tmp_path / "out")]
    sweep = ["--input", str(told), str(untold), *output, "--folds", "2", "--penalties", "1"]
    moved = ["--train", str(told), "--test", str(untold), *output, "--folds", "2", "--penalties", "1"]
    for main, command in ((sweep_layers.main, sweep), (transfer.main, moved)):
        assert main(command) == 1
        assert "one was made without a look for attention sinks" in capsys.readouterr().err
    assert sweep_layers.main([*sweep, "--keep-sinks"]) == 0
    assert json.loads((tmp_path / "out" / "layer_sweep.json").read_text())["settings"]["keep_sinks"] is True


def test_a_sweep_reads_layers_without_their_sinks(tmp_path):
    """The layer that carries the label best is drowned by its sinks, where they are kept."""
    store = write_synthetic_store(tmp_path / "told", sink_layers=(1,), input_name="lies.csv")
    for path in store.glob("block_*/hidden_layer_01.npz"):
        with np.load(path) as archive:
            arrays = dict(archive)
        arrays["states"] = arrays["states"].astype(np.float32)
        arrays["states"][arrays["sinks"]] *= 100
        np.savez(path, **arrays)
    rows = {}
    for name, more in (("without", []), ("with", ["--keep-sinks"])):
        output = tmp_path / name
        command = ["--input", str(store), "--output", str(output), "--folds", "2", "--penalties", "1"]
        assert sweep_layers.main([*command, *more]) == 0
        rows[name] = {row["layer"]: row["cv_auroc_mean"] for row in read_rows(output / "layer_sweep.csv")}
    assert rows["with"]["0"] == rows["without"]["0"]
    assert float(rows["without"]["1"]) > float(rows["with"]["1"])
