"""The two halves of a norm: what it makes of a token's vector, and the gain and bias that it puts on that."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def normalised(norm: Any, states: "torch.Tensor") -> "torch.Tensor":
    """The output of a norm before its gain and bias: TransformerLens' ``hook_normalized``.

    ``(x - mean) / sqrt(variance + eps)`` for a LayerNorm (Ba et al. 2016, arXiv 1607.06450), ``x / sqrt(mean
    square + eps)`` for any other, an RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467). Whether that is
    what a norm does, `misread` tells.

    Args:
        norm: a module that tells its eps.
        states: float [..., width].

    Returns:
        float32 [..., width], the precision in which norms compute.
    """
    import torch

    x = states.float()
    if ignores_mean(norm):
        x = x - x.mean(dim=-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + _eps(norm))


def misread(norm: Any, width: int) -> str:
    """Why `normalised` would be wrong of a norm, found by asking the norm itself; empty where it is right.

    Llama multiplies by the weight, Gemma by 1 + weight; whichever gives the norm's output is its gain.

    Args:
        norm: a module.
        width: of the vectors that it takes.
    """
    import torch

    eps = _eps(norm)
    if not isinstance(eps, float):
        return "does not tell its eps"
    parameter = next(norm.parameters(), None)
    dtype, device = (torch.float32, "cpu") if parameter is None else (parameter.dtype, parameter.device)
    with torch.inference_mode():
        # A mean that is not zero, once of the usual size and once so small that eps matters.
        probe = torch.linspace(-1, 2, width) * torch.tensor([[1.0], [eps**0.5]])
        probe = probe.to(device, dtype)
        # Not by a call: hooks that wait for the model's own values would take these.
        before, got = normalised(norm, probe), norm.forward(probe).float()
        weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
        bias = torch.zeros_like(before) if bias is None else bias.float()
        gains = [torch.ones_like(before)] if weight is None else [weight.float(), 1 + weight.float()]
        # Some roundings in the norm's own dtype; in float32, sums over the width.
        relative = max(1e-5, 4 * torch.finfo(dtype).eps)
        for gain in gains:
            bound = relative * (gain.abs() * (1 + before.abs()) + bias.abs())
            if bool(((before * gain + bias - got).abs() <= bound).all()):
                return ""
    return "is not its normalised input times a gain plus a bias"


def ignores_mean(norm: Any) -> bool:
    """Whether a norm takes the mean over the width away: a LayerNorm, torch's or one that is called so."""
    return type(norm).__name__.endswith("LayerNorm")


def _eps(norm: Any) -> Any:
    return getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
