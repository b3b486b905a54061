import functools

import pytest

from concept_evaluation.bootstrap import bootstrap_intervals
from s5_classifier_training.framework import metrics
from tests.bad_input.world import SECRETS, build_world


@pytest.fixture(scope="session", autouse=True)
def _few_resamples():
    """Forty resamples give the same kind of interval in a fraction of the time."""
    few = functools.partial(bootstrap_intervals, n_resamples=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "bootstrap_intervals", few)
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_configuration):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        return build_world(tmp_path_factory.mktemp("world"), tiny_configuration.parent)
