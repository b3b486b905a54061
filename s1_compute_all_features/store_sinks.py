"""What decides on a store's attention sinks, how many it has, and how a run tells of them (NumPy only)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, read_npz
from pipeline_common.json_shape import check_shape
from s1_compute_all_features.attention_sinks import SINKS_SHAPE, SinkRule
from s1_compute_all_features.store_layout import MANIFEST, SINKS, block_folder, read_manifest

logger = logging.getLogger(__name__)

MANY_SENTENCES = 0.05
"""Share of the sentences whose first token is a sink, above which the run advises a BOS token."""
MOST_RUNS = 5
"""Runs of layers that are told one by one; with more of them the smallest and largest count stand for all."""


@dataclass(frozen=True)
class SinksAskedFor:
    """What the command line says of sinks.

    Attributes:
        keep: they count as any other token, and nobody looks for them.
        like: the medians of another store; None where a store has its own.
        source: where ``like`` comes from, for messages.
    """

    keep: bool = False
    like: SinkRule | None = None
    source: str = ""


def sinks_like(path: Path) -> SinksAskedFor:
    """To treat sinks as another store does.

    Args:
        path: the store, or a JSON file with the entry ``sinks`` of its manifest.

    Raises:
        UserError: it is neither.
    """
    if path.is_dir():
        entry, file = read_manifest(path).get("sinks"), path / MANIFEST
    else:
        entry, file = read_json(path, "feature store or JSON file of its sinks"), path
        check_shape(file, entry, SINKS_SHAPE, "give the store itself, or the entry sinks of its manifest")
    return SinksAskedFor(entry is None, None if entry is None else _rule(file, entry), str(path))


def rule_of_store(
    output: Path, stored: Mapping[str, Any] | None, asked: SinksAskedFor, layers: Sequence[int]
) -> SinkRule | None:
    """What decides on the sinks of a store: the medians that it has, then those asked for.

    Args:
        output: the store's folder, for messages.
        stored: the manifest that stands there and is to be gone on with.
        asked: by the command line.
        layers: of which the finished store tells the sinks.

    Returns:
        None where sinks are kept. A layer without a median gets it when the first block is computed.

    Raises:
        UserError: the store was begun otherwise, or a median is missing that was to be taken from elsewhere.
    """
    known = {} if stored is None else _known(output, stored, asked)
    if asked.keep:
        return None
    if asked.like is None:
        return SinkRule(median_norms=known)
    missing = asked.like.lacking(layers)
    if missing:
        there = ", ".join(map(str, sorted(asked.like.median_norms))) or "none"
        raise UserError(
            f"{asked.source}: no median norm of layer {missing[0]}, there are those of {there}; extract "
            "fewer layers, or without --sinks-like"
        )
    medians = {layer: asked.like.median_norms[layer] for layer in layers}
    other = [layer for layer in medians if known.get(layer, medians[layer]) != medians[layer]]
    if other:
        raise UserError(
            f"{output}: cannot go on with this store: its median norm of layer {other[0]} is "
            f"{known[other[0]]:.6g}, that of {asked.source} {medians[other[0]]:.6g}; use equal settings, "
            "--overwrite, or another --output"
        )
    return SinkRule(asked.like.factor, {**known, **medians})


def _known(output: Path, stored: Mapping[str, Any], asked: SinksAskedFor) -> dict[int, float]:
    """The medians of a store that is to be gone on with."""
    entry = stored.get("sinks")
    if asked.keep != (entry is None):
        raise UserError(
            f"{output}: cannot go on with this store: it was made "
            + (
                f"without a look for attention sinks (format {stored['format_version']}); add --keep-sinks"
                if entry is None
                else "with attention sinks left out; run without --keep-sinks"
            )
            + ", use --overwrite, or another --output"
        )
    if entry is None:
        return {}
    rule = _rule(output / MANIFEST, entry)
    wanted = SinkRule() if asked.like is None else asked.like
    if rule.factor != wanted.factor:
        raise UserError(
            f"{output}: cannot go on with this store: its sinks are above {rule.factor:g} times the median, "
            f"this run's above {wanted.factor:g}; use --overwrite, or another --output"
        )
    return rule.median_norms


def _rule(path: Path, entry: Mapping[str, Any]) -> SinkRule:
    try:
        return SinkRule.from_json(entry)
    except ValueError as error:
        raise UserError(f"{path}: sinks: {error}; make the store again") from None


def count_sinks(store: Path, n_blocks: int, files: Mapping[int, str]) -> dict[str, dict[str, int]]:
    """How many sinks each layer has, for the manifest; layers without any are left out.

    Args:
        store: a folder in which every block is complete.
        n_blocks: in it.
        files: layer to the file of every block that tells its sinks.

    Returns:
        Layer to ``n_tokens``, and ``n_first_tokens``: how many of them stand first in their sentence.
    """
    counts = {layer: np.zeros(2, dtype=np.int64) for layer in files}
    for block in range(n_blocks):
        folder = block_folder(store, block)
        position = read_npz(folder / "tokens.npz", ("position",), "feature store file")["position"]
        for layer, name in files.items():
            places = read_npz(folder / name, (SINKS,), "feature store file")[SINKS]
            counts[layer] += (len(places), int((position[places] == 0).sum()))
    return {
        str(layer): {"n_tokens": int(n_tokens), "n_first_tokens": int(n_first)}
        for layer, (n_tokens, n_first) in counts.items()
        if n_tokens
    }


def log_sinks(name: str, manifest: Mapping[str, Any]) -> None:
    """Say how many sinks a finished store of this name has and where, and what to do about them."""
    if manifest["sinks"] is None:
        return
    logger.info("%s: %s", name, sink_line(manifest))
    if text := advice(manifest):
        logger.warning("note: %s: %s", name, text)


def sink_line(manifest: Mapping[str, Any]) -> str:
    """How many sinks a finished store has and where, in a line."""
    found: dict[str, dict[str, int]] = manifest["sinks_found"]
    n_layers = len(manifest["sinks"]["median_norms"])
    if not found:
        return f"sinks: none at any of {n_layers} layers"
    total, runs = manifest["n_tokens"], _runs(found)
    if len(runs) <= MOST_RUNS:
        return "sinks: " + "; ".join(
            f"{_layers(first, last)}: {n_tokens:,} of {total:,} tokens, {_place(n_tokens, n_first)}"
            for first, last, (n_tokens, n_first) in runs
        )
    sizes = [n_tokens for _, _, (n_tokens, _) in runs]
    in_all, n_first = np.array([list(counts.values()) for counts in found.values()]).sum(axis=0)
    return (
        f"sinks: at {len(found)} of {n_layers} layers, {_layers(runs[0][0], runs[-1][1])}: {min(sizes):,} to "
        f"{max(sizes):,} of {total:,} tokens, {_place(in_all, n_first)}"
    )


def _runs(found: Mapping[str, Mapping[str, int]]) -> list[tuple[int, int, tuple[int, int]]]:
    """Neighbouring layers of equal counts as one: first layer, last layer, (tokens, first tokens)."""
    runs: list[tuple[int, int, tuple[int, int]]] = []
    for layer in sorted(map(int, found)):
        counts = (found[str(layer)]["n_tokens"], found[str(layer)]["n_first_tokens"])
        if runs and runs[-1][1:] == (layer - 1, counts):
            runs[-1] = (runs[-1][0], layer, counts)
        else:
            runs.append((layer, layer, counts))
    return runs


def _layers(first: int, last: int) -> str:
    if first == last:
        return f"layer {first}" if first >= 0 else "input of layer 0"
    return f"layers {first} to {last}"


def _place(n_tokens: int, n_first: int) -> str:
    return "all at position 0" if n_first == n_tokens else f"{n_first:,} at position 0"


def advice(manifest: Mapping[str, Any]) -> str:
    """What to do where the model has a sink on the first word of many sentences; empty where it has not."""
    found = manifest.get("sinks_found") or {}
    if manifest["model"].get("prepend_bos") is not False or not found:
        return ""
    layer, most = max(found.items(), key=lambda one: one[1]["n_first_tokens"])
    if most["n_first_tokens"] <= MANY_SENTENCES * manifest["n_sentences"]:
        return ""
    return (
        f"in {most['n_first_tokens']:,} of {manifest['n_sentences']:,} sentences the first token is an "
        f'attention sink (layer {layer}) and left out; with "prepend_bos": true in the configuration it is '
        "the BOS token, which is not stored, and no word is lost. Use that, unless the SAEs were trained "
        "without a BOS token or the tokenizer has none"
    )
