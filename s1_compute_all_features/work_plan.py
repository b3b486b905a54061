"""The work of a run: stores, blocks, units, who does which part, and what is measured on the way."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from s1_compute_all_features.attention_sinks import SinkRule
from s1_compute_all_features.batch_halving import BatchLimit
from s1_compute_all_features.feature_store import block_file_names
from s1_compute_all_features.language_model import LanguageModel, TokenisedSentence
from s1_compute_all_features.sae_configurations import SaeConfigurations
from s1_compute_all_features.sae_weights import LocatedSae

BlockKey = tuple[int, int]
"""(number of the store, number of the block)."""


@dataclass(frozen=True)
class StoreTask:
    """One input and its store.

    Attributes:
        folder: of the feature store.
        sentences: the tokenised sentences, in file order.
        blocks: sentence index ranges, in order.
        layers: hidden layers that the finished store holds.
        sae_names: SAEs that the finished store holds.
        hidden_states: ``all``, ``pooled`` (per sentence, under every pooling) or ``none``.
        sinks: what decides which tokens are attention sinks; None where they are kept.
    """

    folder: Path
    sentences: Sequence[TokenisedSentence]
    blocks: Sequence[range]
    layers: Sequence[int]
    sae_names: Sequence[str]
    hidden_states: str = "all"
    sinks: SinkRule | None = None

    @property
    def file_names(self) -> list[str]:
        """Every data file of a block."""
        return block_file_names(self.layers, self.sae_names, self.hidden_states)

    def n_tokens(self, block: int) -> int:
        """Stored tokens of a block."""
        return sum(len(self.sentences[index].texts) for index in self.blocks[block])


@dataclass(frozen=True)
class Extraction:
    """What all stores of a run share.

    Attributes:
        tasks: the stores.
        model: the language model.
        configurations: model and SAEs as configured.
        saes: the SAEs to encode, with their weights.
        batch_tokens: positions per forward pass, padding included.
        block_tokens: stored tokens per unit of work.
        device: torch device of model and encoders.
        sae_dtype: precision of the encoders.
        screening: whether JumpReLU and ReLU encoders screen in bfloat16.
        check_reconstruction: measure the variance that each SAE explains.
        rank: this process among ``world``; blocks and SAEs are shared out.
        world: number of processes.
    """

    tasks: Sequence[StoreTask]
    model: LanguageModel
    configurations: SaeConfigurations
    saes: Sequence[LocatedSae]
    batch_tokens: int
    block_tokens: int
    device: str
    sae_dtype: str = "float32"
    screening: bool = False
    check_reconstruction: bool = False
    rank: int = 0
    world: int = 1


@dataclass
class Measurements:
    """What a run measures on the way; one per process, merged at the end.

    Attributes:
        seconds: per phase; ``write`` runs beside the others.
        active: per SAE the active latents and the tokens that it encoded.
        explained: per SAE the residual and the total sum of squares of the checked tokens.
        limits: per phase, what a batch may hold since memory ran out in it.
        n_halved: batches that were halved because memory ran out.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    active: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    explained: dict[str, tuple[float, float]] = field(default_factory=dict)
    limits: dict[str, BatchLimit] = field(default_factory=lambda: defaultdict(BatchLimit))
    n_halved: int = 0

    def mean_l0(self) -> dict[str, float]:
        """Active latents per token of every SAE that encoded something in this run."""
        return {name: active / tokens for name, (active, tokens) in self.active.items() if tokens}

    def variance_explained(self) -> dict[str, float]:
        """1 - residual / total sum of squares of every checked SAE."""
        return {name: 1 - residual / total for name, (residual, total) in self.explained.items() if total}

    def merge(self, other: "Measurements") -> None:
        """Add another process's measurements; seconds become the slowest process's."""
        self.n_halved += other.n_halved
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = max(self.seconds[phase], seconds)
        for name, (active, tokens) in other.active.items():
            self.active[name][0] += active
            self.active[name][1] += tokens
        for name, (residual, whole) in other.explained.items():
            known = self.explained.get(name, (0.0, 0.0))
            self.explained[name] = (known[0] + residual, known[1] + whole)


def plan_blocks(n_tokens: Sequence[int], block_tokens: int) -> list[range]:
    """Runs of whole sentences with at most ``block_tokens`` stored tokens each.

    A sentence longer than that makes a block of its own.
    """
    blocks, first, total = [], 0, 0
    for index, tokens in enumerate(n_tokens):
        if total and total + tokens > block_tokens:
            blocks.append(range(first, index))
            first, total = index, 0
        total += tokens
    return [*blocks, range(first, len(n_tokens))]


def plan_units(run: Extraction) -> list[list[BlockKey]]:
    """Blocks of all stores, packed in order into units of at most ``block_tokens`` tokens.

    Every SAE is read once per unit, so the small last blocks of several stores share a reading. A
    store's blocks are the same whether it is extracted alone or with others.
    """
    units: list[list[BlockKey]] = []
    total = 0
    for number, task in enumerate(run.tasks):
        for block in range(len(task.blocks)):
            tokens = task.n_tokens(block)
            if not units or total + tokens > run.block_tokens:
                units.append([])
                total = 0
            units[-1].append((number, block))
            total += tokens
    return units


def share_of(run: Extraction, unit: int, n_units: int) -> tuple[int, int] | None:
    """This process's part in a unit: (its place, number of processes in it), None for no part.

    With at least as many units as processes they take turns; with fewer, several processes share the
    SAEs of a unit. The first of them writes the hidden states.
    """
    if n_units >= run.world:
        return (0, 1) if unit % run.world == run.rank else None
    team = [rank for rank in range(run.world) if rank % n_units == unit]
    return (team.index(run.rank), len(team)) if run.rank in team else None
