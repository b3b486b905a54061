"""How fast is the extraction, beside the usual loop, beside sae-lens, and beside the bare products?

At true size: the shape of Gemma-2-2B with random weights (a small vocabulary, which no product depends on),
SAEs of 2304 x 16384 with thresholds set for an l0 of about 85, sentences of about 20 tokens, everything in
float32. Seconds per sentence over all 26 layers and 135 SAEs of

  (a) reference loop   one sentence at a time, one forward pass per SAE, dense compressed NPZ
  (b) sae-lens         one batched forward pass, SAE.encode, dense compressed NPZ
  (c) this stage       its own code from tokens to files, SAEs read from disk
  (d) ceiling          the bare forward pass and the bare products, without disk

A few layers and SAEs are measured and multiplied up, which every line says. This stage runs once for the
layers, with their files, and once per way of encoding for the SAEs, with theirs; the SAEs stand in front of
the first block there, so that this run holds no forward pass. Before the timing, (a), (b) and (c) are
compared on the same sentences.

  uv run python benchmarks/bench_extract.py --quick --json extract.json

On a GPU nothing is multiplied up: this stage runs whole, 1,000 sentences x 26 layers x 135 SAEs whose weights
are in the page cache, and the table says where the time went.

  uv run python benchmarks/bench_extract.py --device cuda
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear

from benchmarks.extraction_parts import Bench, Size
from benchmarks.random_gemma import D_MODEL, D_SAE, N_LAYERS, N_SAES
from pipeline_common.files import write_json
from s1_compute_all_features.language_model import forward_states
from s1_compute_all_features.sae_encoder import screening_is_faster

TOKENS_PER_PRODUCT = 1024

QUICK = Size(layers=2, saes=2, sentences=340, forward_sentences=24, reference_sentences=2, rounds=2)
FULL = Size(layers=N_LAYERS, saes=4, sentences=800, forward_sentences=100, reference_sentences=4, rounds=3)
WHOLE = Size(
    layers=N_LAYERS, saes=N_SAES, sentences=1000, forward_sentences=0, reference_sentences=0, rounds=0
)


def fastest(rounds: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class MemoryPeak:
    """The most memory that this process held at a time since this was made.

    Linux forgets its high-water mark when told so; elsewhere the mark is the whole process's.
    """

    def __init__(self) -> None:
        """Start anew."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            print("peak memory: of the whole process, since this system keeps no mark that can be reset")

    def n_bytes(self) -> int:
        """The peak."""
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(bench: Bench) -> dict[str, Any]:
    """Every part, multiplied up to `N_LAYERS` layers and `N_SAES` SAEs: seconds per sentence.

    All ways take turns, and the fastest round of each part counts.
    """
    size = bench.size
    layers = N_LAYERS / size.layers / size.forward_sentences
    saes = N_SAES / size.sentences
    forward = bench.bare_forward()
    bench.states(bench.sentences) @ torch.zeros(D_MODEL, 2)  # the first product of a process is slower
    rounds: list[dict[str, float]] = []
    peak = 0
    for _ in range(size.rounds):
        memory = MemoryPeak()
        runs = {
            "layers": bench.layers_run(),
            "float32": bench.sae_run(False),
            "screened": bench.sae_run(True),
        }
        if not rounds:
            peak = memory.n_bytes()  # sae-lens comes into memory later, and is none of this stage's
            bench.check()
        seconds = {"layers": runs["layers"][1]}
        for name in ("float32", "screened"):
            measured, wall = runs[name]
            # The pass in front of the SAEs is part of the layers' run already.
            seconds[name] = (wall - measured.seconds["forward"]) / len(measured.active)
            seconds[f"encode {name}"] = measured.seconds["encode"] / len(measured.active)
        seconds["forward"] = fastest(1, forward)
        seconds["product"] = bare_product(bench)
        seconds["sae_lens"] = sae_lens_way(bench)
        seconds["reference"] = reference_loop(bench, N_LAYERS / size.layers)
        rounds.append(seconds)
    best = {part: min(seconds[part] for seconds in rounds) for part in rounds[0]}
    stored = sum(path.stat().st_size for path in (bench.folder / "screened").glob("block_*/sae_*.npz"))
    passes, tokens = best["forward"] * layers, bench.n_tokens
    return {
        "ours": {name: best["layers"] * layers + best[name] * saes for name in ("float32", "screened")},
        "ceiling": passes + best["product"] * tokens * saes,
        "sae_lens": passes + best["sae_lens"] * tokens * saes,
        "reference": best["reference"] * N_SAES,
        "screening_speedup_encode": best["encode float32"] / best["encode screened"],
        "store_fraction_of_dense": stored / size.saes / (tokens * D_SAE * 4),
        "mean_l0": runs["screened"][0].mean_l0(),
        "peak_memory_bytes": peak,
    }


