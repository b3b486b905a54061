"""Does memory stay flat and time linear as the sentences grow in number? And what would a million cost?

Synthetic sentences of words drawn at random go through the real scripts: the split, stage 1 (a tiny Gemma-2
of random weights, four SAEs), the ranking of stage 2, two datasets of stage 4, report and plots of stage 3.
Every script runs in a process of its own with one thread or worker, once for each number of sentences; what
is shown is the peak resident memory of that process, its seconds by the clock and of the processor (which
other work on the machine disturbs less), and the bytes that it wrote. Then what one sentence more costs,
from each size to the next: equal seconds mean linear time, and few bytes mean flat memory.

Last, an extrapolation to 1,000,000 sentences and the 135 SAEs of Gemma-2-2B. Bytes follow from the format,
whose sizes are checked against the store that was just written. Hours rest on assumptions, all of them
printed: no GPU was there to measure.

  uv run python benchmarks/bench_scale.py --quick --json scale.json
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.scale_extrapolation import extrapolation, sae_bytes_per_token, state_bytes_per_vector
from pipeline_common.command_line import HelpFormatter
from pipeline_common.errors import exit_codes
from pipeline_common.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
SIZES, QUICK_SIZES = (5_000, 20_000, 100_000), (500, 2_000)
SEED = 0
N_WORDS, N_CALIBRATION = 20_000, 200
VOCABULARY, N_LAYERS, D_MODEL, D_SAE, L0S = 4_000, 2, 32, 1_024, (8, 24)
MEASURED = """
import importlib, sys
module, function = sys.argv[1].split(":")
code = getattr(importlib.import_module(module), function)(sys.argv[2:])
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
raise SystemExit(code)
"""
"""A script's main, and after it a line with the peak resident bytes of its process (Linux)."""


