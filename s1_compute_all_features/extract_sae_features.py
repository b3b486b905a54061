"""Compute embeddings, every layer's hidden states and every SAE's activations for a labelled CSV."""

import argparse
import logging
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    positive_int,
    settings_line,
)
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import check_way, make_way, write_json
from pipeline_common.provenance import library_versions
from s0_dataset_generation.labelled_sentences import (
    LabelledSentences,
    Split,
    assign_split,
    read_labelled_sentences,
)
from s1_compute_all_features.extraction import Extraction, Timings, differences, plan_blocks, run_blocks
from s1_compute_all_features.feature_store import (
    MANIFEST,
    SENTENCE_COLUMNS,
    StoredSae,
    read_manifest,
    sae_as_json,
    write_manifest,
    write_sentences,
)
from s1_compute_all_features.sae_configurations import GEMMA_SCOPE, SaeConfigurations, read_sae_configurations

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "sae-lens", "tokenizers", "numpy", "scikit-learn")


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Compute embeddings, hidden states and SAE activations for every token of a "
        "labelled CSV,\n"
        "with one forward pass per batch for all layers and SAEs, and assign the 80/20 split.\n\n"
        "  uv run python extract_sae_features.py \\\n"
        "      --input ../s0_dataset_generation/expanded_data/dishonesty.csv --output "
        "./dishonesty_features\n\n"
        "Without --config this means Gemma-2-2B and its 135 Gemma Scope SAEs (weights from the Hugging "
        "Face hub).\n"
        "On a laptop: --config gpt2_small_configurations.json, or the demonstration model of "
        "build_demo_model.py.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="labelled CSV (sentence,concept_strength_label)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the feature store to write")
    parser.add_argument("--config", type=Path, default=GEMMA_SCOPE, help="SAE configuration file")
    parser.add_argument("--sae-root", type=Path, help="local folder with the SAE weights, instead of the hub")
    parser.add_argument(
        "--resume", action="store_true", help="go on with an unfinished store, made with equal settings"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete what stands at --output first")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="where to compute"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="precision of the model",
    )
    parser.add_argument("--batch-tokens", type=positive_int, default=4096, help="positions per forward pass")
    parser.add_argument(
        "--block-tokens", type=positive_int, default=16384, help="tokens held in memory at a time"
    )
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: what torch chooses)")
    return parser


@dataclass(frozen=True)
class _Plan:
    """A run, ready to start, and the manifest that it will leave."""

    run: Extraction
    manifest: dict[str, Any]


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Extract; exit code 0 done, 1 the data or the run failed, 2 wrong usage."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.resume and arguments.overwrite:
        parser.error("--resume and --overwrite exclude each other: go on with the store, or delete it")
    configure_logging("s1_compute_all_features")
    watch = Stopwatch()
    data = read_labelled_sentences(arguments.input)
    configurations = read_sae_configurations(arguments.config)
    resuming = arguments.resume and (arguments.output / MANIFEST).exists()
    stored = read_manifest(arguments.output) if resuming else None
    if stored is None:
        _check_way_for_store(arguments.output, arguments.overwrite)
    split = assign_split(data)
    plan = _plan(arguments, data, split, configurations)
    logger.info(settings_line(arguments))
    if stored is not None and _already_complete(stored, plan.manifest, arguments.output):
        print(f"{arguments.output}: already complete, nothing to do")
        return 0
    _announce(plan, data, split)
    if stored is None:
        make_way(arguments.output, arguments.overwrite, "feature store", MANIFEST)
    _remove_temporary_files(arguments.output)
    _write_sentence_table(arguments.output, data, split, plan.run)
    write_manifest(arguments.output, plan.manifest)
    mean_l0, timings = _extract(plan)
    seconds = watch.seconds
    write_json(
        arguments.output / "run_log.json",
        {
            "seconds": {**timings.seconds, "total": seconds},
            "host": {"machine": platform.machine(), "system": platform.system()},
            "mean_l0_measured_in_this_run": mean_l0,
        },
    )
    _report(plan, mean_l0, timings, seconds)
    return 0


