"""Stage 5's sweep over layers against the obvious way: scikit-learn's pipeline in a loop.

    uv run python benchmarks/bench_sweep.py           # 27 layers and the loop on a whole layer, minutes
    uv run python benchmarks/bench_sweep.py --quick   # 9 layers and the loop on a fold, under 50 s

The store is synthetic: 1,000 sentences of 20 tokens with labels 0 to 3, 26 layers and the embeddings, 2,304
dimensions, of which three layers differ and the others are hard links. Both ways cross-validate a multinomial
logistic regression in 5 folds, choose among 5 penalties by 3 folds inside each, refit on train and answer
for the held-out sentences.

First both must give the same probabilities, scikit-learn's solver run to more digits than its default. Then
the loop is timed with scikit-learn's own default tolerance, and the whole command in a process of its own:
imports, reading, pooling, baselines, intervals and pictures included. The command may use all cores; the
loop's linear algebra gets one thread or all cores, whichever is faster.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from concept_evaluation.logistic import PENALTIES, fit_logistic_path, principal_coordinates
from concept_evaluation.metrics import log_loss
from pipeline_common.command_line import HelpFormatter, usable_cores
from pipeline_common.errors import exit_codes
from pipeline_common.files import write_json
from s1_compute_all_features.feature_store import (
    EMBEDDINGS,
    BlockWriter,
    TokenTable,
    block_file_names,
    block_folder,
    hidden_file_name,
    write_manifest,
    write_sentences,
)
from s5_classifier_training.framework.layer_models import NestedRows, nested_rows
from s5_classifier_training.framework.trait_stores import Trait, open_traits

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "s5_classifier_training" / "framework" / "sweep_layers.py"

N_SENTENCES = 1000
N_TOKENS = 20
N_LAYERS = 27  # the embeddings count as one
N_LAYERS_QUICK = 9
N_DISTINCT = 3
D_MODEL = 2304
N_FACTORS = 200
N_FOLDS = 5
SEED = 0
TOLERANCE = 2e-3
"""Of probabilities: what either solver leaves, and far below what moves a score's second digit."""


def write_store(folder: Path, rng: np.random.Generator) -> None:
    """A store without SAEs whose layers tell the labels apart moderately well."""
    labels = np.arange(N_SENTENCES) % 4
    n_tokens = N_SENTENCES * N_TOKENS
    sentence = np.repeat(np.arange(N_SENTENCES), N_TOKENS)
    position = np.tile(np.arange(N_TOKENS), N_SENTENCES)
    words = rng.integers(0, 2000, n_tokens)
    tokens = TokenTable(
        token_id=words.astype(np.int32),
        sentence_index=sentence.astype(np.int32),
        position=position.astype(np.int32),
        is_final=position == N_TOKENS - 1,
        text=np.array([f" w{word}" for word in words]),
    )
    writer = BlockWriter(folder, 0)
    writer.write_tokens(tokens)
    layers = list(range(N_LAYERS - 1))
    for place, layer in enumerate([EMBEDDINGS, *layers]):
        if place < N_DISTINCT:
            writer.write_states(layer, random_states(labels, sentence, rng))
        else:
            block = block_folder(folder, 0)
            source: int | str = EMBEDDINGS if place % N_DISTINCT == 0 else place % N_DISTINCT - 1
            os.link(block / hidden_file_name(source), block / hidden_file_name(layer))
    block = {
        "n_sentences": N_SENTENCES,
        "n_tokens": n_tokens,
        "sha256": writer.close(block_file_names(layers, [])),
    }
    texts = [" ".join(f"w{word}" for word in of_sentence) for of_sentence in words.reshape(N_SENTENCES, -1)]
    write_sentences(
        folder,
        {
            "sentence_index": range(N_SENTENCES),
            "sentence": texts,
            "concept_strength_label": labels.tolist(),
            "split": ["test" if s % 20 < 4 else "train" for s in range(N_SENTENCES)],
            "group": range(N_SENTENCES),
            "n_tokens": [N_TOKENS] * N_SENTENCES,
        },
    )
    write_manifest(
        folder,
        {
            "complete": True,
            "model": {"id": "synthetic", "revision": "", "d_model": D_MODEL},
            "saes": [],
            "layers": layers,
            "input": {"file": "synthetic.csv", "sha256": "0" * 64},
            "blocks": [block],
        },
    )


