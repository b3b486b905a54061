"""SAEs that sae-lens's registry alone knows how to read, from a hub cache in the real layout, off line."""

import json

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from sae_lens import SAE

from pipeline_common.errors import UserError
from s1_compute_all_features.sae_configurations import SaeEntry
from s1_compute_all_features.sae_encoder import load_encoder
from s1_compute_all_features.sae_weights import locate_sae
from tests.fake_hub import snapshot
from tests.s1.test_sae_encoder import D_MODEL, D_SAE, configurations, states

pytestmark = pytest.mark.usefixtures("one_thread")

RELEASE, REPOSITORY = "sae_bench_pythia70m_sweep_topk_ctx128_0730", "canrager/lm_sae"
SAE_ID = "blocks.3.hook_resid_post__trainer_0"
PATH = "pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Writes an SAE of dictionary_learning into the cache; to be called with its class and more tensors."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def write(dict_class="AutoEncoderTopK", layer=3, **more):
        folder = snapshot(tmp_path, REPOSITORY) / PATH
        folder.mkdir(parents=True, exist_ok=True)
        trainer = {
            "dict_class": dict_class,
            "layer": layer,
            "k": 6,
            "activation_dim": D_MODEL,
            "dict_size": D_SAE,
            "lm_name": "EleutherAI/pythia-70m-deduped",
        }
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        generator = torch.Generator().manual_seed(4)
        tensors = {
            "encoder.weight": torch.randn(D_SAE, D_MODEL, generator=generator),
            "encoder.bias": torch.randn(D_SAE, generator=generator),
            "decoder.weight": torch.randn(D_MODEL, D_SAE, generator=generator),
            "b_dec": torch.randn(D_MODEL, generator=generator),
        }
        torch.save({**tensors, **more}, folder / "ae.pt")

    return write


def located(hook="blocks.3.hook_resid_post"):
    one = SaeEntry(name="a", layer=3, average_l0=None, hook=hook, sae_id=SAE_ID, path=PATH, neuronpedia_id="")
    whole = configurations(release=RELEASE, repo_id=REPOSITORY, weights_format="registry", saes=(one,))
    return locate_sae(whole, one, None, None), whole


@pytest.mark.parametrize(
    ("dict_class", "more", "architecture"),
    [
        ("AutoEncoderTopK", {}, "topk"),
        ("AutoEncoder", {}, "standard"),
        ("BatchTopKSAE", {"threshold": torch.tensor(1.5)}, "jumprelu"),
    ],
)
def test_activations_are_those_of_sae_lens(dict_class, more, architecture, published):
    published(dict_class, **more)
    found, whole = located()
    assert (found.spec.architecture, found.spec.d_in, found.spec.d_sae) == (architecture, D_MODEL, D_SAE)
    with torch.inference_mode():
        expected = SAE.from_pretrained(RELEASE, SAE_ID).encode(states()).numpy()
    np.testing.assert_array_equal(load_encoder(found, whole, "cpu").encode(states()).to_dense(), expected)
    assert (expected > 0).any()


def test_its_weights_are_its_fingerprint(published):
    published()
    before = located()[0].fingerprint
    assert located()[0].fingerprint == before
    published(b_dec=torch.zeros(D_MODEL))
    assert located()[0].fingerprint != before


def test_what_does_not_fit_is_one_line(published, tmp_path):
    with pytest.raises(UserError, match="not in the cache") as error:
        located()
    assert "\n" not in str(error.value)
    published(layer=4)
    with pytest.raises(UserError, match=r"trained with hook 'blocks\.4\.hook_resid_post'"):
        located()
    published()
    (snapshot(tmp_path, REPOSITORY) / PATH / "ae.pt").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded") as error:
        located()
    assert "\n" not in str(error.value)
    published(**{"encoder.bias": torch.zeros(D_SAE + 1)})
    with pytest.raises(UserError, match="cannot be loaded") as error:
        located()
    assert "\n" not in str(error.value)
