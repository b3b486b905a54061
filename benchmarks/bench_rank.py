"""Stage 2 against the obvious way: a loop over features that calls SciPy for each.

    uv run python benchmarks/bench_rank.py           # 135 different SAEs on disk, a few minutes
    uv run python benchmarks/bench_rank.py --quick   # 135 SAEs of which 3 are different, under 50 s

The store is synthetic: 1,000 sentences of 20 tokens, 135 SAEs of 16,384 features. About 0.6% of the features
are active on a token and 6% somewhere in a sentence, so ``final`` pooling gives the sparse case and ``max``
pooling the dense one. First the loop and this stage must give the same metrics on a sample of features. Then
both are timed, one process and one thread each: the loop on the sample, extrapolated to all features, this
stage on a whole SAE. Last, the whole command runs on the store, in a process of its own. Without --quick it
also runs on a store with hidden states, so that probes and random directions are part of it.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from pipeline_common.command_line import HelpFormatter
from pipeline_common.errors import exit_codes
from pipeline_common.files import write_json
from s1_compute_all_features.feature_store import (
    EMBEDDINGS,
    BlockWriter,
    FeatureStore,
    SparseActivations,
    StoredSae,
    TokenTable,
    block_file_names,
    block_folder,
    hidden_file_name,
    sae_as_json,
    sae_file_name,
    write_manifest,
    write_sentences,
)
from s2_find_top_features.feature_metrics import LabelledColumns
from s2_find_top_features.scoring import Split, Thresholds, score_features
from s2_find_top_features.sparse_columns import SparseColumns

ROOT = Path(__file__).resolve().parent.parent
MEASURED = """
import sys
from s2_find_top_features.analyze_features import main
code = main(sys.argv[1:])
try:
    lines = open("/proc/self/status").read().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
