"""How fast is the extraction, beside the usual loop, beside sae-lens, and beside the bare products?

At true size: the shape of Gemma-2-2B with random weights (a small vocabulary, which no product depends on),
SAEs of 2304 x 16384 with thresholds set for an l0 of about 85, sentences of about 20 tokens, everything in
float32. Seconds per sentence over all 26 layers and 135 SAEs of

  (a) reference loop   one sentence at a time, one forward pass per SAE, dense compressed NPZ
  (b) sae-lens         one batched forward pass, SAE.encode, dense compressed NPZ
  (c) this stage       its own code from tokens to files, SAEs read from disk
  (d) ceiling          the bare forward pass and the bare products, without disk

A few layers and SAEs are measured and multiplied up, which every line says. Before the timing, (a), (b) and
(c) are compared on the same sentences.

  uv run python benchmarks/bench_extract.py --quick --json extract.json
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from torch.nn.functional import linear
from transformers import Gemma2Config, Gemma2Model

from pipeline_common.files import write_json
from s1_compute_all_features.extraction import run_units
from s1_compute_all_features.language_model import LanguageModel, TokenisedSentence, forward_states
from s1_compute_all_features.sae_configurations import ModelEntry, SaeConfigurations, SaeEntry
from s1_compute_all_features.sae_encoder import load_encoder, screening_is_faster
from s1_compute_all_features.sae_weights import locate_sae
from s1_compute_all_features.work_plan import Extraction, Measurements, StoreTask, plan_blocks

D_MODEL, D_SAE, N_LAYERS, N_SAES = 2304, 16384, 26, 135
TOKENS_PER_SENTENCE, L0 = 20, 85
BLOCK_TOKENS = 16384


def timed(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of the fastest of some runs, after one that is not counted where there are several."""
    if repeats > 1:
        work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def random_model(n_layers: int) -> LanguageModel:
    """Gemma-2-2B's layers with random weights."""
    torch.manual_seed(0)
    config = Gemma2Config(num_hidden_layers=n_layers, vocab_size=2000, attn_implementation="eager")
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
    """Token ids of sentences of 15 to 25 tokens, a BOS in front that is not stored."""
    rng = np.random.default_rng(0)
    sentences = []
    for length in rng.integers(15, 26, size=n_sentences):
        ids = np.concatenate([[2], rng.integers(10, 2000, size=length)])
        sentences.append(
            TokenisedSentence(ids, np.arange(length + 1) > 0, [" word"] * length, np.arange(length))
        )
    return sentences


def write_random_saes(root: Path, states: torch.Tensor, n_saes: int) -> tuple[SaeEntry, ...]:
    """SAEs in Gemma Scope's layout whose thresholds leave about `L0` latents active per token."""
    entries = []
    for index in range(n_saes):
        generator = torch.Generator().manual_seed(index)
        W_enc = torch.randn(D_MODEL, D_SAE, generator=generator) / D_MODEL**0.5
        n_above = max(1, round(len(states) * L0 / D_SAE))
        # Between two values, so that no token of the sample lies on a threshold.
        threshold = torch.topk(states @ W_enc, n_above + 1, dim=0).values[-2:].mean(dim=0).clamp(min=0)
        path = f"layer_0/width_16k/average_l0_{L0 + index}"
        (root / path).mkdir(parents=True)
        zeros = np.zeros(D_SAE, dtype=np.float32)
        np.savez(
            root / path / "params.npz",
            W_enc=W_enc.numpy(),
            W_dec=W_enc.T.numpy(),
            b_enc=zeros,
            b_dec=np.zeros(D_MODEL, dtype=np.float32),
            threshold=threshold.numpy(),
        )
        entries.append(
            SaeEntry(
                name=f"layer_00_l0_{L0 + index}",
                layer=0,
                average_l0=L0 + index,
                hook="blocks.0.hook_resid_post",
                sae_id=path,
                path=path,
                neuronpedia_id="",
            )
        )
    return tuple(entries)


def sae_lens_sae(path: Path) -> JumpReLUSAE:
    """The same SAE as sae-lens runs it."""
    arrays = np.load(path)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_SAE, apply_b_dec_to_input=False))
    sae.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return sae.eval()


