"""Both halves of a norm, for every architecture and dtype; a norm that does something else is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline_common.errors import UserError
from s1_compute_all_features.language_model import forward_states
from s1_compute_all_features.models.block_sites import BLOCKS, watch_site
from s1_compute_all_features.models.norms import ignores_mean, misread, normalised
from s1_compute_all_features.saes.sites import MLP_IN, MLP_NORMALIZED, Site
from tests.s1.tiny_models import MODELS, build, language_model, sentences_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "olmo"])
def test_norms_are_understood_in_every_dtype(name, dtype):
    model = language_model(build(name).to(dtype))
    norm = model.blocks[1].get_submodule(BLOCKS[name.split()[0]].mlp_norm)
    assert misread(norm, model.d_model) == ""
    site = Site(1, MLP_NORMALIZED)
    states = forward_states(model, sentences_of(model), [], [site, Site(1, MLP_IN)])
    assert states[site].dtype == torch.float32
    assert states[Site(1, MLP_IN)].dtype == dtype


@pytest.mark.parametrize("name", MODELS)
def test_a_norm_ignores_the_mean_where_its_name_says_so(name):
    model = language_model(build(name))
    norm = model.blocks[1].get_submodule(BLOCKS[name.split()[0]].mlp_norm)
    states = torch.randn(5, model.d_model, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        moved = (norm(states + 3) - norm(states)).abs().max()
    assert (moved < 1e-4) == ignores_mean(norm)
    assert moved < 1e-4 or moved > 0.1


class OddRMSNorm(nn.Module):
    """An RMSNorm with one thing changed."""

    def __init__(self, odd):
        super().__init__()
        self.odd, self.eps = odd, 1e-5
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 16))

    def forward(self, states):
        scale = (states.square().mean(-1, keepdim=True) + (1e-3 if self.odd == "eps" else self.eps)).rsqrt()
        gain = self.weight.square() if self.odd == "gain" else self.weight
        states = states.clamp(max=1.5) if self.odd == "clamp" else states
        centred = states - states.mean(-1, keepdim=True) if self.odd == "centre" else states
        return centred * scale * gain + (0.1 if self.odd == "shift" else 0)


@pytest.mark.parametrize("odd", ["eps", "gain", "clamp", "centre", "shift"])
def test_a_norm_that_does_something_else_is_refused(odd):
    assert misread(OddRMSNorm(None), 16) == ""
    assert misread(OddRMSNorm(odd), 16) == "is not its normalised input times a gain plus a bias"
    model = language_model(build("llama"))
    model.blocks[1].post_attention_layernorm = OddRMSNorm(odd)
    with pytest.raises(UserError, match=r"ln2\.hook_normalized.*OddRMSNorm, is not its normalised input"):
        watch_site(model, Site(1, MLP_NORMALIZED), print)
    watch_site(model, Site(0, MLP_NORMALIZED), print).remove()


def test_normalised_by_hand():
    states = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    rms = nn.RMSNorm(2, eps=0.5)
    np.testing.assert_allclose(normalised(rms, states), states / np.sqrt(13.0), rtol=1e-6)
    layer = nn.LayerNorm(2, eps=0.75)
    np.testing.assert_allclose(
        normalised(layer, states), [[3.5 / np.sqrt(13), -3.5 / np.sqrt(13)], [0, 0]], rtol=1e-6
    )
    assert misread(rms, 2) == misread(layer, 2) == ""
    assert misread(nn.RMSNorm(2), 2) == "does not tell its eps"  # None: torch's own, of the dtype
