"""The trained model in a version, loaded without running anything that a file from elsewhere may hold."""

import logging
import re
import warnings
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.provenance import library_versions
from s5_classifier_training.framework.experiment_folder import MODEL, RESULTS

log = logging.getLogger(__name__)

KNOWN_TYPES = frozenset(
    {
        "s5_classifier_training.framework.ordinal.OrdinalClassifier",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
    }
)
"""What the estimators of the registry consist of, beyond the types that skops trusts by itself."""

_DISTANCE = re.compile(r"sklearn\.metrics\._dist_metrics\.\w+Distance(32|64)")


def load_model(folder: Path, results: dict[str, Any]) -> Any:
    """The fitted pipeline of a version.

    The file may hold the types that ``results.json`` says it was saved with and no other, and these must be
    types of this program's estimators: a folder from elsewhere can name any type in its ``results.json``.

    Args:
        folder: the version's folder.
        results: content of its ``results.json``.

    Raises:
        UserError: the file is no skops file, or holds a type that it should not; nothing of it has run then.
    """
    import skops.io
    from sklearn.exceptions import InconsistentVersionWarning

    path = folder / MODEL
    saved_with = set(results["model_types"])
    try:
        found = set(skops.io.get_untrusted_types(file=path))
        foreign = sorted(type_name for type_name in found | saved_with if not _is_known(type_name))
        if foreign:
            raise UserError(
                f"{path}: refused: it asks for {foreign[0]}, which no estimator of this program consists of"
            )
        if found - saved_with:
            raise UserError(
                f"{path}: refused: it holds the type {min(found - saved_with)}, which it was not saved with "
                f"according to {RESULTS}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconsistentVersionWarning)  # told below, once
            model = skops.io.load(path, trusted=sorted(saved_with))
    except UserError:
        raise
    except Exception as error:  # a file made to do harm may fail in any way
        raise UserError(f"{path}: refused: not a model that train.py saved ({error})") from None
    before = results["library_versions"].get("scikit-learn")
    now = library_versions(["scikit-learn"])["scikit-learn"]
    if before != now:
        log.warning(f"warning: trained with scikit-learn {before}, this is {now}: predictions may differ")
    return model


def _is_known(type_name: str) -> bool:
    return type_name in KNOWN_TYPES or _DISTANCE.fullmatch(type_name) is not None