def _check_way_for_store(output: Path, overwrite: bool) -> None:
    if (output / MANIFEST).exists() and not overwrite:
        raise UserError(
            f"{output}: already holds a feature store; add --resume to go on with it, --overwrite to "
            "replace it, "
            "or choose another --output"
        )
    check_way(output, overwrite, "feature store", MANIFEST)


def _plan(
    arguments: argparse.Namespace, data: LabelledSentences, split: Split, configurations: SaeConfigurations
) -> _Plan:
    """Load the model, find the SAEs, tokenise, and lay out the blocks."""
    import torch

    from s1_compute_all_features.language_model import load_language_model, tokenise
    from s1_compute_all_features.sae_weights import locate_sae, sae_width

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = _resolve_device(arguments.device)
    folder = arguments.config.resolve().parent
    model = load_language_model(configurations.model, folder, device, arguments.dtype)
    saes = [locate_sae(configurations, entry, folder, arguments.sae_root) for entry in configurations.saes]
    for located in saes:
        if located.entry.input_layer >= model.n_layers:
            raise UserError(
                f"SAE {located.entry.name} reads {located.entry.hook}, the model "
                f"{configurations.model.id} has "
                f"{model.n_layers} layers"
            )
    sentences = tokenise(model, data.sentences, configurations.model.prepend_bos)
    run = Extraction(
        store=arguments.output,
        model=model,
        configurations=configurations,
        saes=saes,
        sentences=sentences,
        blocks=plan_blocks([len(sentence.texts) for sentence in sentences], arguments.block_tokens),
        batch_tokens=arguments.batch_tokens,
        device=device,
    )
    stored_saes = [
        StoredSae(
            name=located.entry.name,
            layer=located.entry.layer,
            average_l0=located.entry.average_l0,
            d_sae=sae_width(located, configurations),
            hook=located.entry.hook,
            release=configurations.release,
            sae_id=located.entry.sae_id,
            neuronpedia_id=located.entry.neuronpedia_id,
            fingerprint=located.fingerprint,
        )
        for located in saes
    ]
    return _Plan(
        run,
        {
            "complete": False,
            "model": model.description,
            "saes": [sae_as_json(sae) for sae in stored_saes],
            "layers": run.layers,
            "input": {"file": data.path.name, "sha256": data.sha256},
            "split": {
                "held_out": int(split.held_out.sum()),
                "seed": split.seed,
                "large_groups": split.large_groups,
            },
            "settings": {
                "batch_tokens": arguments.batch_tokens,
                "block_tokens": arguments.block_tokens,
                "device": device,
                "threads": torch.get_num_threads(),
            },
            "n_sentences": len(sentences),
            "n_tokens": sum(len(sentence.texts) for sentence in sentences),
            "libraries": library_versions(LIBRARIES),
            "blocks": [{"n_sentences": len(block), "n_tokens": run.n_tokens(block)} for block in run.blocks],
        },
    )


def _resolve_device(name: str) -> str:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"--device {name}: this machine has none that torch can use; choose cpu")
    return name


def _already_complete(stored: dict[str, Any], wanted: dict[str, Any], output: Path) -> bool:
    """Whether the store is finished; refuses a store that was made with other settings."""
    own = {key: value for key, value in stored.items() if key not in ("format", "format_version")}
    blocks = [{key: block[key] for key in ("n_sentences", "n_tokens")} for block in own.get("blocks", [])]
    first = next(differences({**own, "complete": False, "blocks": blocks}, wanted), None)
    if first is not None:
        raise UserError(
            f"{output}: cannot go on with this store: {first}; use equal settings, --overwrite, or "
            "another --output"
        )
    return bool(own["complete"])


