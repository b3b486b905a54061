"""One input of a run: its sentences, its store's manifest, and what an earlier run left there."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import check_way, make_way, sha256_of_file
from pipeline_common.provenance import library_versions
from s0_dataset_generation.labelled_sentences import (
    SPLIT_SEED,
    LabelledSentences,
    Split,
    assign_split,
    read_labelled_sentences,
    read_unlabelled_sentences,
)
from s1_compute_all_features.feature_store import (
    MANIFEST,
    SENTENCES,
    BlockWriter,
    StoredSae,
    read_manifest,
    sae_as_json,
    sae_file_name,
    sink_files,
    write_manifest,
    write_sentences,
)
from s1_compute_all_features.language_model import LanguageModel
from s1_compute_all_features.sae_configurations import SaeConfigurations
from s1_compute_all_features.sae_weights import LocatedSae
from s1_compute_all_features.saes.sites import site_of
from s1_compute_all_features.store_sinks import SinksAskedFor, count_sinks, rule_of_store
from s1_compute_all_features.stored_tokens import refuse_other_tokens, special_tokens_found
from s1_compute_all_features.tokenised_sentences import TokenisedSentences
from s1_compute_all_features.work_plan import StoreTask, plan_blocks

TOKEN_BYTES = 40
"""Of tokens.npz per token, about: four numbers and the text."""

LIBRARIES = ("torch", "transformers", "sae-lens", "tokenizers", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Mode:
    """What may happen to a store that is already there.

    Attributes:
        resume: go on with an unfinished store of equal settings.
        extend: add SAEs or layers to a store, finished or not.
        verify: check every file against its checksum first, and compute damaged ones again.
        overwrite: delete it.
    """

    resume: bool = False
    extend: bool = False
    verify: bool = False
    overwrite: bool = False

    @property
    def continues(self) -> bool:
        """Whether an existing store is kept and completed."""
        return self.resume or self.extend or self.verify


@dataclass(frozen=True)
class InputData:
    """A CSV, checked and split, and the manifest that stands at its output, if it is to be kept."""

    data: LabelledSentences
    split: Split
    output: Path
    stored: dict[str, Any] | None


@dataclass(frozen=True)
class PreparedStore:
    """A store that is ready to be filled.

    Attributes:
        source: where its sentences come from.
        task: what has to be computed.
        manifest: what the finished store will say of itself, but for the checksums.
        complete: nothing has to be done.
    """

    source: InputData
    task: StoreTask
    manifest: dict[str, Any]
    complete: bool


def read_input(csv: Path, output: Path, limit: int | None, mode: Mode, unlabelled: bool) -> InputData:
    """Read and split a CSV, and look at what stands at its output.

    Args:
        csv: the input.
        output: the store's folder.
        limit: take only so many sentences.
        mode: what may happen to an existing store.
        unlabelled: read no labels; every sentence is then held out, in a group of its own.

    Raises:
        UserError: bad input, or something at the output that may not be replaced.
    """
    data = read_unlabelled_sentences(csv) if unlabelled else read_labelled_sentences(csv)
    if limit is not None:
        data = dataclasses.replace(
            data,
            sentences=data.sentences[:limit],
            labels=data.labels[:limit],
            further_columns={name: values[:limit] for name, values in data.further_columns.items()},
        )
        if not unlabelled and len(set(data.labels.tolist())) < 2:
            raise UserError(f"{csv}: the first {limit} sentences have one label only; raise --limit")
    stored = read_manifest(output) if mode.continues and (output / MANIFEST).exists() else None
    if stored is None:
        if (output / MANIFEST).exists() and not mode.overwrite:
            raise UserError(
                f"{output}: already holds a feature store; add --resume to go on with it, --overwrite to "
                "replace it, or choose another --output"
            )
        check_way(output, mode.overwrite, "feature store", MANIFEST)
    n_sentences = len(data.sentences)
    unsplit = Split(np.ones(n_sentences, dtype=bool), np.arange(n_sentences), [], SPLIT_SEED)
    return InputData(data, unsplit if unlabelled else assign_split(data), output, stored)


def stored_saes(saes: Sequence[LocatedSae], configurations: SaeConfigurations) -> list[StoredSae]:
    """What a manifest says of the SAEs."""
    return [
        StoredSae(
            name=located.entry.name,
            layer=located.entry.layer,
            average_l0=located.entry.average_l0,
            d_sae=located.spec.d_sae,
            hook=located.entry.hook,
            release=configurations.release,
            sae_id=located.entry.sae_id,
            neuronpedia_id=located.entry.neuronpedia_id,
            fingerprint=located.fingerprint,
        )
        for located in saes
    ]


def prepare_store(
    source: InputData,
    sentences: TokenisedSentences,
    model: LanguageModel,
    saes: Sequence[StoredSae],
    layers: Sequence[int],
    settings: dict[str, Any],
    sinks: SinksAskedFor,
    mode: Mode,
) -> PreparedStore:
    """Lay out a store's blocks and manifest, and hold them against the store that is there.

    Args:
        source: the input.
        sentences: its tokenised sentences.
        model: the language model.
        saes: the SAEs of this run.
        layers: hidden layers of this run.
        settings: everything else that decides the bytes of the store; ``block_tokens`` and
            ``hidden_states`` among it.
        sinks: what is done about attention sinks.
        mode: what may happen to an existing store.

    Raises:
        UserError: the store was made with other data or settings; the message names the difference.
    """
    blocks = plan_blocks([len(sentence.texts) for sentence in sentences], settings["block_tokens"])
    sae_entries = [sae_as_json(sae) for sae in saes]
    if mode.extend and source.stored is not None:
        sae_entries = _union(source.stored["saes"], sae_entries)
        layers = sorted({*source.stored["layers"], *layers})
    # One order, so that a store that was extended is the store that was made at once.
    sae_entries.sort(key=lambda entry: (entry["layer"], entry["average_l0"] or 0, entry["name"]))
    files = sink_files(layers, map(_name_and_sink_layer, sae_entries), settings["hidden_states"])
    task = StoreTask(
        folder=source.output,
        sentences=sentences,
        blocks=blocks,
        layers=layers,
        sae_names=[entry["name"] for entry in sae_entries],
        hidden_states=settings["hidden_states"],
        sinks=rule_of_store(source.output, source.stored, sinks, [*files]),
    )
    manifest = {
        "complete": False,
        "model": model.description,
        "saes": sae_entries,
        "layers": list(layers),
        "hidden_states": settings["hidden_states"],
        "input": {"file": source.data.path.name, "sha256": source.data.sha256},
        "settings": {name: value for name, value in settings.items() if name != "hidden_states"},
        "sinks": None if task.sinks is None else task.sinks.as_json(),
        "split": {
            "held_out": int(source.split.held_out.sum()),
            "seed": source.split.seed,
            "large_groups": [list(group) for group in source.split.large_groups],
        },
        "n_sentences": len(sentences),
        "n_tokens": sum(len(sentence.texts) for sentence in sentences),
        **special_tokens_found(sentences),
        "libraries": library_versions(LIBRARIES),
        "blocks": [
            {"n_sentences": len(block), "n_tokens": task.n_tokens(number)}
            for number, block in enumerate(blocks)
        ],
    }
    complete = False
    if source.stored is not None:
        _refuse_difference(source.stored, manifest, source.output, mode.extend)
        damaged = _remove_damaged(task, source.stored) if mode.verify else []
        grows = len(source.stored["saes"]) < len(sae_entries) or source.stored["layers"] != list(layers)
        gone = any(BlockWriter(task.folder, block).missing(task.file_names) for block in range(len(blocks)))
        complete = bool(source.stored["complete"]) and not (damaged or grows or gone)
        if not complete:
            refuse_other_tokens(task)
    return PreparedStore(source, task, manifest, complete)


def start_store(store: PreparedStore, overwrite: bool) -> None:
    """Write what a store begins with: its sentences, and a manifest that says it is not complete."""
    if store.source.stored is None:
        make_way(store.task.folder, overwrite, "feature store", MANIFEST)
    data, split = store.source.data, store.source.split
    columns: dict[str, Sequence[object]] = {
        "sentence_index": range(len(data.sentences)),
        "sentence": data.sentences,
        "concept_strength_label": data.labels.tolist() or [None] * len(data.sentences),
        "split": ["test" if held_out else "train" for held_out in split.held_out],
        "group": split.groups.tolist(),
        "n_tokens": [len(sentence.texts) for sentence in store.task.sentences],
    }
    for name, values in data.further_columns.items():
        while name in columns:  # the store's own, or one that was renamed already
            name = f"input_{name}"
        columns[name] = values
    # The manifest first: by it a folder is known for a store, so that a killed run can be resumed.
    write_manifest(store.task.folder, store.manifest)
    write_sentences(store.task.folder, columns)


def finish_store(store: PreparedStore) -> dict[str, Any]:
    """Close every block, and write and return the manifest that says the store is complete.

    Raises:
        UserError: a block lacks a file.
    """
    blocks = []
    for number, block in enumerate(store.manifest["blocks"]):
        writer = BlockWriter(store.task.folder, number)
        missing = writer.missing(store.task.file_names)
        if missing:
            raise UserError(
                f"{writer.folder / missing[0]}: missing; an SAE or layer that the store should hold is "
                "not in this run's configuration; run with the configuration that has it"
            )
        halved = {"batches_halved": True} if writer.batches_halved else {}
        blocks.append({**block, "sha256": writer.close(store.task.file_names), **halved})
    closing = {
        "complete": True,
        "blocks": blocks,
        "sentences_sha256": sha256_of_file(store.task.folder / SENTENCES),
    }
    if store.task.sinks is not None:
        saes = map(_name_and_sink_layer, store.manifest["saes"])
        files = sink_files(store.task.layers, saes, store.task.hidden_states)
        closing["sinks"] = store.task.sinks.as_json()  # those of the first block came on the way
        closing["sinks_found"] = count_sinks(store.task.folder, len(blocks), files)
    manifest = {**store.manifest, **closing}
    write_manifest(store.task.folder, manifest, seal=True)
    return manifest


def _name_and_sink_layer(entry: dict[str, Any]) -> tuple[str, int]:
    """An SAE's name and the layer whose sinks it leaves out, from its entry of a manifest."""
    return entry["name"], site_of(entry["hook"]).sink_layer