except OSError:  # not Linux
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else peak * 1024)
raise SystemExit(code)
"""
"""The command, and after it a line with the peak resident bytes of its process."""


N_SENTENCES = 1000
N_TOKENS = 20
N_SAES = 135
N_LAYERS = 26
D_MODEL = 2304
N_FEATURES = 16_384
SHARE_OF_SENTENCE = 0.073  # of the features could fire in a sentence
SHARE_OF_TOKEN = 0.083  # of those fire on a token: 0.6% a token, 6% a sentence
N_DISTINCT_QUICK = 3
N_SAMPLED = 40
RELATIVE = 1e-9
THRESHOLDS = Thresholds(0.4, 0.5, 0.2)


def write_store(
    folder: Path, n_saes: int, n_distinct: int, rng: np.random.Generator, d_model: int = 0
) -> None:
    """A store of n_saes, of which n_distinct differ; the others are hard links to their files.

    Args:
        folder: where to write.
        n_saes: SAEs of the store.
        n_distinct: how many of them differ.
        rng: of everything in it.
        d_model: of the hidden states of `N_LAYERS` layers, all links to one file of noise; 0 stores none.
    """
    n_tokens = N_SENTENCES * N_TOKENS
    position = np.tile(np.arange(N_TOKENS), N_SENTENCES)
    tokens = TokenTable(
        token_id=rng.integers(0, 1000, n_tokens).astype(np.int32),
        sentence_index=np.repeat(np.arange(N_SENTENCES), N_TOKENS).astype(np.int32),
        position=position.astype(np.int32),
        is_final=position == N_TOKENS - 1,
        text=np.array([f" w{number}" for number in rng.integers(0, 1000, n_tokens)]),
    )
    saes = [
        StoredSae(
            f"sae_{k:03d}",
            k % N_LAYERS,
            20 + k // N_LAYERS,
            N_FEATURES,
            f"blocks.{k % N_LAYERS}.hook_resid_post",
            "",
            "",
            "",
            "",
        )
        for k in range(n_saes)
    ]
    layers = list(range(N_LAYERS)) if d_model else []
    writer = BlockWriter(folder, 0)
    writer.write_tokens(tokens)
    writer.write_states(EMBEDDINGS, np.zeros((n_tokens, 1), dtype=np.float32))
    for k, sae in enumerate(saes):
        if k < n_distinct:
            writer.write_activations(sae.name, random_activations(rng))
        else:
            place = block_folder(folder, 0)
            os.link(place / sae_file_name(saes[k % n_distinct].name), place / sae_file_name(sae.name))
    for layer in layers:
        if layer == 0:
            writer.write_states(0, rng.standard_normal((n_tokens, d_model), dtype=np.float32))
        else:
            place = block_folder(folder, 0)
            os.link(place / hidden_file_name(0), place / hidden_file_name(layer))
    names = block_file_names([], [])
    block = {"n_sentences": N_SENTENCES, "n_tokens": n_tokens, "sha256": writer.close(names)}
    columns: dict[str, Sequence[object]] = {
        "sentence_index": range(N_SENTENCES),
        "sentence": [
            f"sentence {s} " + " ".join(tokens.text[s * N_TOKENS :][:N_TOKENS]) for s in range(N_SENTENCES)
        ],
        "concept_strength_label": [s % 4 for s in range(N_SENTENCES)],
        "split": ["test" if s % 20 < 4 else "train" for s in range(N_SENTENCES)],
        "group": range(N_SENTENCES),
        "n_tokens": [N_TOKENS] * N_SENTENCES,
    }
    write_sentences(folder, columns)
    model = {"id": "synthetic", "revision": "", "d_model": d_model or 1}
    content = {
        "complete": True,
        "model": model,
        "saes": [sae_as_json(sae) for sae in saes],
        "layers": layers,
        "input": {"file": "synthetic.csv", "sha256": "0" * 64},
        "blocks": [block],
    }
    write_manifest(folder, content)


def random_activations(rng: np.random.Generator) -> SparseActivations:
    """Token activations of one SAE: [n_tokens, N_FEATURES]."""
    sentence, feature = np.nonzero(
        rng.random((N_SENTENCES, N_FEATURES), dtype=np.float32) < SHARE_OF_SENTENCE
    )
    per_token = []
    for token in range(N_TOKENS):
        fires = rng.random(len(sentence), dtype=np.float32) < SHARE_OF_TOKEN
        per_token.append((sentence[fires] * N_TOKENS + token) * N_FEATURES + feature[fires])
    key = np.sort(np.concatenate(per_token))
    row, indices = np.divmod(key, N_FEATURES)
    indptr = np.searchsorted(row, np.arange(N_SENTENCES * N_TOKENS + 1)).astype(np.int64)
    data = rng.exponential(size=len(key)).astype(np.float32) + np.float32(0.01)
    return SparseActivations(data, indices.astype(np.uint16), indptr, (N_SENTENCES * N_TOKENS, N_FEATURES))


def loop_metrics(x: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> dict[str, float]:
    """Every metric of one dense feature, as a careful user of SciPy would take it.

    Areas under the curve come from `rankdata`: with `roc_auc_score` and `mannwhitneyu` the loop takes several
    times as long, most of it in checks of their input.
    """
    members = [np.flatnonzero(labels == label) for label in range(4)]
    means = [float(x[of_label].mean()) for of_label in members]
    fired = np.zeros(len(x), dtype=bool)
    for k in range(int(fold.max()) + 1):
        threshold = np.quantile(x[members[0]][fold[members[0]] != k], 0.95)
        fired[fold == k] = x[fold == k] > threshold
    tpr, fpr = float(fired[members[3]].mean()), float(fired[members[0]].mean())
    pairs = list(itertools.combinations(range(4), 2))
    won = {(low, high): pairs_won(x[members[high]], x[members[low]]) for low, high in pairs}
    n_pairs = {(low, high): len(members[low]) * len(members[high]) for low, high in pairs}
    against_3 = [pair for pair in pairs if pair[1] == 3]
    pearson = float(stats.pearsonr(x, labels).statistic)
    separation = (means[3] - means[0]) / float(x.std())
    return {
        **{f"mean_{label}": mean for label, mean in enumerate(means)},
        "tpr": tpr,
        "fpr": fpr,
        "pearson": pearson,
        "spearman": float(stats.spearmanr(x, labels).statistic),
        "separation": separation,
        "auroc_3_vs_0": won[0, 3] / n_pairs[0, 3],
        "auroc_3_vs_rest": sum(won[pair] for pair in against_3) / sum(n_pairs[pair] for pair in against_3),
        "trend": sum(won.values()) / sum(n_pairs.values()),
        "monotonicity": float(means == sorted(means)),
        "density": float((x > 0).mean()),
        "interpretability_score": 0.4 * pearson + 0.3 * separation + 0.3 * (tpr - fpr),
    }


def pairs_won(high: np.ndarray, low: np.ndarray) -> float:
    """Mann-Whitney U of the first sample, a tie counting half."""
    ranks = stats.rankdata(np.concatenate([high, low]))
    return float(ranks[: len(high)].sum()) - len(high) * (len(high) + 1) / 2


def compare(store: FeatureStore, split: Split, pooling: str, rng: np.random.Generator) -> tuple[float, float]:
    """Check that both ways agree, then time both: seconds for one SAE of the loop and of this stage."""
    pooled = store.pooled_activations(store.saes[0], pooling)

    def this_stage() -> dict[str, np.ndarray]:
        columns = SparseColumns.from_csr(
            pooled.data, pooled.indices, pooled.indptr, pooled.shape, split.train
        )
        data = LabelledColumns(columns, split.labels)
        return score_features(data, split.fold, "interpretability_score", THRESHOLDS).metrics

    ours = this_stage()
    varying = np.flatnonzero(ours["density"] * (1 - ours["density"]) > 0)
    sample = np.sort(rng.choice(varying, N_SAMPLED, replace=False))
    dense = pooled.columns(sample).astype(np.float64)[split.train]

    def loop() -> list[dict[str, float]]:
        return [loop_metrics(x, split.labels, split.fold) for x in dense.T]

    for feature, theirs in zip(sample, loop(), strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name][feature], value, rtol=RELATIVE, atol=1e-12, err_msg=name)
    print(f"  the loop's metrics are this stage's, to {RELATIVE:g} relative, on {N_SAMPLED} features")
    return fastest(loop, 2) * N_FEATURES / N_SAMPLED, fastest(this_stage, 5)


def fastest(work: Callable[[], object], n_times: int) -> float:
    """Smallest wall-clock seconds of several runs."""
    seconds = []
    for _ in range(n_times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def whole_command(store: Path, results: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of the command, in a process of its own, imports included.

    The process reads its own mark when it is done: what its parent needed is not in it.
    """
    command = [sys.executable, "-c", MEASURED, "--input", str(store), "--output", str(results)]
    start = time.perf_counter()
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if ran.returncode:
        raise SystemExit(f"analyze_features.py failed:\n{ran.stderr}")
    return seconds, int(ran.stdout.splitlines()[-1])


