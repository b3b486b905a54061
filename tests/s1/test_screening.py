"""The bfloat16 screening product must miss nothing and add nothing, also where it is hardest."""

import numpy as np
import pytest
import torch

from s1_compute_all_features import sae_encoder
from s1_compute_all_features.sae_encoder import ThresholdEncoder
from s1_compute_all_features.sae_weights import ThresholdWeights

D_MODEL, D_SAE, N_TOKENS = 96, 700, 300


@pytest.fixture(autouse=True)
def _never_fall_back(monkeypatch):
    """These dense test cases would fall back to the plain product, and so test nothing."""
    monkeypatch.setattr(sae_encoder, "MAX_CANDIDATES", 1.0)


def weights(seed=0, scale=1.0, threshold=None):
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(D_MODEL, D_SAE, generator=generator) * scale
    b_enc = torch.randn(D_SAE, generator=generator)
    if threshold is None:
        threshold = torch.rand(D_SAE, generator=generator) * 20 * scale
    return ThresholdWeights(W_enc.T.contiguous(), b_enc, threshold.clamp(min=0))


def tokens(seed=1, outliers=0):
    states = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(seed))
    states[:, :outliers] *= 300  # real residual streams have a few huge dimensions
    states[::7] *= 50  # and tokens of very different norm
    states[5] = 0
    return states


def both(w, states):
    plain, screened = (ThresholdEncoder(w, "cpu", screening).encode(states) for screening in (False, True))
    return plain, screened


def assert_equal(plain, screened, w, states):
    np.testing.assert_array_equal(plain.indptr, screened.indptr)
    np.testing.assert_array_equal(plain.indices, screened.indices)
    # Two float32 orders of addition differ by some units of 2^-24, relative to |x| |w| and not to the sum.
    size = np.repeat(states.norm(dim=1).numpy(), np.diff(plain.indptr))
    size = size * w.W_FD.norm(dim=1).numpy()[plain.indices]
    assert (np.abs(plain.data - screened.data) <= 2.0**-19 * size + 1e-5).all()


@pytest.mark.parametrize("outliers", [0, 1, 3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_screening_gives_the_support_of_the_plain_product(outliers, scale):
    w, states = weights(scale=scale), tokens(outliers=outliers)
    plain, screened = both(w, states)
    assert 0.001 < len(plain.data) / np.prod(plain.shape) < 0.6
    assert_equal(plain, screened, w, states)


def test_relu_saes_are_screened_too():
    w = weights(threshold=torch.zeros(D_SAE))
    w = ThresholdWeights(w.W_FD, w.b_enc - 30, w.threshold)
    assert_equal(*both(w, tokens()), w, tokens())


def test_entries_at_their_threshold_are_decided_in_float64():
    """Thresholds set onto actual values: float32 orders of addition would disagree about them."""
    states, w = tokens(), weights()
    exact = states.double() @ w.W_FD.T.double() + w.b_enc.double()
    rows = torch.randint(0, N_TOKENS, (D_SAE,), generator=torch.Generator().manual_seed(3))
    nearest = exact[rows, torch.arange(D_SAE)].float()
    for steps in (-2, -1, 0, 1, 2):
        threshold = nearest.clone()
        for _ in range(abs(steps)):
            threshold = torch.nextafter(threshold, torch.full_like(threshold, np.sign(steps) * np.inf))
        shifted = ThresholdWeights(w.W_FD, w.b_enc, threshold.clamp(min=0))
        plain, screened = both(shifted, states)
        assert_equal(plain, screened, shifted, states)
        expected = exact > shifted.threshold.double()
        got = torch.from_numpy(plain.to_dense()) > 0
        torch.testing.assert_close(got, expected)


def test_the_support_depends_on_no_strip_or_batch():
    w, states = weights(), tokens()
    encoder = ThresholdEncoder(w, "cpu", screening=True)
    whole = encoder.encode(states)
    pieces = [encoder.encode(states[start : start + 37]) for start in range(0, N_TOKENS, 37)]
    np.testing.assert_array_equal(whole.indices, np.concatenate([piece.indices for piece in pieces]))


def test_too_many_candidates_fall_back_to_the_plain_product(monkeypatch):
    w, states = weights(), tokens()
    monkeypatch.setattr(sae_encoder, "MAX_CANDIDATES", 0.0)
    plain, screened = both(w, states)
    np.testing.assert_array_equal(plain.data, screened.data)


def test_a_margin_too_small_would_be_noticed(monkeypatch):
    """The negative control: with no margin, screening misses entries, and these tests would see it."""
    w, states = weights(), tokens()
    plain = ThresholdEncoder(w, "cpu").encode(states)
    monkeypatch.setattr(sae_encoder, "BFLOAT16_UNIT", 0.0)
    encoder = ThresholdEncoder(w, "cpu", screening=True)
    missed = encoder.encode(states)
    assert len(missed.data) < len(plain.data)