def bytes_to_write(store: PreparedStore) -> int:
    """About how many bytes the missing files will have: float16 states and 6 bytes per active latent."""
    l0 = {sae_file_name(sae["name"]): sae["average_l0"] or 100 for sae in store.manifest["saes"]}
    width = {sae_file_name(sae["name"]): sae["d_sae"] for sae in store.manifest["saes"]}
    state_bytes = 2 * store.manifest["model"]["d_model"]
    total = 0
    for number, block in enumerate(store.manifest["blocks"]):
        tokens, sentences = block["n_tokens"], block["n_sentences"]
        vectors = 4 * sentences if store.manifest["hidden_states"] == "pooled" else tokens
        for name in BlockWriter(store.task.folder, number).missing(store.task.file_names):
            if name in l0:
                total += round(tokens * l0[name] * 6) + (4 * width[name] if number == 0 else 0)
            else:
                total += tokens * TOKEN_BYTES if name == "tokens.npz" else vectors * state_bytes
    return total


def check_room(stores: Sequence[PreparedStore]) -> tuple[int, int]:
    """Bytes to write in all, and free bytes on the fullest of the disks they go to.

    Raises:
        UserError: a disk has less than what is to be written to it.
    """
    wanted: dict[int, list[PreparedStore]] = {}
    for store in stores:
        wanted.setdefault(_existing(store.task.folder).stat().st_dev, []).append(store)
    total, least = 0, None
    for there in wanted.values():
        n_bytes = sum(bytes_to_write(store) for store in there)
        free = shutil.disk_usage(_existing(there[0].task.folder)).free
        if n_bytes > free:
            raise UserError(
                f"{', '.join(str(store.task.folder) for store in there)}: about {n_bytes / 1e9:.1f} GB to "
                f"write, {free / 1e9:.1f} GB free; make room, choose another --output, or store less "
                "(--hidden-states pooled, --tokens final)"
            )
        total, least = total + n_bytes, min(free, free if least is None else least)
    return total, least or 0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def differences(stored: Any, wanted: Any, at: str = "") -> Iterator[str]:
    """Where two manifests differ, e.g. ``settings.block_tokens: the store has 4096, this run 8192``."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in {**stored, **wanted}:
            yield from differences(stored.get(key), wanted.get(key), f"{at}.{key}" if at else key)
    elif isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        for index, (one, other) in enumerate(zip(stored, wanted, strict=True)):
            yield from differences(one, other, f"{at}[{index}]")
    elif stored != wanted:
        lists = isinstance(stored, list) and isinstance(wanted, list)
        have, want = (len(stored), len(wanted)) if lists else (stored, wanted)
        yield f"{at}: the store has {have}{' entries' if lists else ''}, this run {want}"


def _refuse_difference(stored: dict[str, Any], wanted: dict[str, Any], output: Path, extend: bool) -> None:
    closing = {"complete", "blocks", "sentences_sha256", "sinks_found", "sha256"}
    # About sinks `rule_of_store` has said what there is to say.
    ignored = {"format", "format_version", "sinks", *closing, *(("saes", "layers") if extend else ())}
    # Stores of before say whether their model was a toy; no model is one any more.
    model = {key: value for key, value in stored["model"].items() if key != "demonstration"}
    first = next(
        differences(
            {key: value for key, value in {**stored, "model": model}.items() if key not in ignored},
            {key: value for key, value in wanted.items() if key not in ignored},
        ),
        None,
    )
    for one, other in zip(stored["saes"], wanted["saes"], strict=False):
        if {**one, "fingerprint": ""} == {**other, "fingerprint": ""} and one != other:
            first = f"SAE {one['name']}: its weights or its cfg.json are not those that it was made with"
            break
    if first is not None:
        raise UserError(
            f"{output}: cannot go on with this store: {first}; use equal settings, --overwrite, or another "
            "--output"
        )


def _union(stored: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stored SAEs and the new ones; an SAE of both must be the same one."""
    by_name = {entry["name"]: entry for entry in stored}
    for entry in wanted:
        known = by_name.setdefault(entry["name"], entry)
        first = next(differences(known, entry, f"SAE {entry['name']}"), None)
        if first is not None:
            raise UserError(
                f"cannot extend: {first}; an SAE of this name is stored, but its weights or its cfg.json are "
                "not those that it was made with"
            )
    return list(by_name.values())


def _remove_damaged(task: StoreTask, stored: dict[str, Any]) -> list[str]:
    """Delete what is not as the manifest and the checksums say; returns the names."""
    damaged = []
    for number, block in enumerate(stored["blocks"]):
        writer = BlockWriter(task.folder, number)
        damaged += [f"{writer.folder.name}/{name}" for name in writer.remove_damaged(block.get("sha256"))]
    expected, sentences = stored.get("sentences_sha256"), task.folder / SENTENCES
    if expected and not (sentences.is_file() and sha256_of_file(sentences) == expected):
        damaged.append(SENTENCES)  # written anew in any case
    return damaged
