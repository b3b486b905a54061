"""A model file is loaded with the types it was saved with, and a file made to do harm does none."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from pipeline_common.errors import UserError
from pipeline_common.provenance import library_versions
from s5_classifier_training.framework.estimators import ESTIMATORS, build, has_probabilities
from s5_classifier_training.framework.model_file import load_model

SMALL = {
    "gradient_boosting": {"n_estimators": 5},
    "random_forest": {"n_estimators": 5},
    "mlp": {"max_iter": 20},
}


def results_with(*types):
    return {"model_types": list(types), "library_versions": library_versions(["scikit-learn"])}


def fitted(name, task):
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 4
    model = build(name, SMALL.get(name, {}), task, "standardize", 0, top_k=3)
    if task != "regression" and not has_probabilities(model):
        model = CalibratedClassifierCV(model, cv=3, ensemble=False)
    target = labels if task != "regression" else labels + rng.normal(size=60)
    return model.fit(inputs, target), inputs


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_every_estimator_of_the_registry_comes_back_as_it_was(name, tmp_path):
    for task in ("classification", *(["regression"] if ESTIMATORS[name].regressor else [])):
        model, inputs = fitted(name, task)
        skops.io.dump(model, tmp_path / "model.skops")
        types = skops.io.get_untrusted_types(file=tmp_path / "model.skops")
        loaded = load_model(tmp_path, results_with(*types))
        answer = "predict" if task == "regression" else "predict_proba"
        np.testing.assert_array_equal(getattr(loaded, answer)(inputs), getattr(model, answer)(inputs))


class Pickled:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write_pickle(path, command):
    path.write_bytes(pickle.dumps(Pickled(command)))
    return []


def write_skops_that_runs_when_it_is_used(path, command):
    skops.io.dump(Pipeline([("run", FunctionTransformer(os.system))]), path)
    return ["posix.system"]


def write_skops_that_runs_when_it_is_loaded(path, command):
    skops.io.dump((command,), path)
    with zipfile.ZipFile(path) as archive:
        schema = json.loads(archive.read("schema.json"))
    call = {"__class__": "system", "__module__": "posix", "__loader__": "ConstructorFromReduceNode"}
    call |= {key: schema.pop(key) for key in ("protocol", "_skops_version")} | {"content": schema}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", json.dumps(call))
    return ["posix.system"]


MALICIOUS = [write_pickle, write_skops_that_runs_when_it_is_used, write_skops_that_runs_when_it_is_loaded]


@pytest.mark.parametrize("claims_its_types", [False, True])
@pytest.mark.parametrize("write", MALICIOUS)
def test_a_malicious_model_file_is_refused_and_runs_nothing(write, claims_its_types, tmp_path):
    """Also where results.json, which comes with it, says that the types are right."""
    harm = tmp_path / "harm"
    types = write(tmp_path / "model.skops", f"touch {harm}")
    with pytest.raises(UserError, match=r"model\.skops: refused: "):
        load_model(tmp_path, results_with(*(types if claims_its_types else [])))
    assert not harm.exists()


def test_these_files_are_malicious_indeed(tmp_path):
    """Whoever trusts them runs them: the test above could fail."""
    harm, path = tmp_path / "harm", tmp_path / "model.skops"
    write_pickle(path, f"touch {harm}")
    pickle.loads(path.read_bytes())
    assert harm.exists()
    harm.unlink()
    types = write_skops_that_runs_when_it_is_loaded(path, f"touch {harm}")
    skops.io.load(path, trusted=types)
    assert harm.exists()
    harm.unlink()
    types = write_skops_that_runs_when_it_is_used(path, "")
    skops.io.load(path, trusted=types).transform(f"touch {harm}")
    assert harm.exists()


def test_a_known_type_that_the_model_was_not_saved_with_is_refused(tmp_path):
    model, _ = fitted("random_forest", "classification")
    skops.io.dump(model, tmp_path / "model.skops")
    with pytest.raises(UserError, match=r"holds the type sklearn.*, which it was not saved with"):
        load_model(tmp_path, results_with())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not a model"])
def test_a_damaged_model_file_is_refused(content, tmp_path):
    (tmp_path / "model.skops").write_bytes(content)
    with pytest.raises(UserError, match=r"refused: not a model that train\.py saved"):
        load_model(tmp_path, results_with())
    (tmp_path / "model.skops").unlink()
    with pytest.raises(UserError, match=r"refused: not a model that train\.py saved"):
        load_model(tmp_path, results_with())


def test_another_version_of_scikit_learn_is_told(tmp_path, caplog):
    model, _ = fitted("ridge", "regression")
    skops.io.dump(model, tmp_path / "model.skops")
    types = skops.io.get_untrusted_types(file=tmp_path / "model.skops")
    load_model(tmp_path, results_with(*types))
    assert caplog.text == ""
    load_model(tmp_path, {**results_with(*types), "library_versions": {"scikit-learn": "1.0"}})
    assert "trained with scikit-learn 1.0" in caplog.text
