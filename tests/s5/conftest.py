import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from concept_evaluation.bootstrap import bootstrap_intervals
from s4_classifier_data_prep.classifier_dataset import ClassifierDataset, write_dataset
from s5_classifier_training.framework import metrics, train

LOGISTIC = "estimators:\n  - name: logistic\n    params: {C: 0.1}\n"
RIDGE = "estimators:\n  - name: ridge\n    params: {alpha: 10}\n"


def synthetic_dataset(
    *,
    labels: np.ndarray | None = None,
    n_sentences: int = 100,
    n_inputs: int = 8,
    effect: float = 1.5,
    target: str = "label",
    unit: str = "sentence",
    normalization: str = "standardize",
    seed: int = 0,
) -> ClassifierDataset:
    """The first input carries the label (times `effect`), the rest is noise; every fifth sentence a label
    is held out. An activation is the first input where it is above zero."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_sentences) % 4 if labels is None else labels
    n_sentences = len(labels)
    held_out = np.zeros(n_sentences, dtype=bool)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[::5]] = True
    n_tokens = rng.integers(3, 9, n_sentences)
    row = np.repeat(np.arange(n_sentences), n_tokens) if unit == "token" else np.arange(n_sentences)
    inputs = rng.normal(size=(len(row), n_inputs)).astype(np.float32)
    inputs[:, 0] += effect * labels[row]
    words = np.array(["the", "a", "sold", "saw", "cat", "watch"])
    position = np.concatenate([np.arange(n) for n in n_tokens]) if unit == "token" else None
    return ClassifierDataset(
        X=inputs,
        y=(labels[row] if target == "label" else np.maximum(inputs[:, 0], 0)).astype(np.float32),
        held_out=held_out[row],
        sentence_index=row.astype(np.int64),
        group=row.astype(np.int64),
        n_tokens=n_tokens[row].astype(np.int64),
        label=labels[row].astype(np.int64),
        sentence=np.array([" ".join(rng.choice(words, n)) for n in n_tokens]),
        token=rng.choice(words, len(row)) if unit == "token" else None,
        position=position,
        normalization_shift=np.zeros(n_inputs),
        normalization_scale=np.ones(n_inputs),
        metadata={
            "strategy": "hidden-to-concept" if target == "label" else "hidden-to-feature",
            "input": {"kind": "hidden states", "layers": [0]},
            "target": {"kind": "label" if target == "label" else "activation"},
            "unit": unit,
            "pooling": "mean",
            "notes": [],
            "normalization": normalization,
            "model": "synthetic",
            "store": {"name": "synthetic", "fingerprint": "0" * 64},
        },
    )


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Forty resamples give the same kind of interval in a fraction of the time."""
    few = functools.partial(bootstrap_intervals, n_resamples=40)
    monkeypatch.setattr(metrics, "bootstrap_intervals", few)


MakeExperiment = Callable[..., Path]


@pytest.fixture
def make_experiment(tmp_path) -> MakeExperiment:
    """Writes an experiment's folder and its dataset and returns the folder."""

    def make(name: str = "d3_test", dataset: ClassifierDataset | None = None, config: str = LOGISTIC) -> Path:
        working = tmp_path / "runs" / name / "working"
        working.mkdir(parents=True)
        write_dataset(tmp_path / "data" / f"{name}.npz", dataset or synthetic_dataset())
        (working / "dataset.config").write_text(f"dataset: ../../../data/{name}.npz\n")
        (working / "config.yaml").write_text(config)
        return working.parent

    return make


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """One training for the whole session; the tests work on copies."""
    root = tmp_path_factory.mktemp("versions")
    working = root / "d3_test" / "working"
    working.mkdir(parents=True)
    write_dataset(root / "d.npz", synthetic_dataset())
    (working / "dataset.config").write_text("dataset: ../../d.npz\n")
    (working / "config.yaml").write_text("estimators:\n  - name: logistic\n")
    assert train.main([str(working.parent)]) == 0
    return root


@pytest.fixture
def experiment(trained_once, tmp_path):
    """A trained experiment, to be done with as a test likes."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "d3_test"