@dataclass(frozen=True)
class Figures:
    """What one script took.

    Attributes:
        seconds: wall clock, the start of Python and the imports included.
        cpu_seconds: of the processor, on all cores together.
        peak_bytes: largest resident size of its process.
        written_bytes: of its output.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    written_bytes: int


def invented_words(n: int, rng: np.random.Generator) -> np.ndarray:
    """Up to n distinct words of one to four syllables, shorter ones first as in a language."""
    syllables = np.array([a + b + c for a in "bcdfghjklmnprstvwz" for b in "aeiou" for c in ("", *"nrsl")])
    words = ["".join(rng.choice(syllables, 1 + place * 4 // n)) for place in range(n)]
    return np.array(list(dict.fromkeys(words)))


def write_sentences(path: Path, n_sentences: int) -> None:
    """A labelled CSV of 6 to 18 words a sentence, frequent and rare ones as in a language (Zipf's law).

    Half of the words of the label's own among them, so that there is something to rank: without it every
    feature would stand at chance.
    """
    rng = np.random.default_rng(SEED)
    words = invented_words(N_WORDS, rng)
    chance = 1 / (np.arange(len(words)) + 2.7)
    chance /= chance.sum()
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("sentence", "concept_strength_label"))
        for _ in range(n_sentences):
            label = int(rng.integers(4))
            drawn = rng.choice(words, size=rng.integers(6, 19), p=chance)
            writer.writerow((" ".join([*drawn, *["zorvel"] * label]).capitalize() + ".", label))


def write_model(folder: Path, sentences: Sequence[str]) -> Path:
    """A tiny Gemma-2 of random weights with SAEs of about `L0S` active latents; returns the configuration."""
    import torch
    from transformers import Gemma2Config, Gemma2Model

    from s1_compute_all_features.language_model import forward_states, load_language_model
    from s1_compute_all_features.sae_configurations import ModelEntry, SaeConfigurations, SaeEntry
    from s1_compute_all_features.tokenisation import tokenise

    torch.manual_seed(SEED)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=2 * D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=D_MODEL // 2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    Gemma2Model(config).save_pretrained(folder / "model")
    tokenizer(sentences).save_pretrained(folder / "model")
    entry = ModelEntry(id="model")
    model = load_language_model(entry, folder, "cpu", "float32")
    states = forward_states(model, tokenise(model, sentences[:N_CALIBRATION], True), range(N_LAYERS))
    entries = []
    for layer in range(N_LAYERS):
        W_enc = np.random.default_rng(layer).normal(size=(D_MODEL, D_SAE)).astype(np.float32)
        products = states[layer].numpy() @ W_enc
        for l0 in L0S:
            path = f"layer_{layer}/width_{D_SAE}/average_l0_{l0}"
            (folder / "saes" / path).mkdir(parents=True)
            np.savez(
                folder / "saes" / path / "params.npz",
                W_enc=W_enc,
                W_dec=W_enc.T,
                b_enc=np.zeros(D_SAE, dtype=np.float32),
                b_dec=np.zeros(D_MODEL, dtype=np.float32),
                threshold=np.quantile(products, 1 - l0 / D_SAE, axis=0).clip(0).astype(np.float32),
            )
            entries.append(
                SaeEntry(
                    name=f"layer_{layer:02d}_l0_{l0}",
                    layer=layer,
                    average_l0=l0,
                    hook=f"blocks.{layer}.hook_resid_post",
                    sae_id=path,
                    path=path,
                    neuronpedia_id="",
                )
            )
    configurations = SaeConfigurations(
        format_version=1,
        description="random weights, to measure with",
        model=entry,
        release="",
        repo_id="",
        sae_root="saes",
        weights_format="gemma_scope",
        saes=tuple(entries),
    )
    write_json(folder / "configurations.json", configurations.model_dump())
    return folder / "configurations.json"


def tokenizer(sentences: Sequence[str]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of these sentences that puts a BOS token in front."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>"]
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    bpe.train_from_iterator(sentences, vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    bpe.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = dict(zip(("pad_token", "eos_token", "bos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **names)


def assign(argv: Sequence[str]) -> int:
    """Read a CSV and split it, as stage 1 does before anything else."""
    from s0_dataset_generation.labelled_sentences import assign_split, read_labelled_sentences

    assign_split(read_labelled_sentences(Path(argv[0])))
    return 0


def stages(folder: Path, configuration: Path) -> dict[str, tuple[str, list[str], str]]:
    """Name to script, arguments and output, in the order of the pipeline."""
    store, results = str(folder / "store"), str(folder / "results")
    both = ["--s1-data", store, "--s2-results", results]
    ranked = str(folder / "results" / "ranked_features.csv")
    s4 = "s4_classifier_data_prep.generate_datasets:main"

    def with_output(arguments: list[str], name: str) -> tuple[list[str], str]:
        return [*arguments, "--output", str(folder / name)], name

    csv_file = str(folder / "sentences.csv")
    s1 = ["--config", str(configuration), "--input", csv_file, "--threads", "1"]
    return {
        "s1: split alone": ("benchmarks.bench_scale:assign", [csv_file], ""),
        "s1: extract": ("s1_compute_all_features.extract_sae_features:main", *with_output(s1, "store")),
        "s2: rank": (
            "s2_find_top_features.analyze_features:main",
            *with_output(["--input", store, "--workers", "1"], "results"),
        ),
        "s3: report": ("s3_feature_activation_graphs.build_report:main", *with_output(both, "report.html")),
        "s3: plots": (
            "s3_feature_activation_graphs.visualize_activations:main",
            *with_output([*both, "--max-sentences", "8", "--workers", "1"], "plots"),
        ),
        "s4: hidden states": (
            s4,
            *with_output(
                ["--strategy", "hidden-to-concept", "--layers", "0-1", "--input", store], "hidden.npz"
            ),
        ),
        "s4: top features": (
            s4,
            *with_output(["--strategy", "sae-to-concept", "--features", ranked, "--input", store], "sae.npz"),
        ),
    }


def run(script: str, arguments: Sequence[str], output: Path | None) -> Figures:
    """Run a script in a process of its own, which reads its own mark of memory when it is done."""
    start, cpu_before = time.perf_counter(), cpu_of_children()
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, script, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if ran.returncode:
        raise SystemExit(f"{script} failed:\n{ran.stderr}")
    files = [] if output is None else [path for path in (output, *output.rglob("*")) if path.is_file()]
    written = sum(path.stat().st_size for path in files)
    return Figures(seconds, cpu_of_children() - cpu_before, int(ran.stdout.splitlines()[-1]), written)


def cpu_of_children() -> float:
    """Processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(folder: Path, sizes: Sequence[int]) -> tuple[dict[str, dict[int, Figures]], dict[str, Any]]:
    """All stages at all sizes; and of the largest store its manifest, run log, and bytes by kind of file."""
    figures: dict[str, dict[int, Figures]] = {}
    configuration = None
    for n_sentences in sizes:
        place = folder / str(n_sentences)
        place.mkdir()
        write_sentences(place / "sentences.csv", n_sentences)
        if configuration is None:
            with (place / "sentences.csv").open(encoding="utf-8") as handle:
                configuration = write_model(folder, [row["sentence"] for row in csv.DictReader(handle)])
        for name, (script, arguments, output) in stages(place, configuration).items():
            taken = run(script, arguments, place / output if output else None)
            figures.setdefault(name, {})[n_sentences] = taken
            print(
                f"{n_sentences:>9,}  {name:<18}{taken.seconds:>8.1f} s {taken.peak_bytes / 2**20:>8.0f} MiB",
                file=sys.stderr,
            )
    store = place / "store"
    details = {
        "manifest": read_json(store / "manifest.json", "manifest"),
        "seconds": read_json(store / "run_log.json", "run log")["seconds"],
        "mean_l0": read_json(store / "run_log.json", "run log")["mean_l0_measured"],
        "state_bytes": sum(
            path.stat().st_size
            for pattern in ("hidden_layer_*.npz", "embeddings.npz")
            for path in store.rglob(pattern)
        ),
        "sae_bytes": sum(path.stat().st_size for path in store.rglob("sae_*.npz")),
    }
    return figures, details


def table(figures: dict[str, dict[int, Figures]]) -> str:
    """Seconds, memory and bytes by size; then what a sentence more takes, from each size to the next."""
    sizes = list(next(iter(figures.values())))
    lines = [f"{'':<18}" + "".join(f"{f'{n:,} sentences':>34}" for n in sizes)]
    lines.append(f"{'':<18}" + f"{'s':>8}{'CPU s':>8}{'peak MiB':>9}{'MB out':>9}" * len(sizes))
    for name, of_size in figures.items():
        cells = [
            f"{one.seconds:>8.1f}{one.cpu_seconds:>8.1f}{one.peak_bytes / 2**20:>9.0f}"
            f"{one.written_bytes / 1e6:>9.1f}"
            for one in of_size.values()
        ]
        lines.append(f"{name:<18}" + "".join(cells))
    steps = list(pairwise(sizes))
    lines += ["", "a sentence more".ljust(18) + "".join(f"{f'{a:,} to {b:,}':>28}" for a, b in steps)]
    lines.append(f"{'':<18}" + f"{'CPU ms':>14}{'peak KiB':>14}" * len(steps))
    for name, per_step in marginal(figures).items():
        lines.append(
            f"{name:<18}" + "".join(f"{1e3 * seconds:>14.2f}{n / 1024:>14.2f}" for seconds, n in per_step)
        )
    return "\n".join(lines)


def marginal(figures: dict[str, dict[int, Figures]]) -> dict[str, list[tuple[float, float]]]:
    """Processor seconds and peak bytes of one sentence more, from each size to the next, by stage."""
    return {
        name: [
            ((two.cpu_seconds - one.cpu_seconds) / (b - a), (two.peak_bytes - one.peak_bytes) / (b - a))
            for (a, one), (b, two) in pairwise(of_size.items())
        ]
        for name, of_size in figures.items()
    }


def check_format(details: dict[str, Any]) -> dict[str, float]:
    """Bytes of the store over what the format's arithmetic says; the rest of a file is a header.

    Raises:
        AssertionError: more than 5% off, so that an extrapolation by that arithmetic would mislead.
    """
    n_tokens = details["manifest"]["n_tokens"]
    states = n_tokens * (N_LAYERS + 1) * state_bytes_per_vector(D_MODEL)
    saes = n_tokens * sae_bytes_per_token(details["mean_l0"].values())
    ratios = {"states": details["state_bytes"] / states, "saes": details["sae_bytes"] / saes}
    assert all(0.95 < ratio < 1.05 for ratio in ratios.values()), ratios
    return ratios


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 and 2,000 sentences, a few minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, extrapolate."""
    arguments = build_parser().parse_args(argv)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load average at the start: {load}")
    with tempfile.TemporaryDirectory() as folder:
        figures, details = measure(Path(folder), sizes)
    print(table(figures))
    ratios = check_format(details)
    print(f"\nthe store's bytes over the format's arithmetic: {ratios['states']:.3f} hidden states,", end=" ")
    print(f"{ratios['saes']:.3f} SAE activations")
    largest = {name: of_size[sizes[-1]] for name, of_size in figures.items()}
    written, seconds = largest["s1: extract"].written_bytes, details["seconds"]
    print(
        f"stage 1 at {sizes[-1]:,}: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    )
    assumed, text = extrapolation(written / seconds["write"])
    print(f"\n{text}")
    if arguments.json is not None:
        by_size = {
            name: {str(n): asdict(one) for n, one in of_size.items()} for name, of_size in figures.items()
        }
        result = {"measured": by_size, "marginal": marginal(figures), "extrapolated": assumed}
        write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