def random_states(labels: np.ndarray, sentence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hidden states of every token, float32 [n_tokens, D_MODEL].

    A sentence has factors of falling weight, of which some lean with the label; dimensions have scales from
    0.2 to 8 and an offset, as residual streams do; tokens add noise.
    """
    weight = np.arange(1, N_FACTORS + 1) ** -0.5
    factors = rng.normal(size=(len(labels), N_FACTORS))
    factors[:, 5:25] += 0.1 * labels[:, None]
    directions = rng.normal(size=(N_FACTORS, D_MODEL))
    states = ((factors * weight) @ directions).astype(np.float32)[sentence]
    states += rng.standard_normal(states.shape, dtype=np.float32)
    return states * rng.uniform(0.2, 8, D_MODEL).astype(np.float32) + rng.normal(size=D_MODEL).astype(
        np.float32
    )


def plain_model(C: float, **solver: object) -> Pipeline:
    """What a user of scikit-learn would write."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=10_000, **solver))


def check(vectors: np.ndarray, nested: NestedRows, penalties: Sequence[float]) -> float:
    """Largest difference of probabilities on a fold; stops where it is above the tolerance."""
    fitted, held_out = nested.rows.folds[0]
    coordinates = principal_coordinates(vectors[fitted], vectors[held_out])
    largest = 0.0
    for model in fit_logistic_path(coordinates, nested.rows.y[fitted], penalties):
        exact = plain_model(model.C, tol=1e-7).fit(vectors[fitted].astype(np.float64), nested.rows.y[fitted])
        theirs = exact.predict_proba(vectors[held_out].astype(np.float64))
        difference = float(np.abs(model.probabilities(coordinates.others) - theirs).max())
        if difference > TOLERANCE:
            raise AssertionError(f"C {model.C:g}: probabilities differ by {difference:.1e}")
        largest = max(largest, difference)
    return largest


def loop_over_folds(vectors: np.ndarray, nested: NestedRows, n_folds: int) -> float:
    """Seconds of the plain nested cross-validation on some of the folds."""
    y, labels = nested.rows.y, nested.rows.labels
    assert labels is not None
    start = time.perf_counter()
    for (fitted, held_out), inner in list(zip(nested.rows.folds, nested.inner, strict=True))[:n_folds]:
        losses = np.zeros((len(inner), len(PENALTIES)))
        answers = []
        for place, C in enumerate(PENALTIES):
            for row, (fit_on, judged) in enumerate(inner):
                model = plain_model(C).fit(vectors[fit_on], y[fit_on])
                losses[row, place] = log_loss(y[judged], model.predict_proba(vectors[judged]), labels) or 0.0
            # At every penalty, since the outer folds choose the penalty of the refit.
            answers.append(plain_model(C).fit(vectors[fitted], y[fitted]).predict_proba(vectors[held_out]))
        answers[int(losses.mean(axis=0).argmin())].argmax(axis=1)
    return time.perf_counter() - start


def better_thread_count(vectors: np.ndarray, nested: NestedRows) -> int:
    """One thread or one a core, whichever fits scikit-learn's model faster: its matrices are small."""
    fitted, seconds = nested.rows.folds[0][0], {}
    for n_threads in (1, usable_cores()):
        with threadpool_limits(n_threads):
            start = time.perf_counter()
            plain_model(PENALTIES[1]).fit(vectors[fitted], nested.rows.y[fitted])
            seconds[n_threads] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


def vectors_of_train(trait: Trait) -> tuple[np.ndarray, NestedRows]:
    """Mean-pooled vectors of the train sentences at layer 0, and their folds."""
    labels, train = trait.store.labels, trait.train
    nested, _ = nested_rows(labels[train], trait.store.groups[train], np.unique(labels), N_FOLDS, SEED)
    return trait.vectors(0, "mean")[train], nested


def whole_command(store: Path, output: Path, n_layers: int) -> float:
    """Seconds of the command, in a process of its own, imports included."""
    layers = [EMBEDDINGS, *map(str, range(n_layers - 1))]
    command = [
        sys.executable,
        str(SCRIPT),
        "--input",
        str(store),
        "--output",
        str(output),
        "--layers",
        *layers,
    ]
    start = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if ran.returncode:
        raise SystemExit(f"sweep_layers.py failed:\n{ran.stderr}")
    return seconds


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer layers, and one fold of the loop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print."""
    arguments = build_parser().parse_args(argv)
    n_layers, n_folds = (N_LAYERS_QUICK, 1) if arguments.quick else (N_LAYERS, N_FOLDS)
    print(f"{N_SENTENCES:,} sentences x {N_LAYERS} layers x {D_MODEL:,} dimensions, {usable_cores()} cores")
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load average at the start: {load}; {N_DISTINCT} of the layers differ, the others are hard links")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_store(folder / "store", np.random.default_rng(SEED))
        (trait,) = open_traits([folder / "store"])
        vectors, nested = vectors_of_train(trait)
        penalties = PENALTIES[::2] if arguments.quick else PENALTIES
        with threadpool_limits(1):
            largest = check(vectors, nested, penalties)
        print(f"\nprobabilities on a fold, {len(penalties)} penalties: scikit-learn's to {largest:.0e}")
        n_threads = better_thread_count(vectors, nested)
        with threadpool_limits(n_threads):
            of_layer = loop_over_folds(vectors, nested, n_folds) * N_FOLDS / n_folds
        measured = whole_command(folder / "store", folder / "sweep", n_layers)
    loop, seconds = of_layer * N_LAYERS, measured * N_LAYERS / n_layers
    basis = f"{n_folds} of {N_FOLDS} folds of one layer, {n_threads} threads"
    print(f"scikit-learn's loop  {loop:8.1f} s for {N_LAYERS} layers, from {basis}")
    print(f"the whole command    {seconds:8.1f} s for {N_LAYERS} layers, from {n_layers} layers")
    print(f"ratio                {loop / seconds:8.1f}")
    if arguments.json is not None:
        write_json(arguments.json, {"ratio_vs_sklearn_loop": loop / seconds, "seconds_full": seconds})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
