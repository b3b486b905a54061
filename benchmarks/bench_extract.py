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
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import linear
from transformers import Gemma2Config, Gemma2Model

from pipeline_common.files import write_json
from s1_compute_all_features.extraction import run_units
from s1_compute_all_features.language_model import (
    BLOCK_INPUT,
    LanguageModel,
    TokenisedSentence,
    forward_states,
    length_sorted_batches,
)
from s1_compute_all_features.sae_configurations import ModelEntry, SaeConfigurations, SaeEntry
from s1_compute_all_features.sae_encoder import load_encoder, screening_is_faster
from s1_compute_all_features.sae_weights import locate_sae
from s1_compute_all_features.work_plan import Extraction, Measurements, StoreTask, plan_blocks

if TYPE_CHECKING:
    from sae_lens import JumpReLUSAE

D_MODEL, D_SAE, N_LAYERS, N_SAES = 2304, 16384, 26, 135
L0 = 85
VOCABULARY = 20000
BATCH_TOKENS, BLOCK_TOKENS = 4096, 16384
TOKENS_PER_PRODUCT = 1024


@dataclass(frozen=True)
class Size:
    """How much of the whole is measured.

    Attributes:
        layers: of the model.
        saes: that this stage encodes with screening; copies of one, each read from its own name.
            Without screening it is one, whose reading is then not hidden behind another's encoding.
        sentences: that this stage encodes.
        forward_sentences: that pass through the layers.
        reference_sentences: of the reference loop.
        rounds: how often everything is timed; the fastest counts.
    """

    layers: int
    saes: int
    sentences: int
    forward_sentences: int
    reference_sentences: int
    rounds: int


QUICK = Size(layers=2, saes=2, sentences=340, forward_sentences=24, reference_sentences=2, rounds=2)
FULL = Size(layers=N_LAYERS, saes=4, sentences=800, forward_sentences=100, reference_sentences=4, rounds=3)


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


