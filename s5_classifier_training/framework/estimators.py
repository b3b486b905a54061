"""The registry of estimators: one name, a classifier and its regression counterpart from scikit-learn.

scikit-learn takes a second to import, so the classes are named here and imported when one is built.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline_common.errors import UserError


@dataclass(frozen=True)
class Estimator:
    """One entry.

    Attributes:
        classifier: ``module.Class``.
        regressor: ``module.Class``; None where there is no counterpart.
        defaults: parameters that differ from scikit-learn's defaults.
    """

    classifier: str
    regressor: str | None
    defaults: Mapping[str, Any] = field(default_factory=dict)


ESTIMATORS = {
    "logistic": Estimator("linear_model.LogisticRegression", None, {"C": 0.001, "max_iter": 2000}),
    "ridge": Estimator("linear_model.RidgeClassifier", "linear_model.Ridge", {"alpha": 1000.0}),
    "linear_svm": Estimator("svm.LinearSVC", "svm.LinearSVR", {"C": 0.0001, "max_iter": 20000}),
    "rbf_svm": Estimator("svm.SVC", "svm.SVR"),
    "random_forest": Estimator(
        "ensemble.RandomForestClassifier", "ensemble.RandomForestRegressor", {"max_features": "sqrt"}
    ),
    "gradient_boosting": Estimator(
        "ensemble.GradientBoostingClassifier", "ensemble.GradientBoostingRegressor", {"max_features": "sqrt"}
    ),
    "mlp": Estimator(
        "neural_network.MLPClassifier",
        "neural_network.MLPRegressor",
        {"hidden_layer_sizes": [64], "alpha": 1.0, "max_iter": 1000},
    ),
    "nearest_centroid": Estimator("neighbors.NearestCentroid", None),
    "k_nearest": Estimator(
        "neighbors.KNeighborsClassifier", "neighbors.KNeighborsRegressor", {"n_neighbors": 15}
    ),
}

NORMALIZERS = {"standardize": "preprocessing.StandardScaler", "minmax": "preprocessing.MinMaxScaler"}


def build(name: str, params: Mapping[str, Any], task: str, normalization: str, seed: int) -> Any:
    """An unfitted pipeline: the normalisation, then the estimator.

    Being one pipeline, the normalisation is refitted on each training part and never sees what it is
    tested on.

    Args:
        name: a key of `ESTIMATORS`.
        params: over the entry's defaults.
        task: ``classification`` or ``regression``.
        normalization: ``standardize``, ``minmax`` or ``none``.
        seed: ``random_state`` of an estimator that takes one and is given none.

    Raises:
        UserError: the estimator has no counterpart for the task, or does not have a parameter.
    """
    from sklearn.pipeline import Pipeline

    entry = ESTIMATORS[name]
    target = entry.classifier if task == "classification" else entry.regressor
    if target is None:
        others = ", ".join(key for key, value in ESTIMATORS.items() if value.regressor)
        raise UserError(f"estimator {name} only classifies, the task is {task}; choose of {others}")
    estimator_class = _class(target)
    known = estimator_class().get_params()
    unknown = [key for key in params if key not in known]
    if unknown:
        raise UserError(
            f"params.{unknown[0]}: unknown to {name} ({estimator_class.__name__}); "
            f"it takes {', '.join(sorted(known))}"
        )
    given = {**entry.defaults, **params}
    if "random_state" in known:
        given.setdefault("random_state", seed)
    steps = [("normalize", _class(NORMALIZERS[normalization])())] if normalization != "none" else []
    return Pipeline([*steps, ("estimator", estimator_class(**given))])


def has_probabilities(model: Any) -> bool:
    """Whether a classifier gives probabilities by itself."""
    return hasattr(model, "predict_proba")


def _class(name: str) -> Any:
    module, class_name = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"sklearn.{module}"), class_name)
