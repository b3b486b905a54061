"""Every script that writes results, small, on sound inputs: what the faults are tried on."""

import contextlib
import functools
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from concept_evaluation.bootstrap import bootstrap_intervals
from pipeline_common.files import read_json, write_text
from s0_dataset_generation import expand_dataset
from s0_dataset_generation.labelled_sentences import read_labelled_sentences, write_labelled_sentences
from s1_compute_all_features import extract_sae_features
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features import analyze_features, evidence
from s2_find_top_features.ranked_features import read_results
from s3_feature_activation_graphs import build_report, visualize_activations
from s3_feature_activation_graphs.picture_run import PictureRun
from s4_classifier_data_prep import generate_datasets
from s4_classifier_data_prep.classifier_dataset import read_dataset
from s5_classifier_training.framework import metrics, sweep_layers, sweep_pictures, train
from s5_classifier_training.framework.experiment_folder import read_results as read_classifier_results
from tests.s1.conftest import arguments as extraction_arguments
from tests.s1.conftest import write_sentences_csv

SEEDS = [("Ravi planted beans along the fence.", 0), ("I told them the brakes were new.", 3)]


@dataclass(frozen=True)
class World:
    """Sound inputs, for reading only.

    Attributes:
        folder: where they are.
        base_url: of a server that stands for the language model's.
        configuration: of a tiny model and its SAEs.
    """

    folder: Path
    base_url: str
    configuration: Path


@dataclass(frozen=True)
class Stage:
    """A script and how it is tried.

    Attributes:
        name: for the test's id.
        module: the script.
        arguments: from the world and the folder that takes everything it writes.
        output: that it claims, relative to that folder.
        read: its result by the reader that users of it call; raises where there is none.
        resume: flags that go on with an unfinished output.
        unlike: names of files whose bytes hold times.
        keeps_old: with --overwrite, the old result stays until the new one is whole.
    """

    name: str
    module: Any
    arguments: Callable[[World, Path], list[str]]
    output: str
    read: Callable[[Path], object]
    resume: list[str] = field(default_factory=list)
    unlike: tuple[str, ...] = ()
    keeps_old: bool = True


def _expand(world: World, folder: Path) -> list[str]:
    counts = [text for label in range(4) for text in (f"--label{label}-count", "3")]
    where = ["--output-dir", str(folder), "--base-url", world.base_url, "--concurrency", "1"]
    seeds = world.folder / "seeds.csv"
    return ["--trait", "Dishonesty", "--seed-file", str(seeds), "--batch-size", "3", *counts, *where]


def _train(world: World, folder: Path) -> list[str]:
    working = folder / "experiment" / "working"
    if not working.exists():
        working.mkdir(parents=True)
        (working / "config.yaml").write_text("n_folds: 2\nestimators:\n  - name: nearest_centroid\n")
        (working / "dataset.config").write_text(f"dataset: {world.folder / 'lies.npz'}\n")
    return [str(working.parent)]


def _sweep(world: World, folder: Path) -> list[str]:
    fast = ["--estimators", "nearest_centroid", "--folds", "2", "--layers", "0", "1", "--workers", "1"]
    return ["--input", str(world.folder / "lies_features"), "--output", str(folder / "sweep"), *fast]