def random_model(n_layers: int) -> LanguageModel:
    """Gemma-2-2B's layers with random weights."""
    torch.manual_seed(0)
    config = Gemma2Config(num_hidden_layers=n_layers, vocab_size=VOCABULARY, attn_implementation="eager")
    with torch.device("meta"):
        model = Gemma2Model(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    # Buffers that are not saved are left as garbage by to_empty.
    fresh = Gemma2Model(Gemma2Config(num_hidden_layers=1, vocab_size=10))
    model.embed_tokens.embed_scale = fresh.embed_tokens.embed_scale
    model.rotary_emb = fresh.rotary_emb
    model.eval()
    return LanguageModel(model, None, model.layers, D_MODEL, None, {})


def random_sentences(n_sentences: int) -> list[TokenisedSentence]:
    """Token ids of sentences of 15 to 25 tokens, no token twice, a BOS in front that is not stored."""
    rng = np.random.default_rng(0)
    fresh = rng.permutation(np.arange(10, VOCABULARY))
    sentences = []
    for length in rng.integers(15, 26, size=n_sentences):
        ids, fresh = np.concatenate([[2], fresh[:length]]), fresh[length:]
        sentences.append(
            TokenisedSentence(ids, np.arange(length + 1) > 0, [" word"] * length, np.arange(length))
        )
    return sentences


def write_random_saes(root: Path, states: torch.Tensor, n_saes: int) -> tuple[SaeEntry, ...]:
    """SAEs in Gemma Scope's layout whose thresholds leave about `L0` latents active per token."""
    W_enc = torch.randn(D_MODEL, D_SAE, generator=torch.Generator().manual_seed(0)) / D_MODEL**0.5
    n_above = max(1, round(len(states) * L0 / D_SAE))
    # Between two values, so that no token of the sample lies on a threshold.
    threshold = torch.topk(states @ W_enc, n_above + 1, dim=0).values[-2:].mean(dim=0).clamp(min=0)
    entries = []
    for index in range(n_saes):
        path = f"layer_0/width_16k/average_l0_{L0 + index}"
        (root / path).mkdir(parents=True)
        if entries:
            os.link(root / entries[0].path / "params.npz", root / path / "params.npz")
        else:
            np.savez(
                root / path / "params.npz",
                W_enc=W_enc.numpy(),
                W_dec=W_enc.T.numpy(),
                b_enc=np.zeros(D_SAE, dtype=np.float32),
                b_dec=np.zeros(D_MODEL, dtype=np.float32),
                threshold=threshold.numpy(),
            )
        entries.append(
            SaeEntry(
                name=f"layer_00_l0_{L0 + index}",
                layer=0,
                average_l0=L0 + index,
                hook="blocks.0.hook_resid_pre",
                sae_id=path,
                path=path,
                neuronpedia_id="",
            )
        )
    return tuple(entries)


class Bench:
    """The parts that all four ways are made of, on one random model and a few random SAEs."""

    def __init__(self, folder: Path, size: Size) -> None:
        """Build model, sentences and SAEs."""
        self.folder = folder
        self.size = size
        self.model = random_model(size.layers)
        self.sentences = random_sentences(size.sentences)
        states = self.states(self.sentences[:25])
        entries = write_random_saes(folder / "saes", states, size.saes)
        self.configurations = SaeConfigurations(
            format_version=1,
            description="random weights of true size",
            model=ModelEntry(id="random"),
            release="",
            repo_id="",
            sae_root="saes",
            weights_format="gemma_scope",
            saes=entries,
        )
        self.saes = [locate_sae(self.configurations, entry, folder, None) for entry in entries]
        self.weights: Path = self.saes[0].weights  # type: ignore[assignment]

    @property
    def n_tokens(self) -> int:
        """Stored tokens of all sentences."""
        return sum(len(sentence.texts) for sentence in self.sentences)

    def states(self, sentences: Sequence[TokenisedSentence]) -> torch.Tensor:
        """What the SAEs read: [n_tokens, D_MODEL]."""
        return forward_states(self.model, sentences, [BLOCK_INPUT])[BLOCK_INPUT]

    @cached_property
    def sae(self) -> "JumpReLUSAE":
        """The first SAE as sae-lens runs it."""
        from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

        arrays = np.load(self.weights)
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_SAE, apply_b_dec_to_input=False))
        sae.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        return sae.eval()

    def allowed_memory_bytes(self) -> int:
        """The model, two encoders (float32 and their bfloat16 copies), one block, and 1 GB."""
        model = sum(parameter.numel() * 4 for parameter in self.model.model.parameters())
        encoders = 2 * D_MODEL * D_SAE * (4 + 2)
        layers_run = self.size.forward_sentences * (self.size.layers + 1)
        states = max(layers_run, self.size.sentences) / self.size.sentences * self.n_tokens
        return int(model + encoders + states * D_MODEL * 4 + 10**9)

    def check(self) -> None:
        """(a), (b) and (c) find the same latents in the same sentences.

        Raises:
            SystemExit: they do not.
        """
        sae = self.sae
        batch = self.sentences[:8]
        states = self.states(batch)
        theirs = sae.encode(states).detach().numpy()
        single = np.concatenate([sae.encode(self.states([sentence])).detach().numpy() for sentence in batch])
        for screening in (False, True):
            ours = load_encoder(self.saes[0], self.configurations, "cpu", screening).encode(states).to_dense()
            for name, other in (("sae-lens", theirs), ("single sentences", single)):
                flips = int(((ours > 0) != (other > 0)).sum())
                both = (ours > 0) & (other > 0)
                close = np.allclose(ours[both], other[both], rtol=1e-3)
                if flips > 1e-4 * both.sum() + 2 or not close:
                    sys.exit(f"this stage and {name} differ: {flips} of {both.sum()} latents")
        print(f"check: {both.sum():,} active latents agree among (a), (b) and (c)")

    def layers_run(self) -> tuple[Measurements, float]:
        """(c) without SAEs: forward passes and the files of all layers; measurements and wall seconds."""
        return self._run("layers", self.sentences[: self.size.forward_sentences], n_saes=0)

    def sae_run(self, screening: bool) -> tuple[Measurements, float]:
        """(c) without layers: reading, encoding and the files of the SAEs; measurements and wall seconds."""
        name, n_saes = ("screened", self.size.saes) if screening else ("float32", 1)
        return self._run(name, self.sentences, n_saes, screening=screening)

    def _run(
        self, name: str, sentences: Sequence[TokenisedSentence], n_saes: int, screening: bool = False
    ) -> tuple[Measurements, float]:
        saes = self.saes[:n_saes]
        shutil.rmtree(self.folder / name, ignore_errors=True)
        task = StoreTask(
            folder=self.folder / name,
            sentences=sentences,
            blocks=plan_blocks([len(sentence.texts) for sentence in sentences], BLOCK_TOKENS),
            layers=[] if saes else range(self.size.layers),
            sae_names=[located.entry.name for located in saes],
            hidden_states="none" if saes else "all",
        )
        run = Extraction(
            tasks=[task],
            model=self.model,
            configurations=self.configurations,
            saes=saes,
            batch_tokens=BATCH_TOKENS,
            block_tokens=BLOCK_TOKENS,
            device="cpu",
            screening=screening,
        )
        start = time.perf_counter()
        measured = run_units(run, lambda tokens: None)
        return measured, time.perf_counter() - start

    def bare_forward(self) -> Callable[[], None]:
        """The model alone, in this stage's batches."""
        sentences = self.sentences[: self.size.forward_sentences]
        batches = []
        for batch in length_sorted_batches([len(sentence.ids) for sentence in sentences], BATCH_TOKENS):
            longest = max(len(sentences[index].ids) for index in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, : len(sentences[index].ids)] = torch.from_numpy(sentences[index].ids)
                mask[row, : len(sentences[index].ids)] = 1
            batches.append((ids, mask))

        def run() -> None:
            with torch.inference_mode():
                for ids, mask in batches:
                    self.model.model(input_ids=ids, attention_mask=mask, use_cache=False)

        return run


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few layers and sentences: under 50 s on 2 cores"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(argv)
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
