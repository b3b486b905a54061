"""What 1,000,000 sentences x 135 SAEs of Gemma-2-2B would cost, with every assumption named.

Part of bench_scale.py. Bytes follow from the store's format; hours from arithmetic over assumed rates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from s1_compute_all_features.sae_configurations import GEMMA_SCOPE, read_sae_configurations

N_SENTENCES, N_TOKENS, D_MODEL, D_SAE, N_LAYERS = 1_000_000, 20, 2304, 16_384, 26
BLOCK_PARAMETERS = 2.02e9
"""Of Gemma-2-2B's 26 blocks; the embedding matrix is looked up, not multiplied, and there is no LM head."""


@dataclass(frozen=True)
class Assumptions:
    """Rates that were not measured, but for ``writer``.

    Attributes:
        gpu_flops: sustained float32 operations a second of one GPU, no TF32: half of an A100's 19.5 TFLOP/s.
        padding: positions of the forward pass per stored token, BOS included.
        disk: bytes a second, read or written, of the disk that all processes share.
        bus: bytes a second between GPU and host memory, pageable, one way.
        writer: bytes a second that a process's writing thread converts, writes and hashes.
        block_tokens: tokens of a unit of work; every SAE is read once per unit.
    """

    writer: float
    gpu_flops: float = 9.75e12
    padding: float = 1.1
    disk: float = 2e9
    bus: float = 6e9
    block_tokens: int = 16_384


def state_bytes_per_vector(d_model: int) -> int:
    """Of a stored hidden state: float16."""
    return 2 * d_model


def sae_bytes_per_token(l0s: Iterable[float]) -> float:
    """Of SAEs with so many active latents a token: a float32, a uint16 each, and an int64 a token."""
    return sum(6 * l0 + 8 for l0 in l0s)


def extrapolation(writer: float) -> tuple[dict[str, Any], str]:
    """The figures and a text with every step.

    Args:
        writer: see `Assumptions`, as measured.
    """
    assumed = Assumptions(writer)
    l0s = [sae.average_l0 or 0 for sae in read_sae_configurations(GEMMA_SCOPE).saes]
    n_tokens = N_SENTENCES * N_TOKENS
    vector = state_bytes_per_vector(D_MODEL) * (N_LAYERS + 1)
    state_bytes, pooled_bytes = n_tokens * vector, 4 * N_SENTENCES * vector
    sae_bytes = n_tokens * sae_bytes_per_token(l0s)
    forward = 2 * BLOCK_PARAMETERS * assumed.padding * n_tokens
    encode = 2 * D_MODEL * D_SAE * len(l0s) * n_tokens
    weights = 4 * D_MODEL * D_SAE * len(l0s)
    n_units = -(-n_tokens // assumed.block_tokens)
    # Every layer's float32 states leave the GPU once; every SAE takes its layer's back.
    bus_bytes = 4 * D_MODEL * n_tokens * (N_LAYERS + 1 + len(l0s)) + n_units * weights
    figures: dict[str, Any] = {
        "store_bytes": {"all": state_bytes + sae_bytes, "pooled": pooled_bytes + sae_bytes},
        "weights_read_bytes": n_units * weights,
        "hours": {},
    }
    lines = [
        f"extrapolated: {N_SENTENCES:,} sentences of {N_TOKENS} tokens, {len(l0s)} SAEs of {D_SAE:,} "
        f"features (mean l0 {sum(l0s) / len(l0s):.0f}, as published), {N_LAYERS} layers of {D_MODEL}",
        f"  store: {state_bytes / 1e12:.2f} TB hidden states (pooled: {pooled_bytes / 1e12:.2f}), "
        f"{sae_bytes / 1e12:.2f} TB SAE activations",
        f"  products: {forward / 1e15:.0f} PFLOP forward, {encode / 1e15:.0f} PFLOP SAEs; at an assumed "
        f"{assumed.gpu_flops / 1e12:.2f} TFLOP/s a GPU",
        f"  SAE weights: {n_units:,} units of {assumed.block_tokens:,} tokens x {weights / 1e9:.1f} GB read "
        f"= {n_units * weights / 1e12:.1f} TB",
        f"  between GPU and host: {bus_bytes / 1e12:.1f} TB at an assumed {assumed.bus / 1e9:.0f} GB/s a GPU",
        f"  writing thread: {assumed.writer / 1e6:.0f} MB/s a process, measured above; disk: an assumed "
        f"{assumed.disk / 1e9:.0f} GB/s for all",
    ]
    for states, n_bytes in figures["store_bytes"].items():
        for n_gpus in (1, 8):
            on_gpu = ((forward + encode) / assumed.gpu_flops + bus_bytes / assumed.bus) / n_gpus
            parts = {
                "GPU": on_gpu,
                "writing threads": n_bytes / assumed.writer / n_gpus,
                # Written once, read once for the checksums; the weights of one machine stay in its cache.
                "disk": (2 * n_bytes + weights) / assumed.disk,
                "disk without a cache": (2 * n_bytes + n_units * weights) / assumed.disk,
            }
            hours = {name: seconds / 3600 for name, seconds in parts.items()}
            slowest = max((name for name in hours if name != "disk without a cache"), key=hours.__getitem__)
            figures["hours"][f"{states}, {n_gpus} GPU"] = hours
            listed = ", ".join(f"{name} {value:.1f}" for name, value in hours.items())
            lines.append(
                f"  --hidden-states {states}, {n_gpus} GPU: {hours[slowest]:.1f} h, by the slowest of what "
                f"goes side by side ({slowest}); each alone: {listed} h"
            )
    return figures, "\n".join(lines)
