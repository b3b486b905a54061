"""A small, sound project folder: one of every file that a script reads, made by the scripts themselves."""

import contextlib
import io
import logging
import random
import shutil
from pathlib import Path

from s0_dataset_generation.labelled_sentences import write_labelled_sentences
from s1_compute_all_features.feature_store import read_manifest, write_manifest
from s2_find_top_features import analyze_features
from s3_feature_activation_graphs import build_report
from s4_classifier_data_prep import generate_datasets
from s5_classifier_training.framework import checkpoint, sweep_layers, train
from tests.synthetic_store import write_synthetic_store

SECRETS = {
    "OPENAI_API_KEY": "sk-secret-of-openai",
    "HF_TOKEN": "hf_secret_of_the_hub",
    "AWS_SECRET_ACCESS_KEY": "secret-of-a-cloud",
}
"""Environment variables that are set while the world is made."""
OUTPUT = "output.txt"
"""What the scripts that made the world said."""

CONFIGURATION = """{
  "format_version": 1, "description": "for tests", "model": {"id": "model"}, "release": "", "repo_id": "",
  "sae_root": "saes", "weights_format": "gemma_scope",
  "saes": [
    {"name": "layer_00_l0_8", "layer": 0, "average_l0": 8, "hook": "blocks.0.hook_resid_post",
     "sae_id": "a", "path": "layer_0/l0_8", "neuronpedia_id": ""},
    {"name": "layer_01_l0_8", "layer": 1, "average_l0": 8, "hook": "blocks.1.hook_resid_post",
     "sae_id": "b", "path": "layer_1/l0_8", "neuronpedia_id": ""}
  ]
}
"""
ETHICS = """label,scenario
1,She kept the change that was not hers. [SEP] dishonest
0,He gave the wallet back to its owner. [SEP] dishonest
1,I told them the car had never been hit. [SEP] dishonest
0,We paid for the broken window at once. [SEP] dishonest
"""
JOURNAL = """{"reply_journal": 1}
{"digest": "a", "items": [], "failure": null, "prompt_tokens": 1, "completion_tokens": 1, "reply": null}
"""


def build_world(folder: Path, tiny: Path) -> Path:
    """Make the project; every command in here has to succeed.

    Args:
        folder: where.
        tiny: a folder with a configuration, a tiny model and its SAEs, to be copied.
    """
    shutil.copytree(tiny, folder / "tiny")
    different = ["".join(random.Random(n).choices("abcdefgh ijklmnop ", k=40)) for n in range(12)]
    write_labelled_sentences(folder / "different.csv", different, [index % 4 for index in range(12)])
    store = write_synthetic_store(folder / "lies_features", n_sentences=40, d_sae=32, d_model=8)
    manifest = read_manifest(store)
    manifest["model"]["dtype"] = "float32"  # what predict.py needs to know of a real extraction
    manifest["settings"] = {"tokens": "all", "sae_dtype": "float32"}
    write_manifest(store, manifest)
    sentences = [f"Sentence number {index} says something of its own." for index in range(12)]
    write_labelled_sentences(folder / "lies.csv", sentences, [index % 4 for index in range(12)])
    (folder / "ethics.csv").write_text(ETHICS)
    (folder / "labelled_journal.jsonl").write_text(JOURNAL)
    (folder / "configuration.json").write_text(CONFIGURATION)
    working = folder / "experiment" / "working"
    working.mkdir(parents=True)
    (working / "config.yaml").write_text("n_folds: 2\nestimators:\n  - name: nearest_centroid\n")
    (working / "dataset.config").write_text("dataset: ../../lies.npz\n")
    ranking, sweep = folder / "results", folder / "sweep"
    commands = [
        (analyze_features, f"--input {store} --output {ranking} --permutations 10 --top-n 6 --workers 1"),
        (
            generate_datasets,
            f"--strategy hidden-to-concept --layer 1 --input {store} --output {folder / 'lies.npz'}",
        ),
        (train, f"{working.parent}"),
        (checkpoint, f"{working.parent} --name first --message kept"),
        (
            sweep_layers,
            f"--input {store} --output {sweep} --layers 1 --workers 1 "
            "--estimators nearest_centroid --folds 2",
        ),
        (
            build_report,
            f"--s2-results {ranking} --s1-data {store} --layer-sweep {sweep / 'layer_sweep.csv'} "
            f"--output {folder / 'lies.html'}",
        ),
    ]
    said = io.StringIO()
    log = logging.StreamHandler(said)
    logging.getLogger().addHandler(log)
    for module, arguments in commands:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = module.main(arguments.split())
        assert code == 0, f"{module.__name__} {arguments}: {said.getvalue()}"
    logging.getLogger().removeHandler(log)
    (folder / OUTPUT).write_text(said.getvalue())
    return folder


def copy_parts(world: Path, target: Path, parts: str) -> Path:
    """Copy some files and folders of the world, all of them writable."""
    for part in parts.split():
        source = world / part
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / part, copy_function=shutil.copyfile)
            for folder in [target / part, *(path for path in (target / part).rglob("*") if path.is_dir())]:
                folder.chmod(0o755)
        else:
            shutil.copyfile(source, target / part)
    return target


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content; None for what is no file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
