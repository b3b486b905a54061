"""Sites: the places in a transformer block where an SAE reads, and the names that publishers give them.

A configuration and a store name a site as TransformerLens does, `blocks.5.hook_mlp_out`. SAEs trained with
other libraries name the module of the Hugging Face model instead, `model.layers.5.output`. Both are read
here, and a name outside the two tables is refused: where an SAE reads is never guessed.
"""

import re
from dataclasses import dataclass

RESID_PRE, RESID_MID, RESID_POST = "resid_pre", "resid_mid", "resid_post"
HOOK_Z, ATTN_OUT = "hook_z", "attn_out"
MLP_NORMALIZED, MLP_IN, MLP_OUT = "mlp_normalized", "mlp_in", "mlp_out"

HOOKS = {
    RESID_PRE: "hook_resid_pre",
    RESID_MID: "hook_resid_mid",
    RESID_POST: "hook_resid_post",
    HOOK_Z: "attn.hook_z",
    ATTN_OUT: "hook_attn_out",
    MLP_NORMALIZED: "ln2.hook_normalized",
    MLP_IN: "mlp.hook_in",
    MLP_OUT: "hook_mlp_out",
}
"""Kind of site to its name within a block in TransformerLens."""

DESCRIPTIONS = {
    RESID_PRE: "the residual stream in front of the block",
    RESID_MID: "the residual stream between attention and MLP",
    RESID_POST: "the residual stream after the block",
    HOOK_Z: "the outputs of the attention heads, side by side",
    ATTN_OUT: "what attention adds to the residual stream",
    MLP_NORMALIZED: "the normalised input of the MLP, before the norm's gain",
    MLP_IN: "the input of the MLP",
    MLP_OUT: "what the MLP adds to the residual stream",
}
"""Kind of site to what stands there."""

_WRITTEN = (RESID_PRE, RESID_MID, RESID_POST, ATTN_OUT, MLP_OUT)
"""Kinds whose values blocks write to the residual stream, or that are its sums."""

GEMMA_SCOPE_REPOSITORIES = {"res": RESID_POST, "mlp": MLP_OUT, "att": HOOK_Z, "transcoders": MLP_NORMALIZED}
"""End of the name of a repository of Gemma Scope to what its SAEs read: their files do not say."""

GEMMA_SCOPE_2_FOLDERS = {
    "resid_post": RESID_POST,
    "resid_post_all": RESID_POST,
    "attn_out": HOOK_Z,
    "attn_out_all": HOOK_Z,
    "mlp_out": MLP_OUT,
    "mlp_out_all": MLP_OUT,
    "transcoder": MLP_IN,
    "transcoder_all": MLP_IN,
    "clt": MLP_IN,
}
"""First folder of a path of Gemma Scope 2 to what its SAEs read. ``attn_out`` holds SAEs of the input of
``o_proj``, the heads' outputs. Transcoders read ``pre_feedforward_layernorm.output``; sae-lens writes
``hook_mlp_in`` for them, which is another place."""

_OTHER_SPELLINGS = {"hook_z": HOOK_Z}
"""Names within a block that releases use beside those of `HOOKS`."""

_MODULE_SITES = {
    "": RESID_POST,
    "output": RESID_POST,
    "input": RESID_PRE,
    "self_attn.o_proj.input": HOOK_Z,
    "pre_feedforward_layernorm.output": MLP_IN,
    "post_feedforward_layernorm.output": MLP_OUT,
}
"""Module of a Hugging Face block, and its input or output, to the kind of site. Other modules mean one thing
in one architecture and another in the next (`post_attention_layernorm`, `mlp`), so they are not read."""

_IN_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.([\w.]+)", re.ASCII)
_IN_HUGGING_FACE = re.compile(
    r"(?:(?:model|transformer|gpt_neox|language_model|decoder)\.)*(?:layers|h)\.(\d+)(?:\.([\w.]+))?",
    re.ASCII,
)
AMBIGUOUS = "hook_mlp_in"
"""Within a block of TransformerLens the residual stream before the norm; sae-lens writes it for the MLP's
input too."""


@dataclass(frozen=True)
class Site:
    """A place in a transformer block.

    Attributes:
        block: index of the block.
        kind: a key of `HOOKS`.
    """

    block: int
    kind: str

    @property
    def hook(self) -> str:
        """Its name in TransformerLens, which configurations and stores use."""
        return f"blocks.{self.block}.{HOOKS[self.kind]}"

    @property
    def stream_layer(self) -> int | None:
        """The hidden layer that it is: N for the output of block N, -1 for the input of block 0.

        None for a site that is no whole hidden layer; a store holds no states of those.
        """
        if self.kind == RESID_POST:
            return self.block
        return self.block - 1 if self.kind == RESID_PRE else None

    @property
    def place(self) -> "Place":
        """Its key among the states of a forward pass: the hidden layer that it is, else the site itself."""
        return self if self.stream_layer is None else self.stream_layer

    @property
    def is_written(self) -> bool:
        """Whether its values are written to the residual stream, or sums of such.

        Weights that write can be centred (TransformerLens' ``center_writing_weights``), and these values are
        then without their mean over d_model. The others are read through a LayerNorm, which takes that mean
        away before the weights do, and are the same either way.
        """
        return self.kind in _WRITTEN

    @property
    def sink_layer(self) -> int:
        """The hidden layer whose attention sinks are left out here: its own, or the block's output.

        The norm of a part of a block says nothing of a sink: the MLP that writes the huge values has them,
        those behind it read them through a norm and have not. The residual stream tells both times.
        """
        return self.block if self.stream_layer is None else self.stream_layer


Place = int | str | Site
"""Where a forward pass picks up states: a hidden layer, the embeddings by name, or a site that is neither."""


def site_of(hook: str) -> Site:
    """The site that a hook names.

    >>> site_of("blocks.5.hook_resid_pre").stream_layer, site_of("model.layers.5.output").hook
    (4, 'blocks.5.hook_resid_post')

    Raises:
        ValueError: a name outside the tables; the message says what is known.
    """
    if match := _IN_TRANSFORMER_LENS.fullmatch(hook):
        kinds = {name: kind for kind, name in HOOKS.items()} | _OTHER_SPELLINGS
        kind = kinds.get(match[2])
        if kind is None and match[2] == AMBIGUOUS:
            raise ValueError(
                f"hook {hook!r} means the residual stream to some and the MLP's input to others; name the "
                f"site that the SAE was trained on, {HOOKS[RESID_MID]} or {HOOKS[MLP_IN]}"
            )
    elif match := _IN_HUGGING_FACE.fullmatch(hook):
        kind = _MODULE_SITES.get(match[2] or "")
    else:
        kind = None
    if match is None or kind is None:
        raise ValueError(
            f"hook {hook!r} names no site that is known here; known are blocks.N. with "
            f"{', '.join(HOOKS.values())}"
        )
    return Site(int(match[1]), kind)
