"""SAE encoders: hidden states to sparse activations.

Axes: T tokens, D d_model, F features (d_sae).
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import SparseActivations
from s1_compute_all_features.sae_configurations import SaeConfigurations
from s1_compute_all_features.sae_weights import (
    LocatedSae,
    ThresholdWeights,
    load_with_sae_lens,
    read_threshold_weights,
)
from s1_compute_all_features.saes.decoder_norms import norms_of_loaded

if TYPE_CHECKING:
    import torch

TOKENS_AT_ONCE = 512
BFLOAT16_UNIT = 2.0**-8
"""Bound on the relative error u of rounding to bfloat16 (8 significant bits: 2^-9), a factor to spare."""

FLOAT32_BAND = 2.0**-17
"""Half-width of the band around a threshold, relative to |x| |w|, in which float32 is not trusted.

Rounding errors of a float32 dot product of a few thousand terms stay below it by an order of magnitude;
what falls into the band is decided in float64, so that the support depends on no order of additions."""

MAX_CANDIDATES = 0.05
"""Share of all entries above which rescoring costs more than it saves."""


class SaeEncoder(ABC):
    """Encodes hidden states to non-negative sparse activations.

    Attributes:
        d_model: width of the input.
        d_sae: number of features.
    """

    d_model: int
    d_sae: int

    @abstractmethod
    def encode_strip(self, states_TD: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Active entries of some tokens, token by token.

        Args:
            states_TD: float [T, D].

        Returns:
            int64 [n_active] indices of the tokens and of the features, and float32 [n_active] activations.

        Raises:
            UserError: something is not finite in the precision of the SAE, or below zero.
        """

    def encode(self, states: "torch.Tensor", center: bool = False) -> SparseActivations:
        """Activations of hidden states.

        Args:
            states: float [T, D], full precision, on any device.
            center: subtract each token's mean over D first.

        Returns:
            [T, F] sparse; the non-zeros are taken out on the device, strip by strip.

        Raises:
            UserError: states or activations overflow the precision of the SAE.
        """
        import torch

        data, indices, lengths = [], [], []
        with torch.inference_mode():
            for strip in states.split(TOKENS_AT_ONCE):
                strip_TD = strip.float()
                if center:
                    strip_TD = strip_TD - strip_TD.mean(dim=-1, keepdim=True)
                tokens, features, values = self.encode_strip(strip_TD)
                if not values.isfinite().all():
                    raise _overflow("activations")
                data.append(values.cpu().numpy())
                indices.append(features.cpu().numpy())
                lengths.append(torch.bincount(tokens, minlength=len(strip)).cpu().numpy())
        index_type = np.uint16 if self.d_sae <= np.iinfo(np.uint16).max + 1 else np.uint32
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return SparseActivations(
            np.concatenate(data),
            np.concatenate(indices).astype(index_type),
            indptr,
            (len(states), self.d_sae),
        )