def whole_ranking(folder: Path, quick: bool, rng: np.random.Generator) -> dict[str, float]:
    """Time the whole command on the store in the folder; without ``quick`` also on two others."""
    print("\nthe whole command: max pooling, 200 permutations, held-out metrics of all features, stability")
    figures: dict[str, float] = {}
    if not quick:
        few = N_SAES // 9
        write_store(folder / "few", few, few, rng)
        _, peak = whole_command(folder / "few", folder / "results_of_few")
        print(f"  {few} SAEs: peak memory {peak / 2**30:.2f} GiB")
        figures["peak_memory_bytes_of_15_saes"] = peak
    seconds, peak = whole_command(folder / "store", folder / "results")
    print(f"  {N_SAES} SAEs: {seconds:.1f} s, peak memory {peak / 2**30:.2f} GiB")
    figures |= {"seconds_full": seconds, "peak_memory_bytes": peak}
    if not quick:
        write_store(folder / "with_states", N_SAES, N_DISTINCT_QUICK, rng, D_MODEL)
        seconds, peak = whole_command(folder / "with_states", folder / "results_with_states")
        print(
            f"  {N_SAES} SAEs, probes of {N_LAYERS} layers x {D_MODEL} and random directions included: "
            f"{seconds:.1f} s, peak memory {peak / 2**30:.2f} GiB"
        )
        figures["seconds_full_with_probes"] = seconds
    return figures


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only 3 of the 135 SAEs differ")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print."""
    arguments = build_parser().parse_args(argv)
    rng = np.random.default_rng(0)
    n_distinct = N_DISTINCT_QUICK if arguments.quick else N_SAES
    print(f"{N_SENTENCES:,} sentences x {N_SAES} SAEs x {N_FEATURES:,} features, {os.cpu_count()} cores")
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load average at the start: {load}; {n_distinct} of the SAEs differ, the others are hard links")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_store(folder / "store", N_SAES, n_distinct, rng)
        store = FeatureStore(folder / "store")
        split = Split.of(store)
        for name, pooling in (("sparse", "final"), ("dense", "max")):
            density = len(store.pooled_activations(store.saes[0], pooling).data) / (N_SENTENCES * N_FEATURES)
            print(
                f"\n{pooling} pooling, density {density:.2%}: metrics on train, one thread, no permutations"
            )
            with threadpool_limits(1):
                loop, ours = compare(store, split, pooling, rng)
            figures[f"ratio_vs_scipy_loop_{name}"] = loop / ours
            print(f"  SciPy loop   {loop:9.2f} s for one SAE, extrapolated from {N_SAMPLED} features")
            print(f"  this stage   {ours:9.4f} s for one SAE")
            print(f"  ratio        {loop / ours:9.0f}")
        figures |= whole_ranking(folder, arguments.quick, rng)
    if arguments.json is not None:
        write_json(arguments.json, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
