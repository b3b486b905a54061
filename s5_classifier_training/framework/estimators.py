"""The registry of estimators: one name, a classifier and its regression counterpart.

All are scikit-learn's but `ordinal`, which is built from its logistic regression. scikit-learn takes a second
to import, so the classes are named here and imported when one is built.
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
        classifier: ``module.Class`` of scikit-learn, or `ORDINAL`.
        regressor: ``module.Class``; None where there is no counterpart.
        defaults: parameters that differ from scikit-learn's defaults.
    """

    classifier: str
    regressor: str | None
    defaults: Mapping[str, Any] = field(default_factory=dict)


ORDINAL = "OrdinalClassifier"

ESTIMATORS = {
    "logistic": Estimator("linear_model.LogisticRegression", None, {"C": 0.001, "max_iter": 2000}),
    "ordinal": Estimator(ORDINAL, None, {"C": 0.001, "max_iter": 2000}),
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


STEP_OF = {"top_k": "select__k"}
"""The pipeline's name of a setting that is no parameter of the estimator."""


def build(
    name: str,
    params: Mapping[str, Any],
    task: str,
    normalization: str,
    seed: int,
    top_k: int | None = None,
) -> Any:
    """An unfitted pipeline: the choice of inputs, the normalisation, then the estimator.

    Being one pipeline, choice and normalisation are refitted on each training part and never see what they
    are tested on.

    Args:
        name: a key of `ESTIMATORS`.
        params: over the entry's defaults.
        task: ``classification``, ``ordinal`` or ``regression``.
        normalization: ``standardize``, ``minmax`` or ``none``.
        seed: ``random_state`` of an estimator that takes one and is given none.
        top_k: how many inputs are kept: those with the largest absolute Pearson correlation with the target
            among the rows that are fitted. None keeps all.

    Raises:
        UserError: the estimator has no counterpart for the task, or does not have a parameter.
    """
    from sklearn.feature_selection import SelectKBest, f_regression
    from sklearn.pipeline import Pipeline

    entry = ESTIMATORS[name]
    target = entry.regressor if task == "regression" else entry.classifier
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
    # The F statistic of one input is a rising function of its squared correlation.
    select = [] if top_k is None else [("select", SelectKBest(f_regression, k=top_k))]
    normalize = [("normalize", _class(NORMALIZERS[normalization])())] if normalization != "none" else []
    return Pipeline([*select, *normalize, ("estimator", estimator_class(**given))])


def build_searched(
    name: str,
    params: Mapping[str, Any],
    task: str,
    normalization: str,
    seed: int,
    top_k: int | None,
    search: Mapping[str, list[Any]],
) -> tuple[Any, dict[str, list[Any]]]:
    """As `build`, with the grid of a search in the pipeline's own names; an empty search gives an empty grid.

    Raises:
        UserError: as `build`; a parameter of the search counts as one of ``params``.
    """
    firsts = {key: values[0] for key, values in search.items() if key not in STEP_OF}
    if "top_k" in search:
        top_k = search["top_k"][0]
    model = build(name, {**params, **firsts}, task, normalization, seed, top_k)
    return model, {STEP_OF.get(key, f"estimator__{key}"): list(values) for key, values in search.items()}


def setting_name(key: str) -> str:
    """A pipeline's parameter in the words of ``config.yaml``.

    >>> setting_name("estimator__C"), setting_name("select__k")
    ('C', 'top_k')
    """
    of_step = {step: name for name, step in STEP_OF.items()}
    return of_step.get(key, key.removeprefix("estimator__"))


def has_probabilities(model: Any) -> bool:
    """Whether a classifier gives probabilities by itself."""
    return hasattr(model, "predict_proba")


def _class(name: str) -> Any:
    if name == ORDINAL:
        from s5_classifier_training.framework.ordinal import OrdinalClassifier

        return OrdinalClassifier
    module, class_name = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"sklearn.{module}"), class_name)