def bare_product(bench: Bench) -> float:
    """Seconds per token of the product of one SAE, in the faster of the two layouts."""
    W_DF = torch.from_numpy(np.load(bench.weights)["W_enc"])
    W_FD, b = W_DF.T.contiguous(), torch.zeros(D_SAE)
    x = bench.states(bench.sentences)[:TOKENS_PER_PRODUCT]
    with torch.inference_mode():
        ways = (lambda: linear(x, W_FD, b), lambda: torch.addmm(b, x, W_DF))
        return min(fastest(2, way) for way in ways) / len(x)


def sae_lens_way(bench: Bench) -> float:
    """(b): seconds per token of one SAE after the forward pass."""
    sae = bench.sae
    x = bench.states(bench.sentences)[:TOKENS_PER_PRODUCT]

    def run() -> None:
        with torch.no_grad():
            np.savez_compressed(bench.folder / "b.npz", sae.encode(x).numpy())

    return fastest(1, run) / len(x)


def reference_loop(bench: Bench, layers: float) -> float:
    """(a): seconds per sentence of one SAE, the forward pass of all layers included."""
    sae = bench.sae
    few = bench.sentences[: bench.size.reference_sentences]
    last = bench.size.layers - 1

    def pass_all() -> None:
        for sentence in few:
            forward_states(bench.model, [sentence], [last])

    def encode_all() -> None:
        with torch.no_grad():
            for sentence in few:
                np.savez_compressed(bench.folder / "a.npz", sae.encode(bench.states([sentence])).numpy())

    return (fastest(1, pass_all) * layers + fastest(1, encode_all)) / len(few)


def table(figures: dict[str, Any], size: Size) -> str:
    """The result for people."""
    part = f"{size.layers} of {N_LAYERS} layers on {size.forward_sentences} sentences"
    some_tokens = f"1 of {N_SAES} SAEs on {TOKENS_PER_PRODUCT} tokens"
    best = min(figures["ours"].values())
    rows = [
        (
            "(a) reference loop",
            figures["reference"],
            f"{size.layers} of {N_LAYERS} layers, 1 of {N_SAES} SAEs on {size.reference_sentences} sentences",
        ),
        ("(b) sae-lens", figures["sae_lens"], f"{part}, {some_tokens}"),
        *(
            (
                f"(c) this stage, {name}",
                figures["ours"][name],
                f"{part}, {n_saes} of {N_SAES} SAEs on {size.sentences} sentences",
            )
            for name, n_saes in (("float32", 1), ("screened", size.saes))
        ),
        ("(d) ceiling, float32", figures["ceiling"], f"{part}, {some_tokens}"),
    ]
    lines = [f"{'':<28}{'s/sentence':>12}{'sentences/s':>13}{'relative':>10}   measured (rest extrapolated)"]
    for name, seconds, what in rows:
        lines.append(f"{name:<28}{seconds:>12.3f}{1 / seconds:>13.4f}{seconds / best:>10.2f}   {what}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few layers and sentences: under 50 s on 2 cores"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: the whole run on a GPU instead of the comparison (default: cpu)",
    )
    return parser


def run_on_gpu(size: Size, json: Path | None, device: str = "cuda") -> int:
    """This stage whole on a GPU, with and without screening: the seconds, and where they went."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    result: dict[str, Any] = {"device": name, "sentences": size.sentences, "saes": size.saes}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), size, device)
        print(f"{name}: {size.sentences} sentences, {bench.n_tokens} tokens, {size.saes} SAEs")
        bench.sae_run(screening=False)  # brings the weights into the page cache
        for screening in (False, True):
            measured, wall = bench.whole_run(screening)
            result["seconds_screened" if screening else "seconds_float32"] = wall
            parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in measured.seconds.items())
            way = "screened" if screening else "float32"
            print(f"{way:<10}{wall:8.1f} s   {parts} (writing runs beside the rest)")
    if json:
        write_json(json, result)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: this machine has no GPU that torch can use")
        return run_on_gpu(WHOLE, arguments.json)
    size = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), size)
        print(f"{size.sentences} sentences, {bench.n_tokens} tokens, {torch.get_num_threads()} threads")
        figures = measure(bench)
        print(table(figures, size))
    ours = figures["ours"]
    best = min(ours.values())
    result = {
        "ratio_vs_reference_loop": figures["reference"] / best,
        "ratio_vs_sae_lens": figures["sae_lens"] / best,
        "fraction_of_ceiling": figures["ceiling"] / ours["float32"],
        "screening_speedup_encode": figures["screening_speedup_encode"],
        "screening_is_default_here": screening_is_faster("cpu"),
        "store_fraction_of_dense": figures["store_fraction_of_dense"],
        "peak_memory_bytes": figures["peak_memory_bytes"],
        "allowed_memory_bytes": bench.allowed_memory_bytes(),
        "mean_l0": figures["mean_l0"],
        "n_layers_measured": size.layers,
        "n_saes_measured": size.saes,
    }
    for name, value in result.items():
        print(f"{name:<28}{value if not isinstance(value, float) else format(value, '.4g')}")
    if arguments.json:
        write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