class ThresholdEncoder(SaeEncoder):
    """JumpReLU and ReLU SAEs: ``p * (p > threshold)`` with ``p = x @ W_enc + b_enc``, p > 0.

    Rajamanoharan et al. 2024, "Jumping Ahead" (JumpReLU); a ReLU SAE has threshold 0.

    Without screening, p is a float32 product. With screening, a bfloat16 product with a rigorous error
    bound finds every entry that could be active, and those are computed again in float32. Either way an
    entry so close to its threshold that float32 cannot tell is decided in float64, so both ways, and
    every way of cutting the tokens into strips, give the same support.
    """

    def __init__(
        self, weights: ThresholdWeights, device: str, screening: bool = False, dtype: str = "float32"
    ) -> None:
        """Put the weights on the device.

        The screening product's own copy is made at the first use: an encoder that only waits for its
        turn then takes no memory for it.
        """
        import torch

        self.W_FD = weights.W_FD.to(device, getattr(torch, dtype))
        self.b_enc = weights.b_enc.to(device)
        self.threshold = weights.threshold.to(device)
        self.d_sae, self.d_model = self.W_FD.shape
        self.row_norms = self.W_FD.norm(dim=1).float()
        self.screening = screening
        self.W_screen: torch.Tensor | None = None

    def encode_strip(self, states_TD: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """As `SaeEncoder.encode_strip`: [T, D] to three arrays [n_active].

        Raises:
            UserError: something is not finite in the precision of the SAE, or below zero.
        """
        import torch

        states_TD = states_TD.to(self.W_FD)
        if self.W_FD.dtype == torch.float16 and not states_TD.isfinite().all():
            raise _overflow("hidden states")
        found = self._screened(states_TD) if self.screening else None
        tokens, features, p = found if found is not None else self._dense(states_TD)
        active = p > self.threshold[features]
        doubtful = (p - self.threshold[features]).abs() <= (
            FLOAT32_BAND * self.row_norms[features] * states_TD.norm(dim=1)[tokens]
        )
        if doubtful.any():
            t, f = tokens[doubtful], features[doubtful]
            exact = (states_TD[t].double() * self.W_FD[f].double()).sum(dim=1) + self.b_enc[f].double()
            active[doubtful] = exact > self.threshold[f].double()
            # At the smallest value above its threshold float32 may round an active entry to zero or below.
            p[doubtful] = exact.float().clamp(min=float(np.finfo(np.float32).tiny))
        return tokens[active], features[active], p[active]

    def _dense(self, states_TD: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Entries above or near their threshold by the float32 product, token-major."""
        import torch
        from torch.nn.functional import linear

        if self.W_FD.dtype == torch.float32:
            p_TF = linear(states_TD, self.W_FD, self.b_enc)
        else:
            p_TF = linear(states_TD, self.W_FD).float().add_(self.b_enc)
        band = FLOAT32_BAND * self.row_norms * states_TD.norm(dim=1).max()
        # One pass over the dense product: its memory traffic is all that the product does not hide.
        near = (p_TF >= self.threshold - band).view(-1).nonzero().squeeze(1)
        return near // self.d_sae, near % self.d_sae, p_TF.view(-1)[near]

    def _prepare_screening(self) -> "torch.Tensor":
        """bfloat16 weights with one more input that adds the error bound inside the product.

        Let a be the bfloat16 product's result before its own rounding. Rounding both factors changes each
        term by at most 2u + u^2 of its size, and the accumulation is in float32, so that
        |a - x.w| <= 2.2 u |x| |w| by Cauchy-Schwarz. The extra input is |x|, its weight 2.2 u |w| and the
        float32 band, both rounded up, so the product yields an upper bound of x.w; rounding the result
        costs another u.
        """
        import torch

        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        n_extra = 32  # a multiple of what matrix units like; all but one are zeros
        W_screen = torch.zeros(
            self.d_sae, self.d_model + n_extra, dtype=torch.bfloat16, device=self.W_FD.device
        )
        W_screen[:, : self.d_model] = self.W_FD
        up = 1 + 2 * BFLOAT16_UNIT
        W_screen[:, self.d_model] = (2.2 * BFLOAT16_UNIT + FLOAT32_BAND) * self.row_norms * up * up
        cut = self.threshold - self.b_enc
        down = torch.where(cut >= 0, 1 - 2 * BFLOAT16_UNIT, 1 + 2 * BFLOAT16_UNIT)
        # Rounded towards minus infinity: once for the result's own rounding, once for the cut's.
        self.cut = (cut * down * down).to(torch.bfloat16)
        return W_screen

    def _screened(
        self, states_TD: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None":
        """Candidates with their float32 values, token-major; None where there are too many."""
        import torch

        if self.W_screen is None:
            self.W_screen = self._prepare_screening()
        n_tokens = len(states_TD)
        x = torch.zeros(n_tokens, self.W_screen.shape[1], dtype=torch.bfloat16, device=states_TD.device)
        x[:, : self.d_model] = states_TD
        x[:, self.d_model] = states_TD.norm(dim=1) * (1 + 2 * BFLOAT16_UNIT)
        candidates_FT = (self.W_screen @ x.T) >= self.cut[:, None]
        features, tokens = candidates_FT.nonzero(as_tuple=True)
        if len(features) > MAX_CANDIDATES * candidates_FT.numel():
            return None
        crow = torch.zeros(self.d_sae + 1, dtype=torch.int64, device=states_TD.device)
        crow[1:] = torch.bincount(features, minlength=self.d_sae).cumsum(0)
        pattern = torch.sparse_csr_tensor(
            crow,
            tokens,
            torch.zeros(len(tokens), device=states_TD.device),
            size=(self.d_sae, n_tokens),
            check_invariants=False,
        )
        p = (
            torch.sparse.sampled_addmm(pattern, self.W_FD, states_TD.T, beta=0.0).values()
            + self.b_enc[features]
        )
        order = torch.argsort(tokens, stable=True)
        return tokens[order], features[order], p[order]


class SaeLensEncoder(SaeEncoder):
    """Any other architecture, by sae-lens's own ``SAE.encode``."""

    def __init__(self, sae: Any, decoder_norms: np.ndarray | None = None) -> None:
        """Take a loaded sae-lens SAE, and the norms of its decoder rows, float32 [F]."""
        self.sae, self.decoder_norms = sae, decoder_norms
        self.d_model, self.d_sae = sae.cfg.d_in, sae.cfg.d_sae

    def encode_strip(self, states_TD: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """As `SaeEncoder.encode_strip`: [T, D] to three arrays [n_active].

        Raises:
            UserError: something is not finite in the precision of the SAE, or below zero.
        """
        acts_TF = self.sae.encode(states_TD.to(self.sae.device, self.sae.dtype))
        if not acts_TF.isfinite().all():
            raise _overflow("activations")
        if (acts_TF < 0).any():
            raise UserError(
                f"{type(self.sae).__name__}: an activation below zero, and a store holds those above zero "
                "only; SAEs of this kind cannot be used"
            )
        active_TF = acts_TF > 0
        tokens, features = active_TF.nonzero(as_tuple=True)
        return tokens, features, acts_TF[active_TF].float()


def load_encoder(
    located: LocatedSae,
    configurations: SaeConfigurations,
    device: str,
    screening: bool = False,
    dtype: str = "float32",
) -> SaeEncoder:
    """Load an SAE's encoder.

    Args:
        located: the SAE.
        configurations: of which it is part.
        device: where to encode.
        screening: use the bfloat16 screening product where the architecture allows it.
        dtype: precision of the encoder's product; screening needs float32.

    Raises:
        UserError: damaged weights or NaN among them, or an SAE that was trained on something else than the
            configuration says.
    """
    import torch

    weights = read_threshold_weights(located)
    if weights is None:
        sae = load_with_sae_lens(located, configurations, device)
        norms = norms_of_loaded(located, sae)
        sae = sae.to(dtype=getattr(torch, dtype))
        _refuse_nan(located, any(bool(tensor.isnan().any()) for tensor in sae.state_dict().values()))
        return SaeLensEncoder(sae, norms)
    encoder = ThresholdEncoder(weights, device, screening, dtype)
    # A norm is finite only where every weight of its row is.
    finite = encoder.row_norms.isfinite().all() and encoder.b_enc.isfinite().all()
    _refuse_nan(located, not finite or bool(encoder.threshold.isnan().any()))
    return encoder


def _overflow(what: str) -> UserError:
    return UserError(
        f"{what} are not finite in the precision of the SAEs, and what is not a number would be read as "
        "silent; use --sae-dtype float32"
    )


def _refuse_nan(located: LocatedSae, found: bool) -> None:
    """NaN is above no threshold: the features it reaches would be silent, as if they had nothing to say."""
    if found:
        where = located.weights or located.entry.sae_id
        raise UserError(
            f"SAE {located.entry.name}: weights that are not finite in {where}; fetch them again, or try "
            "--sae-dtype float32"
        )


def screening_is_faster(device: str) -> bool:
    """Whether this device multiplies bfloat16 natively: then screening pays.

    On a CPU by its instruction set (AMX or AVX-512 BF16). On CUDA it has not been measured yet, so the
    answer is no.
    """
    import torch

    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