class Bench:
    """The parts that all four ways are made of, on one random model and a few random SAEs."""

    def __init__(self, folder: Path, n_layers: int, n_saes: int, n_sentences: int) -> None:
        """Build model, sentences and SAEs."""
        self.folder = folder
        self.n_layers = n_layers
        self.model = random_model(n_layers)
        self.sentences = random_sentences(n_sentences)
        self.states = forward_states(self.model, self.sentences[:120], [0])[0]
        entries = write_random_saes(folder / "saes", self.states, n_saes)
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

    @property
    def n_tokens(self) -> int:
        """Stored tokens of all sentences."""
        return sum(len(sentence.texts) for sentence in self.sentences)

    def allowed_memory_bytes(self) -> int:
        """The model, two encoders (float32 and their bfloat16 copies), one block, and 1 GB."""
        model = sum(parameter.numel() * 4 for parameter in self.model.model.parameters())
        encoders = 2 * D_MODEL * D_SAE * (4 + 2)
        block = min(self.n_tokens, BLOCK_TOKENS) * (self.n_layers + 1) * D_MODEL * 4
        return model + encoders + block + 10**9

    def check(self) -> None:
        """(a), (b) and (c) find the same latents in the same sentences.

        Raises:
            SystemExit: they do not.
        """
        sae = sae_lens_sae(self.saes[0].weights)  # type: ignore[arg-type]
        batch = self.sentences[:8]
        states = forward_states(self.model, batch, [0])[0]
        theirs = sae.encode(states).detach().numpy()
        single = np.concatenate(
            [
                sae.encode(forward_states(self.model, [sentence], [0])[0]).detach().numpy()
                for sentence in batch
            ]
        )
        for screening in (False, True):
            ours = load_encoder(self.saes[0], self.configurations, "cpu", screening).encode(states).to_dense()
            for name, other in (("sae-lens", theirs), ("single sentences", single)):
                flips = int(((ours > 0) != (other > 0)).sum())
                both = (ours > 0) & (other > 0)
                close = np.allclose(ours[both], other[both], rtol=1e-3)
                if flips > 1e-4 * both.sum() + 2 or not close:
                    sys.exit(f"this stage and {name} differ: {flips} of {both.sum()} latents")
        print(f"check: {both.sum():,} active latents agree among (a), (b) and (c)")

    def this_stage(self, screening: bool) -> tuple[Measurements, float, Path]:
        """(c): run the stage's own code; its measurements, wall seconds, and where the store is."""
        store = self.folder / f"store_{'screened' if screening else 'plain'}"
        task = StoreTask(
            folder=store,
            sentences=self.sentences,
            blocks=plan_blocks([len(sentence.texts) for sentence in self.sentences], BLOCK_TOKENS),
            layers=range(self.n_layers),
            sae_names=[located.entry.name for located in self.saes],
        )
        run = Extraction(
            tasks=[task],
            model=self.model,
            configurations=self.configurations,
            saes=self.saes,
            batch_tokens=4096,
            block_tokens=BLOCK_TOKENS,
            device="cpu",
            screening=screening,
        )
        start = time.perf_counter()
        measured = run_units(run, lambda tokens: None)
        return measured, time.perf_counter() - start, store


