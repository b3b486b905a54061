"""Every file that a stage reads, cut short, with a bit turned round, and of another version.

What is then read is what was written, or one line says what is wrong. Where a format holds no digest of its
text, a turned bit may give another valid text, as an edit would: those formats are named below.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, read_npz, write_json, write_npz
from s0_dataset_generation.labelled_sentences import read_labelled_sentences
from s0_dataset_generation.reply_journal import Outcome, ReplyJournal
from s1_compute_all_features.encoder_matrix import matrix_from_npz, matrix_from_safetensors
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.sae_configurations import read_sae_configurations
from s2_find_top_features.ranked_features import read_all_features, read_examples, read_results
from s4_classifier_data_prep.classifier_dataset import read_dataset
from s5_classifier_training.framework import checkpoint
from s5_classifier_training.framework.experiment_folder import find_version, refuse_altered
from s5_classifier_training.framework.experiment_folder import read_results as read_scores
from s5_classifier_training.framework.model_file import load_model
from tests.faults.stages import STAGES, quietly, start_over

CUTS, FLIPS = 25, 120


@dataclass(frozen=True)
class Format:
    """A file and its reader.

    Attributes:
        name: of the format.
        path: of the file, below the folder of `files`.
        read: what a user of the file does; from that folder.
        notices: every turned bit that changes what is read is noticed. False where the text of the file
            is a user's own, or a publisher's, and nothing says what it should be.
    """

    name: str
    path: str
    read: Callable[[Path], Any]
    notices: bool = True


def everything_in(store: FeatureStore) -> list[Any]:
    states = [store.hidden_states(layer) for layer in store.layers]
    dense = [store.activations(sae).to_dense() for sae in store.saes]
    return [store.sentences, store.labels, store.held_out, *vars(store.tokens).values(), *states, *dense]


def journalled(path: Path) -> list[Any]:
    journal = ReplyJournal(path)
    return [journal.get("a"), journal.get("b")]


def matrix(folder: Path) -> list[Any]:
    arrays = read_npz(folder / "params.npz", ("b_enc", "threshold"), "SAE")
    return [matrix_from_npz(folder / "params.npz", "W_enc").numpy(), *arrays.values()]


def version_of(folder: Path) -> Any:
    version = find_version(folder / "experiment", "1")
    refuse_altered(version)
    return [version.content]


FORMATS = [
    Format(
        "labelled CSV", "tiny.csv", lambda f: vars(read_labelled_sentences(f / "tiny.csv")), notices=False
    ),
    Format("reply journal", "journal.jsonl", lambda f: journalled(f / "journal.jsonl")),
    Format(
        "SAE configuration",
        "tiny.json",
        lambda f: read_sae_configurations(f / "tiny.json"),
        notices=False,
    ),
    Format("SAE params.npz", "params.npz", matrix),
    Format(
        "SAE safetensors",
        "sae_weights.safetensors",
        lambda f: [matrix_from_safetensors(f / "sae_weights.safetensors", "W_enc").numpy()],
        notices=False,
    ),
    *(
        Format(f"feature store: {path}", f"store/{path}", lambda f: everything_in(FeatureStore(f / "store")))
        for path in (
            "manifest.json",
            "sentences.csv",
            "block_0000/tokens.npz",
            "block_0000/hidden_layer_01.npz",
            "block_0000/sae_layer_01_l0_8.npz",
        )
    ),
    *(
        Format(f"ranked features: {path}", f"results/{path}", lambda f: vars(read_results(f / "results")))
        for path in ("ranked_features.csv", "falling_features.csv", "summary.json")
    ),
    Format(
        "ranked features: feature_examples.json",
        "results/feature_examples.json",
        lambda f: [vars(read_results(f / "results")), read_examples(f / "results")],
    ),
    Format(
        "ranked features: all_features",
        "results/all_features/layer_01_l0_8.npz",
        lambda f: read_all_features(f / "results", "layer_01_l0_8"),
    ),
    Format("classifier dataset", "lies.npz", lambda f: vars(read_dataset(f / "lies.npz"))),
    Format(
        "results.json", "experiment/working/results.json", lambda f: read_scores(f / "experiment" / "working")
    ),
    *(
        Format(f"checkpoint: {path}", f"experiment/v1_first/{path}", version_of)
        for path in ("version.json", "results.json", "model.skops", "predictions.csv")
    ),
]


@pytest.fixture(scope="module")
def files(world, tmp_path_factory):
    """One of every file, small."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("s2", "s5"):
        stage = next(stage for stage in STAGES if stage.name == name)
        part = start_over(stage, world, folder / name)
        assert quietly(stage, part) == (0, "")
    (folder / "s2" / "results").rename(folder / "results")
    (folder / "s5" / "experiment").rename(folder / "experiment")
    checkpoint.make_version(folder / "experiment", "first", "kept")
    for path in [folder / "experiment" / "v1_first", *(folder / "experiment" / "v1_first").iterdir()]:
        path.chmod(0o755)
    (folder / "lies.npz").write_bytes((world.folder / "lies.npz").read_bytes())
    (folder / "tiny.csv").write_bytes((world.folder / "tiny.csv").read_bytes())
    (folder / "tiny.json").write_bytes(world.configuration.read_bytes())
    stage = next(stage for stage in STAGES if stage.name == "s1")
    small = [*stage.arguments(world, folder), "--limit", "2", "--layers", "1", "--saes", "layer_01_l0_8"]
    assert quietly(stage, small) == (0, "")
    journal = ReplyJournal(folder / "journal.jsonl")
    journal.append("a", Outcome(items=[{"id": "t1", "sentence": "He kept the change."}], reply="{}"))
    journal.append("b", Outcome(failure="no answer: timeout"))
    weights = {"W_enc": np.arange(12, dtype=np.float32).reshape(3, 4), "b_enc": np.ones(4, np.float32)}
    write_npz(folder / "params.npz", {**weights, "threshold": np.ones(4, np.float32)})
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def same(one: Any, other: Any) -> bool:
    """Whether two readings are equal, arrays by their values."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and _equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@pytest.fixture
def damaged(request, files):
    """Puts other bytes into a file of the folder, and the old ones back at the end."""
    path = files / request.param.path
    whole = path.read_bytes()
    yield request.param, path, whole
    path.write_bytes(whole)


def outcomes(form: Format, files: Path, path: Path, variants: list[bytes], wanted: Any) -> dict[str, int]:
    """How many were refused, read as they were, and read as something else. Anything else is an error."""
    counts = {"refused": 0, "same": 0, "other": 0}
    for content in variants:
        path.write_bytes(content)
        try:
            found = form.read(files)
        except UserError:
            counts["refused"] += 1
        else:
            counts["same" if same(found, wanted) else "other"] += 1
    return counts


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damaged", FORMATS, ids=lambda form: form.name, indirect=True)
def test_a_file_cut_short(damaged, files):
    form, path, whole = damaged
    wanted = form.read(files)
    lengths = sorted({round(share * (len(whole) - 1)) for share in np.linspace(0, 1, CUTS)})
    counts = outcomes(form, files, path, [whole[:length] for length in lengths], wanted)
    if form.name == "labelled CSV":
        return  # cut between two rows it is a shorter CSV, and nothing says how long it should be
    if form.name == "reply journal":
        assert counts["refused"] == 0  # an unfinished line is asked again, whatever was whole is kept
        return
    # A final line end may go without a loss.
    assert counts["other"] == 0
    assert counts["same"] <= 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("damaged", FORMATS, ids=lambda form: form.name, indirect=True)
def test_a_bit_turned_round(damaged, files):
    form, path, whole = damaged
    wanted = form.read(files)
    draw = random.Random(form.name)
    variants = []
    for _ in range(FLIPS):
        content = bytearray(whole)
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        variants.append(bytes(content))
    counts = outcomes(form, files, path, variants, wanted)
    assert counts["refused"] > 0
    if form.notices and form.name != "reply journal":
        assert counts["other"] == 0
    if form.name == "reply journal":
        # A turned line end makes the last line an unfinished one, which is asked again.
        assert counts["other"] <= 3


VERSIONS = {
    "feature store": ("store/manifest.json", lambda f: FeatureStore(f / "store"), "format 99, this program"),
    "ranked features": ("results/summary.json", lambda f: read_results(f / "results"), "format 99, this"),
    "results.json": (
        "experiment/working/results.json",
        lambda f: read_scores(f / "experiment" / "working"),
        "format 99, this program",
    ),
    "checkpoint": (
        "experiment/v1_first/version.json",
        lambda f: find_version(f / "experiment", "1"),
        "no version 1",
    ),
    "SAE configuration": ("tiny.json", lambda f: read_sae_configurations(f / "tiny.json"), "format_version"),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_another_version_is_refused(name, files):
    relative, read, message = VERSIONS[name]
    path = files / relative
    whole = path.read_bytes()
    content = read_json(path, name)
    assert content["format_version"] != 99
    read(files)
    try:
        write_json(path, {**content, "format_version": 99})
        with pytest.raises(UserError, match=message):
            read(files)
    finally:
        path.write_bytes(whole)


def test_a_dataset_of_another_version_is_refused(files, tmp_path):
    with np.load(files / "lies.npz") as archive:
        arrays = dict(archive)
    description = json.loads(str(arrays["metadata"]))
    arrays["metadata"] = np.array(json.dumps({**description, "format_version": 99}))
    write_npz(tmp_path / "lies.npz", arrays)
    with pytest.raises(UserError, match="format 99, this program reads format"):
        read_dataset(tmp_path / "lies.npz")


def test_a_journal_of_another_version_is_refused(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"reply_journal": 99}\n')
    with pytest.raises(UserError, match="line 1: not a line of this version's reply journal"):
        ReplyJournal(tmp_path / "journal.jsonl")


def test_a_damaged_model_is_never_loaded(files):
    """model.skops has no reader but through its version, which has its digest; cut, it loads nowhere."""
    working = files / "experiment" / "working"
    path, results = working / "model.skops", read_scores(working)
    whole = path.read_bytes()
    load_model(working, results)
    try:
        for length in (0, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match=r"refused: not a model that train\.py saved"):
                load_model(working, results)
    finally:
        path.write_bytes(whole)
