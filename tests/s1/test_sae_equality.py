"""The proof that activations are right: every architecture and setting against sae-lens's own encoding.

A run either gives the activations of `SAE.encode` on the same hidden states, or it is refused before the
forward pass. Equal means, entry by entry:

- SAEs that sae-lens itself runs here: the same bits.
- SAEs that are run natively (a matrix, a bias, a threshold): the same support, but where the pre-activation
  lies within a rounding bound of the threshold, and values within that bound.

The bound. Let S = (|x| + |b_dec|) |w| + |b_enc| + |threshold| with Euclidean norms, which no partial result
of an encoder exceeds. Two float32 sums of D terms in any order differ by at most 2 (D + 3) u S with u = 2^-24
(Higham 2002, section 3.1; three more roundings for the biases and the threshold). In bfloat16 (u = 2^-8) and
float16 (u = 2^-11) products are accumulated in float32 and rounded once; sae-lens also rounds x - b_dec, both
biases, the threshold and the sum, which makes six, and two are to spare: 8 u S.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY, get_sae_class, get_sae_training_class

from pipeline_common.errors import UserError
from s1_compute_all_features import sae_encoder
from s1_compute_all_features.sae_encoder import SaeLensEncoder, ThresholdEncoder, load_encoder
from s1_compute_all_features.sae_weights import locate_sae
from s1_compute_all_features.saes.sae_spec import NORMALIZATIONS, TENSORS
from tests.s1.test_sae_encoder import configurations, entry

pytestmark = pytest.mark.usefixtures("one_thread")

N_HEADS, D_HEAD, D_SAE = 4, 4, 48
D_MODEL = N_HEADS * D_HEAD
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}

KINDS = {
    # name: (architecture, its own settings, whether it is trained and then saved for inference)
    "standard": ("standard", {}, False),
    "jumprelu": ("jumprelu", {}, False),
    "topk": ("topk", {"k": 5}, False),
    "topk by decoder norm": ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}, False),
    "gated": ("gated", {}, False),
    "matching pursuit": ("matching_pursuit", {"max_iterations": 6}, False),
    "matching pursuit to the end": ("matching_pursuit", {"residual_threshold": 0.5}, False),
    "transcoder": ("transcoder", {"d_out": D_MODEL}, False),
    "transcoder to another width": ("transcoder", {"d_out": 24}, False),
    "skip transcoder": ("skip_transcoder", {"d_out": D_MODEL}, False),
    "jumprelu transcoder": ("jumprelu_transcoder", {"d_out": D_MODEL}, False),
    "jumprelu skip transcoder": ("jumprelu_skip_transcoder", {"d_out": D_MODEL}, False),
    "standard as saved": ("standard", {}, True),
    "gated as saved": ("gated", {}, True),
    "topk as saved": ("topk", {"k": 5}, True),
    "jumprelu as saved": ("jumprelu", {}, True),
    "batchtopk as saved": ("batchtopk", {"k": 5}, True),
    "matryoshka as saved": ("matryoshka_batchtopk", {"k": 5, "matryoshka_widths": [16, D_SAE]}, True),
}
REFUSED = {"abstopk": {"k": 5}, "temporal": {"n_heads": 1, "bottleneck_factor": 1, "kval_topk": 5}}
HOOKS = {
    "residual": "blocks.0.hook_resid_post",
    "heads": "blocks.0.attn.hook_z",
    "mlp": "blocks.0.mlp.hook_in",
}


def test_every_architecture_of_sae_lens_is_decided():
    """A new one has to be looked at: run and held against sae-lens here, or refused by name."""
    run = {architecture for architecture, _, trained in KINDS.values() if not trained}
    assert run | set(REFUSED) == set(SAE_CLASS_REGISTRY)
    assert run == set(TENSORS)


@st.composite
def saes(draw, kind):
    """Settings of an SAE: those of its configuration, of its weights, and of the run."""
    architecture, own, trained = KINDS[kind]
    transcodes = architecture.endswith("transcoder")
    place = "mlp" if transcodes else draw(st.sampled_from(["residual", "heads"]))
    reshapes = place == "heads" and draw(st.booleans())
    configuration = {
        **own,
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "normalize_activations": draw(st.sampled_from(["none"] if trained else NORMALIZATIONS)),
        "apply_b_dec_to_input": False if transcodes else draw(st.booleans()),
        "reshape_activations": "hook_z" if reshapes else "none",
        "dtype": draw(st.sampled_from(["float32", "bfloat16"])),
    }
    dtype = draw(st.sampled_from(list(UNIT)))
    return {
        "configuration": configuration,
        "hook": HOOKS[place],
        "scales": [draw(st.sampled_from([0.1, 1.0, 8.0])) for _ in ("x", "b_dec", "W")],
        "seed": draw(st.integers(0, 2**20)),
        "n_tokens": draw(st.integers(1, 40)),
        "dtype": dtype,
        "screening": dtype == "float32" and draw(st.booleans()),
    }


def write_sae(folder, kind, drawn):
    """The SAE, written by sae-lens itself, and hidden states for it."""
    architecture, _, trained = KINDS[kind]
    sae_class, config_class = (get_sae_training_class if trained else get_sae_class)(architecture)
    config = config_class(**drawn["configuration"])
    config.metadata.hook_name, config.metadata.prepend_bos = drawn["hook"], True
    sae = sae_class(config)
    generator = torch.Generator().manual_seed(drawn["seed"])
    x_scale, b_dec_scale, w_scale = drawn["scales"]
    with torch.no_grad():
        for name, value in sae.named_parameters():
            scale = {"b_dec": b_dec_scale, "r_mag": 0.3}.get(name, w_scale)
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
        if architecture == "matching_pursuit":  # else each step makes the residual longer
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        for name in ("threshold", "log_threshold"):
            if hasattr(sae, name) and isinstance(getattr(sae, name), torch.nn.Parameter):
                # Some below zero, where relu holds instead.
                values = torch.rand(D_SAE, generator=generator) * 4 - 1
                getattr(sae, name).copy_(values * x_scale * w_scale)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(2.5 * x_scale * w_scale)
    (sae.save_inference_model if trained else sae.save_model)(folder)
    return torch.randn(drawn["n_tokens"], D_MODEL, generator=generator) * x_scale


def bound(folder, x, dtype):
    """S times the units of the dtype, per entry; and the pre-activations in float64, both [T, F]."""
    sae = SAE.load_from_disk(folder, dtype=dtype)
    W = sae.W_enc.detach().double()
    b_dec = sae.b_dec.detach().double() if sae.cfg.apply_b_dec_to_input else torch.zeros(D_MODEL).double()
    b_enc = sae.b_enc.detach().double()
    threshold = getattr(sae, "threshold", torch.zeros(D_SAE)).detach().double().clamp(min=0)
    rounded = x.to(getattr(torch, dtype)).double()
    S = (rounded.norm(dim=1)[:, None] + b_dec.norm()) * W.norm(dim=0) + b_enc.abs() + threshold.abs()
    units = 2 * (D_MODEL + 3) if dtype == "float32" else 8
    return (units * UNIT[dtype] * S).numpy(), ((rounded - b_dec) @ W + b_enc).numpy(), threshold.numpy()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_activations_are_those_of_sae_lens(kind, data, tmp_path_factory):
    drawn = data.draw(saes(kind))
    folder = tmp_path_factory.mktemp("sae") / "layer_0"
    x = write_sae(folder, kind, drawn)
    dtype, hook = drawn["dtype"], drawn["hook"]
    entries = entry(hook=hook)
    located = locate_sae(configurations(saes=(entries,)), entries, folder.parent, folder.parent)
    encoder = load_encoder(located, configurations(), "cpu", drawn["screening"], dtype)
    reference = SAE.load_from_disk(folder, dtype=dtype)
    reads_heads = drawn["configuration"]["reshape_activations"] == "hook_z"
    inputs = x.to(getattr(torch, dtype))
    with torch.inference_mode():
        expected = (
            reference.encode(inputs.view(-1, N_HEADS, D_HEAD) if reads_heads else inputs).float().numpy()
        )
    if not np.isfinite(expected).all():  # float16 ends at 65,504
        with pytest.raises(UserError, match="not finite in the precision of the SAEs"):
            encoder.encode(x)
        return
    got = encoder.encode(x).to_dense()
    assert got.shape == (len(x), D_SAE)
    if isinstance(encoder, SaeLensEncoder):
        np.testing.assert_array_equal(got, expected)
        return
    assert isinstance(encoder, ThresholdEncoder)
    within, p, threshold = bound(folder, x, dtype)
    unclear = np.abs(p - threshold) <= within
    np.testing.assert_array_equal((got > 0)[~unclear], (expected > 0)[~unclear])
    both = (got > 0) & (expected > 0)
    assert (np.abs(got - expected)[both] <= within[both]).all()


def test_what_is_run_natively_is_what_can_be():
    """The others go through sae-lens: the native path takes no SAE that it does not compute."""
    native = {"standard", "jumprelu", "transcoder", "skip_transcoder"}
    native |= {"jumprelu_transcoder", "jumprelu_skip_transcoder"}
    from s1_compute_all_features.saes.sae_spec import SaeSpec

    for architecture, normalization in itertools.product(TENSORS, NORMALIZATIONS):
        spec = SaeSpec(architecture, 4, 8, normalization=normalization)
        assert spec.is_threshold_encoder == (architecture in native and normalization == "none")


@pytest.mark.parametrize("kind", ["topk", "topk by decoder norm", "gated"])
@pytest.mark.parametrize("strip", [1, 7])
def test_strips_change_nothing_but_what_rounding_cannot_tell(kind, strip, tmp_path, monkeypatch):
    """In other batch sizes a product rounds in another order, so that an entry at the edge may flip.

    For TopK the edge is the k-th value. Matching pursuit is left out: it takes one feature after the other,
    and a flip at the first changes all that follow.
    """
    drawn = {
        "configuration": {
            **KINDS[kind][1],
            **{"d_in": D_MODEL, "d_sae": D_SAE, "apply_b_dec_to_input": True, "dtype": "float32"},
        },
        "hook": HOOKS["residual"],
        "scales": [1.0, 1.0, 1.0],
        "seed": 5,
        "n_tokens": 400,
    }
    folder = tmp_path / "layer_0"
    x = write_sae(folder, kind, drawn)
    with torch.inference_mode():
        expected = SAE.load_from_disk(folder).encode(x).numpy()
    monkeypatch.setattr(sae_encoder, "TOKENS_AT_ONCE", strip)
    encoder = load_encoder(locate_sae(configurations(), entry(), tmp_path, tmp_path), configurations(), "cpu")
    got = encoder.encode(x).to_dense()
    sae = SAE.load_from_disk(folder)
    W, norms = sae.W_enc.detach().double(), sae.W_dec.detach().double().norm(dim=1)
    centred = x.double() - sae.b_dec.detach().double()
    S = (x.double().norm(dim=1)[:, None] + sae.b_dec.detach().double().norm()) * W.norm(dim=0)
    if kind == "gated":
        p = centred @ W + sae.b_gate.detach().double()
        edge, S = 0.0, S * sae.r_mag.detach().double().exp().clamp(min=1) + sae.b_gate.abs() + sae.b_mag.abs()
    else:
        p = centred @ W + sae.b_enc.detach().double()
        S = S + sae.b_enc.detach().abs()
        if "norm" in kind:
            p, S = p * norms, S * norms
        edge = p.topk(5, dim=1).values[:, -1:]
    within = (2 * (D_MODEL + 3) * UNIT["float32"] * S).detach().numpy()
    # Two entries change places where both are within their bounds of the edge.
    unclear = np.abs((p - edge).detach().numpy()) <= within + within.max(axis=1, keepdims=True)
    np.testing.assert_array_equal((got > 0)[~unclear], (expected > 0)[~unclear])
    both = (got > 0) & (expected > 0)
    assert both.sum() > 500
    assert (np.abs(got - expected)[both] <= within[both]).all()


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_a_store_cannot_hold_is_refused_by_name(architecture, tmp_path):
    _, config_class = get_sae_class(architecture)
    sae = get_sae_class(architecture)[0](config_class(d_in=D_MODEL, d_sae=D_SAE, **REFUSED[architecture]))
    sae.save_model(tmp_path / "layer_0")
    with pytest.raises(UserError, match=f"the architecture {architecture} cannot be stored"):
        locate_sae(configurations(), entry(), tmp_path, tmp_path)


@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
def test_what_overflows_is_refused_and_not_read_as_silent(kind, tmp_path):
    drawn = {
        "configuration": {**KINDS[kind][1], "d_in": D_MODEL, "d_sae": D_SAE},
        "hook": HOOKS["residual"],
        "scales": [1.0, 1.0, 1.0],
        "seed": 1,
        "n_tokens": 3,
    }
    x = write_sae(tmp_path / "layer_0", kind, drawn)
    x[1, 2] = 1e5  # float16 ends at 65,504
    located = locate_sae(configurations(), entry(), tmp_path, tmp_path)
    load_encoder(located, configurations(), "cpu").encode(x)
    with pytest.raises(UserError, match="not finite in the precision of the SAEs"):
        load_encoder(located, configurations(), "cpu", dtype="float16").encode(x)