def seconds_per_sentence(bench: Bench, n_reference: int, n_sae_lens: int) -> dict[str, Any]:
    """Measure every part and multiply up to `N_LAYERS` layers and `N_SAES` SAEs."""
    layers = N_LAYERS / bench.n_layers
    n_saes, n_sentences = len(bench.saes), len(bench.sentences)
    # First of all, so that the peak of memory is this stage's own.
    ours = {}
    for name, screening in (("float32", False), ("screened", True)):
        measured, wall, store = bench.this_stage(screening)
        forward = measured.seconds["forward"]
        ours[name] = {
            "seconds": (forward * layers + (wall - forward) / n_saes * N_SAES) / n_sentences,
            "encode_seconds_per_sae": measured.seconds["encode"] / n_saes,
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    files = list(store.glob("block_*/sae_*.npz"))
    store_bytes = sum(path.stat().st_size for path in files) / n_saes
    bench.check()
    few, some = bench.sentences[:n_reference], bench.sentences[:n_sae_lens]
    tokens_per_sentence = bench.n_tokens / n_sentences
    sae = sae_lens_sae(bench.saes[0].weights)  # type: ignore[arg-type]
    all_layers = list(range(bench.n_layers))

    def reference() -> None:
        for sentence in few:
            states = forward_states(bench.model, [sentence], [0])[0]
            np.savez_compressed(bench.folder / "a.npz", sae.encode(states).detach().numpy())

    single = timed(lambda: [forward_states(bench.model, [sentence], [0]) for sentence in few])
    loop = timed(reference)
    reference_seconds = (single * layers + (loop - single)) / n_reference * N_SAES

    batch_forward = timed(lambda: forward_states(bench.model, some, all_layers))
    batch_states = forward_states(bench.model, some, [0])[0]
    encode = timed(lambda: sae.encode(batch_states))
    dense = sae.encode(batch_states).detach().numpy()
    save = timed(lambda: np.savez_compressed(bench.folder / "b.npz", dense))
    sae_lens_seconds = (batch_forward * layers + (encode + save) * N_SAES) / n_sae_lens

    bare_forward = timed(lambda: forward_states(bench.model, some, []), repeats=2) / n_sae_lens
    W_DF = torch.from_numpy(np.load(bench.saes[0].weights)["W_enc"])  # type: ignore[arg-type]
    W_FD, b = W_DF.T.contiguous(), torch.zeros(D_SAE)
    x = batch_states[:1024]
    with torch.inference_mode():
        product = min(timed(lambda: linear(x, W_FD, b), 3), timed(lambda: torch.addmm(b, x, W_DF), 3))
    bare_product = product / len(x) * tokens_per_sentence
    ceiling = bare_forward * layers + bare_product * N_SAES

    return {
        "reference": reference_seconds,
        "sae_lens": sae_lens_seconds,
        "ceiling": ceiling,
        "ours": ours,
        "store_fraction_of_dense": store_bytes / (bench.n_tokens * D_SAE * 4),
        "mean_l0": measured.mean_l0(),
        "peak_memory_bytes": peak,
        "allowed_memory_bytes": bench.allowed_memory_bytes(),
    }


def table(figures: dict[str, Any], bench: Bench, n_reference: int, n_sae_lens: int) -> str:
    """The result for people."""
    part = f"{bench.n_layers} of {N_LAYERS} layers"
    best = min(figures["ours"].values(), key=lambda way: way["seconds"])["seconds"]
    rows = [
        ("(a) reference loop", figures["reference"], f"{part}, 1 of {N_SAES} SAEs, {n_reference} sentences"),
        ("(b) sae-lens", figures["sae_lens"], f"{part}, 1 of {N_SAES} SAEs, {n_sae_lens} sentences"),
        *(
            (
                f"(c) this stage, {name}",
                way["seconds"],
                f"{part}, {len(bench.saes)} of {N_SAES} SAEs, {len(bench.sentences)} sentences",
            )
            for name, way in figures["ours"].items()
        ),
        ("(d) ceiling", figures["ceiling"], f"{part}, 1 product of 1,024 tokens"),
    ]
    lines = [
        f"{'':<28}{'s/sentence':>12}{'sentences/s':>13}{'slower than (c)':>17}   measured (rest extrapolated)"
    ]
    for name, seconds, what in rows:
        lines.append(f"{name:<28}{seconds:>12.3f}{1 / seconds:>13.3f}{seconds / best:>17.2f}   {what}")
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
    n_layers, n_saes, n_sentences, n_sae_lens = (
        (2, 2, 150, 50) if arguments.quick else (N_LAYERS, 4, 800, 100)
    )
    n_reference = 2 if arguments.quick else 4
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), n_layers, n_saes, n_sentences)
        print(f"{n_sentences} sentences, {bench.n_tokens} tokens, {torch.get_num_threads()} threads")
        figures = seconds_per_sentence(bench, n_reference, n_sae_lens)
        print(table(figures, bench, n_reference, n_sae_lens))
    ours = figures["ours"]
    best = min(way["seconds"] for way in ours.values())
    result = {
        "ratio_vs_reference_loop": figures["reference"] / best,
        "ratio_vs_sae_lens": figures["sae_lens"] / best,
        "fraction_of_ceiling": figures["ceiling"] / ours["float32"]["seconds"],
        "screening_speedup_encode": ours["float32"]["encode_seconds_per_sae"]
        / ours["screened"]["encode_seconds_per_sae"],
        "screening_is_default_here": screening_is_faster("cpu"),
        "store_fraction_of_dense": figures["store_fraction_of_dense"],
        "peak_memory_bytes": figures["peak_memory_bytes"],
        "allowed_memory_bytes": figures["allowed_memory_bytes"],
        "mean_l0": figures["mean_l0"],
        "n_layers_measured": n_layers,
        "n_saes_measured": n_saes,
    }
    for name, value in result.items():
        print(f"{name:<28}{value if not isinstance(value, float) else format(value, '.4g')}")
    if arguments.json:
        write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