def _announce(plan: _Plan, data: LabelledSentences, split: Split) -> None:
    manifest, run = plan.manifest, plan.run
    n_tokens, model = manifest["n_tokens"], manifest["model"]
    dense_bytes = n_tokens * (len(run.layers) + 1) * model["d_model"] * 2
    sparse_bytes = sum(n_tokens * (located.entry.average_l0 or 100) * 6 for located in run.saes)
    free_bytes = shutil.disk_usage(_existing_parent(run.store)).free
    logger.info(
        "%d sentences (%d held out), %d tokens, %d layers, %d SAEs; about %.2f GB to write, %.1f GB free",
        len(data.sentences),
        split.held_out.sum(),
        n_tokens,
        len(run.layers),
        len(run.saes),
        (dense_bytes + sparse_bytes) / 1e9,
        free_bytes / 1e9,
    )
    if dense_bytes + sparse_bytes > free_bytes:
        raise UserError(
            f"{run.store}: about {(dense_bytes + sparse_bytes) / 1e9:.1f} GB to write, "
            f"{free_bytes / 1e9:.1f} GB free; "
            "make room or choose another --output"
        )
    if model["demonstration"]:
        logger.info(
            "DEMONSTRATION MODEL: it shows the mechanics; what it finds says nothing about real models"
        )
    for group, size in split.large_groups:
        share = size / len(data.sentences)
        logger.warning(
            "warning: %d near-duplicate sentences (%.0f%%) form group %d; audit_dataset.py lists them",
            size,
            100 * share,
            group,
        )


def _existing_parent(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def _remove_temporary_files(store: Path) -> None:
    """What a killed run left half-written bears a temporary name."""
    for path in store.glob("**/.*.tmp*"):
        path.unlink()


def _write_sentence_table(store: Path, data: LabelledSentences, split: Split, run: Extraction) -> None:
    columns: dict[str, Sequence[object]] = {
        "sentence_index": range(len(data.sentences)),
        "sentence": data.sentences,
        "concept_strength_label": data.labels.tolist(),
        "split": ["test" if held_out else "train" for held_out in split.held_out],
        "group": split.groups.tolist(),
        "n_tokens": [len(sentence.texts) for sentence in run.sentences],
    }
    for name, values in data.further_columns.items():
        columns[f"input_{name}" if name in SENTENCE_COLUMNS else name] = values
    write_sentences(store, columns)


def _extract(plan: _Plan) -> tuple[dict[str, float], Timings]:
    from tqdm import tqdm

    total = plan.manifest["n_tokens"] * (1 + len(plan.run.saes))
    with tqdm(total=total, unit="token", unit_scale=True, desc="model and SAEs") as bar:
        digests, timings, mean_l0 = run_blocks(plan.run, bar.update)
    blocks = [
        {**block, "sha256": digest} for block, digest in zip(plan.manifest["blocks"], digests, strict=True)
    ]
    write_manifest(plan.run.store, {**plan.manifest, "complete": True, "blocks": blocks})
    return mean_l0, timings


def _report(plan: _Plan, mean_l0: dict[str, float], timings: Timings, seconds: float) -> None:
    for located in plan.run.saes:
        published, measured = located.entry.average_l0, mean_l0.get(located.entry.name)
        if published and measured is not None and not 0.5 <= measured / published <= 2:
            logger.warning(
                "warning: SAE %s has l0 %.1f here, %d published: a factor over 2 is the sign of a "
                "wrong hook, or of "
                "text unlike its training text",
                located.entry.name,
                measured,
                published,
            )
    n_bytes = sum(path.stat().st_size for path in plan.run.store.glob("**/*") if path.is_file())
    parts = ", ".join(f"{phase} {value:.1f} s" for phase, value in timings.seconds.items())
    logger.info("where the time went: %s, in all %.1f s", parts, seconds)
    print(
        f"{plan.run.store}: {plan.manifest['n_sentences']} sentences, {plan.manifest['n_tokens']} tokens, "
        f"{len(plan.run.saes)} SAEs, {n_bytes / 1e6:.1f} MB in {seconds:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
