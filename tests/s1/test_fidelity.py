"""What an SAE keeps of its input, held against SAEs whose figures are known."""

import pytest
import torch

from s1_compute_all_features.language_model import load_language_model
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.saes.fidelity import measure
from s1_compute_all_features.saes.training import hidden_states
from s1_compute_all_features.saes.training_text import Pieces

LAYER = 1
NO_SINKS = {LAYER: 1e9}


class KnownSae:
    """Rebuilds a share of the way from a fixed vector to the input, with two of four features active."""

    def __init__(self, share, start):
        self.share, self.start = share, start

    def encode(self, x):
        self.x = x
        acts = torch.zeros(len(x), 4)
        acts[:, :2] = 1
        return acts

    def decode(self, acts):
        return self.start + self.share * (self.x - self.start)


@pytest.fixture(scope="module")
def model(tiny_configuration):
    return load_language_model(
        ModelEntry(id="model"), tiny_configuration.parent, "cpu", "float32", with_head=True
    )


@pytest.fixture(scope="module")
def sentences(model):
    pieces = Pieces(model.tokenizer.bos_token_id)
    for text in (
        "She told the clerk that the watch was new.",
        "Nobody came, said the gardener.",
        "I wrote the report in an hour; the numbers I made up.",
    ):
        pieces.add(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    return [pieces[index] for index in range(len(pieces))]


@pytest.fixture(scope="module")
def states(model, sentences):
    return hidden_states(model, sentences, [LAYER], 512)[LAYER]


def test_a_perfect_sae_loses_nothing(model, sentences, states):
    figure = measure(model, {LAYER: KnownSae(1.0, 0.0)}, sentences, NO_SINKS, 512)[LAYER]
    assert figure.n_tokens == len(states)
    assert (figure.l0, figure.dead) == (2.0, 0.5)
    assert figure.variance_explained == pytest.approx(1, abs=1e-6)
    assert figure.loss_with_sae == pytest.approx(figure.loss, abs=1e-5)
    assert figure.loss_recovered == pytest.approx(1, abs=1e-4)


def test_the_mean_recovers_nothing(model, sentences, states):
    figure = measure(model, {LAYER: KnownSae(0.0, states.mean(dim=0))}, sentences, NO_SINKS, 512)[LAYER]
    assert figure.variance_explained == pytest.approx(0, abs=1e-6)
    assert figure.loss_recovered == pytest.approx(0, abs=1e-3)


def test_half_the_way_leaves_a_quarter_of_the_variance(model, sentences, states):
    figure = measure(model, {LAYER: KnownSae(0.5, states.mean(dim=0))}, sentences, NO_SINKS, 512)[LAYER]
    assert figure.variance_explained == pytest.approx(0.75, abs=1e-6)


def test_the_loss_is_transformers_own(model, sentences):
    total, count = 0.0, 0
    for sentence in sentences:
        ids = torch.from_numpy(sentence.ids)[None]
        n_predicted = ids.shape[1] - 1
        with torch.inference_mode():
            total += float(model.with_head(input_ids=ids, labels=ids).loss) * n_predicted
        count += n_predicted
    figure = measure(model, {LAYER: KnownSae(1.0, 0.0)}, sentences, NO_SINKS, 512)[LAYER]
    assert figure.n_loss_tokens == count
    # float32, and padding changes the order of additions
    assert figure.loss == pytest.approx(total / count, rel=1e-5)


def test_sinks_are_neither_measured_nor_replaced(model, sentences, states):
    norms = states.norm(dim=1)
    median = float(norms.max()) / 10 * 0.999  # the largest norm alone is above ten times this
    destroys = KnownSae(0.0, torch.zeros(states.shape[1]))
    figure = measure(model, {LAYER: destroys}, sentences, {LAYER: median}, 512)[LAYER]
    assert figure.n_tokens == len(states) - 1
    every = measure(model, {LAYER: destroys}, sentences, NO_SINKS, 512)[LAYER]
    assert figure.loss_with_sae != every.loss_with_sae