STAGES = [
    Stage(
        "s0",
        expand_dataset,
        _expand,
        "dishonesty.csv",
        lambda folder: read_labelled_sentences(folder / "dishonesty.csv"),
        unlike=("dishonesty_provenance.json",),  # it counts the requests of the last run
        keeps_old=False,  # it never takes the name of a dataset that is there
    ),
    Stage(
        "s1",
        extract_sae_features,
        lambda world, folder: extraction_arguments(
            world.folder / "tiny.csv", folder / "store", world.configuration, "--limit", "6"
        ),
        "store",
        lambda folder: FeatureStore(folder / "store"),
        resume=["--resume"],
        unlike=("run_log.json",),
        keeps_old=False,  # a store may be larger than what is free: --overwrite deletes it first, and says so
    ),
    Stage(
        "s2",
        analyze_features,
        lambda world, folder: [
            *("--input", str(world.folder / "lies_features"), "--output", str(folder / "results")),
            *("--permutations", "5", "--top-n", "6", "--workers", "1"),
        ],
        "results",
        lambda folder: read_results(folder / "results"),
    ),
    Stage(
        "s3",
        visualize_activations,
        lambda world, folder: [
            *(
                "--s2-results",
                str(world.folder / "results"),
                "--s1-data",
                str(world.folder / "lies_features"),
            ),
            *("--output", str(folder / "plots"), "--dpi", "30", "--figsize", "4", "3"),
            *("--max-sentences", "6", "--top-n", "2", "--workers", "1"),
        ],
        "plots",
        lambda folder: read_json(folder / "plots" / "summary_statistics.json", "summary"),
    ),
    Stage(
        "s3 report",
        build_report,
        lambda world, folder: [
            *(
                "--s2-results",
                str(world.folder / "results"),
                "--s1-data",
                str(world.folder / "lies_features"),
            ),
            *("--output", str(folder / "lies.html"), "--top-n", "2", "--max-sentences", "4"),
        ],
        "lies.html",
        lambda folder: (folder / "lies.html").read_bytes().index(b"</html>"),
    ),
    Stage(
        "s4",
        generate_datasets,
        lambda world, folder: [
            *("--strategy", "hidden-to-concept", "--layer", "1"),
            *("--input", str(world.folder / "lies_features"), "--output", str(folder / "lies.npz")),
        ],
        "lies.npz",
        lambda folder: read_dataset(folder / "lies.npz"),
    ),
    Stage(
        "s5",
        train,
        _train,
        "experiment/working",
        lambda folder: read_classifier_results(folder / "experiment" / "working")["best"],
        unlike=("model.skops", "results.json"),  # the model's archive holds the time, the results its digest
        keeps_old=False,  # a training goes over the last one; checkpoint.py keeps versions
    ),
    Stage(
        "s5 sweep",
        sweep_layers,
        _sweep,
        "sweep",
        lambda folder: read_json(folder / "sweep" / "layer_sweep.json", "sweep"),
    ),
]


def build_world(folder: Path, base_url: str, configuration: Path) -> World:
    """Make the inputs by the scripts themselves; ``folder`` holds a synthetic store already."""
    world = World(folder, base_url, configuration)
    write_labelled_sentences(folder / "seeds.csv", [text for text, _ in SEEDS], [label for _, label in SEEDS])
    write_sentences_csv(folder / "tiny.csv")
    for stage in STAGES:
        if stage.name in ("s2", "s4"):
            assert quietly(stage, stage.arguments(world, folder)) == (0, "")
    return world


def quietly(stage: Stage, command: list[str]) -> tuple[int, str]:
    """Exit code of a script's main, and what it said at its end where that was no success."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = stage.module.main(command)
    return code, errors.getvalue().splitlines()[-1] if code else ""


def contents(stage: Stage, folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes; None for one whose bytes hold times."""
    return {
        str(path.relative_to(folder)): None if path.name in stage.unlike else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden(folder: Path) -> list[str]:
    """What stands there under a hidden name: locks, temporary files, unfinished folders."""
    return sorted(path.name for path in folder.rglob(".*"))


def is_done(stage: Stage, folder: Path) -> bool:
    """Whether the stage's own reader takes what is there for a result."""
    try:
        stage.read(folder)
    except Exception:  # whatever it is: nobody reads a result there
        return False
    return True


@contextlib.contextmanager
def without_slow_parts() -> Iterator[None]:
    """Leave out what takes most of the time and has nothing to do with faults."""
    with pytest.MonkeyPatch.context() as patch:
        few = functools.partial(bootstrap_intervals, n_resamples=20)
        patch.setattr(metrics, "bootstrap_intervals", few)
        patch.setattr(evidence, "N_RESAMPLES", 20)
        patch.setattr(PictureRun, "overviews", {})
        patch.setattr(sweep_pictures, "draw_all_traits", lambda path, *_: write_text(path, "a picture"))
        yield


@contextlib.contextmanager
def at_write(number: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Do something in the write of that number, when its content is there and its name is not.

    Every write of the project ends with an fsync. Yields a list that holds the writes so far.
    """
    done: list[int] = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        if len(done) == number:
            action()
        done.append(number)
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        yield done


def start_over(stage: Stage, world: World, folder: Path) -> list[str]:
    """The command line in a fresh folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return stage.arguments(world, folder)


def script(stage: Stage) -> list[str]:
    """How a user starts it."""
    return [sys.executable, stage.module.__file__]
