import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from concept_evaluation.metrics import auroc
from concept_evaluation.probes import DIFFERENCE_OF_MEANS, LOGISTIC_PROBE, fit_probes


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of BLAS cost more than matrices of this size do."""
    with threadpool_limits(1):
        yield


def case(n: int = 120, d: int = 40, effect: float = 1.5, seed: int = 0):
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 2 == 0
    states = rng.normal(size=(n, d)) * rng.uniform(0.5, 5, size=d) + rng.normal(size=d)
    states[:, 3] += effect * 3 * positive
    fit = np.arange(90)
    folds = [(fit[fit % 5 != k], fit[fit % 5 == k]) for k in range(5)]
    return states.astype(np.float32), fit, positive, folds


def test_both_probes_find_a_direction_and_hold_it_on_other_rows():
    states, fit, positive, folds = case()
    probes = fit_probes(states, fit, positive[fit], folds)
    for name in (DIFFERENCE_OF_MEANS, LOGISTIC_PROBE):
        assert probes[name].cross_validated > 0.7
        assert auroc(probes[name].scores[90:], positive[90:]) > 0.7
    assert probes[DIFFERENCE_OF_MEANS].C is None


def test_difference_of_means_is_what_it_says():
    states, fit, positive, folds = case()
    direction = states[fit][positive[fit]].mean(0) - states[fit][~positive[fit]].mean(0)
    scores = fit_probes(states, fit, positive[fit], folds)[DIFFERENCE_OF_MEANS].scores
    np.testing.assert_allclose(scores, states @ direction, rtol=1e-3)


@pytest.mark.parametrize("d", [20, 300])  # fewer and more dimensions than rows
def test_the_logistic_probe_equals_one_on_standardised_inputs(d):
    states, fit, positive, folds = case(d=d)
    probe = fit_probes(states, fit, positive[fit], folds)[LOGISTIC_PROBE]
    inputs = states.astype(np.float64)
    inputs = (inputs - inputs[fit].mean(0)) / inputs[fit].std(0)
    model = LogisticRegression(C=probe.C, max_iter=10_000, tol=1e-8).fit(inputs[fit], positive[fit])
    expected = model.decision_function(inputs)
    # the probe's solver stops earlier, so the scores agree to a small part of their spread
    np.testing.assert_allclose(probe.scores, expected, atol=0.02 * expected.std())


def test_noise_is_no_better_than_chance_on_other_rows():
    held_out = []
    for seed in range(15):
        states, fit, positive, folds = case(effect=0, seed=seed)
        held_out.append(
            auroc(fit_probes(states, fit, positive[fit], folds)[LOGISTIC_PROBE].scores[90:], positive[90:])
        )
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.1)


def test_folds_without_both_classes_leave_nothing():
    states, fit, _, folds = case()
    assert fit_probes(states, fit, np.ones(len(fit), dtype=bool), folds) == {}


def test_states_that_never_vary_tell_nothing():
    states, fit, positive, folds = case()
    probes = fit_probes(np.ones_like(states), fit, positive[fit], folds)
    assert probes[DIFFERENCE_OF_MEANS].cross_validated == 0.5
    assert LOGISTIC_PROBE not in probes
