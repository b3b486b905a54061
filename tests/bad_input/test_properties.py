"""Files damaged at random: whatever stands in them, the scripts read them or say in one line what is wrong.

The choices are derived from the tests themselves (``derandomize``), so every run makes the same ones.
"""

import contextlib
import importlib
import io
import json
import shlex
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline_common.files import sealed
from tests.bad_input.world import copy_parts

MANY = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10),
    st.sampled_from([2**63, 10**40, -(2**70), 1e300, -0.5, "", "..", "../../x", "\0", "{}", "nan", "\u2028"]),
    st.text(max_size=8),
)
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)
)


def run(script, arguments, folder):
    """Exit code and stderr of a script's main, run in a folder."""
    errors = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
    ):
        try:
            code = importlib.import_module(script).main(shlex.split(arguments))
        except SystemExit as ended:
            code = ended.code
    return code, errors.getvalue()


def check(script, arguments, folder, names):
    """The script succeeds, or fails with one line that names one of the names."""
    code, errors = run(script, arguments, folder)
    assert code in (0, 1), errors
    if code == 1:
        message = errors.splitlines()[-1]
        assert message.startswith("error: ")
        assert any(name in message for name in names), message


def somewhere(data, document):
    """An object or list inside a JSON value, and one of its keys or places."""
    holder = document
    while True:
        keys = sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        deeper = isinstance(holder[key], dict | list) and len(holder[key]) > 0
        if not deeper or data.draw(st.booleans()):
            return holder, key
        holder = holder[key]


@contextlib.contextmanager
def scratch(world, parts):
    """A folder with copies of some parts of the world."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield copy_parts(world, folder, parts)
    finally:
        shutil.rmtree(folder)


JSON_FILES = {
    "manifest": (
        "s4_classifier_data_prep.generate_datasets",
        "--strategy hidden-to-feature --target-layer 1 --target-l0 8 --target-feature 3 --input-layer 0 "
        "--input lies_features --output out.npz",
        "lies_features",
        "lies_features/manifest.json",
        ("lies_features",),
    ),
    "manifest, ranked": (
        "s3_feature_activation_graphs.build_report",
        "--s2-results results --s1-data lies_features --output out.html --top-n 2",
        "lies_features results",
        "lies_features/manifest.json",
        ("lies_features",),
    ),
    "summary, displayed": (
        "s2_find_top_features.analyze_features",
        "--output results --display-only",
        "results",
        "results/summary.json",
        ("results",),
    ),
    "summary, reported": (
        "s3_feature_activation_graphs.build_report",
        "--s2-results results --s1-data lies_features --output out.html --top-n 2",
        "lies_features results",
        "results/summary.json",
        ("summary.json", "results", "lies_features"),
    ),
    "classifier results": (
        "s5_classifier_training.framework.compare",
        "experiment --detailed --output out",
        "experiment/working",
        "experiment/working/results.json",
        ("no results yet",),
    ),
    "classifier results, kept": (
        "s5_classifier_training.framework.checkpoint",
        "experiment --name second --message again",
        "experiment/working",
        "experiment/working/results.json",
        ("results.json", "working"),
    ),
    "version": (
        "s5_classifier_training.framework.new_experiment",
        "experiment --from v1_first --note again --overwrite",
        "experiment",
        "experiment/v1_first/version.json",
        ("v1_first",),
    ),
    # lies.csv cannot be split, so that no model is ever loaded.
    "SAE configuration": (
        "s1_compute_all_features.extract_sae_features",
        "--input lies.csv --output features --config configuration.json",
        "lies.csv configuration.json",
        "configuration.json",
        ("configuration.json", "lies.csv"),
    ),
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_json_value_is_another_one_or_missing(name, world):
    script, arguments, parts, file, names = JSON_FILES[name]
    sound = (world / file).read_text(encoding="utf-8")

    @MANY
    @given(st.data())
    def property_(data):
        document = json.loads(sound)
        holder, key = somewhere(data, document)
        if isinstance(holder, dict) and data.draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = data.draw(VALUES)
        if "sha256" in document:
            document = sealed(document)  # somebody who wrote it by intent
        with scratch(world, parts) as folder:
            (folder / file).write_text(json.dumps(document), encoding="utf-8")
            check(script, arguments, folder, names)

    property_()


CSV_FILES = {
    "sentences": (
        "s0_dataset_generation.label_sentences",
        "--trait Dishonesty --input-file lies.csv --output-file out.csv --dry-run",
        "lies.csv",
        "lies.csv",
        ("lies.csv",),
    ),
    "sentence table": (
        "s4_classifier_data_prep.generate_datasets",
        "--strategy hidden-to-concept --layer 1 --input lies_features --output out.npz",
        "lies_features",
        "lies_features/sentences.csv",
        ("lies_features",),
    ),
    "ranking": (
        "s4_classifier_data_prep.generate_datasets",
        "--strategy sae-to-concept --features results/ranked_features.csv "
        "--input lies_features --output out.npz",
        "lies_features results",
        "results/ranked_features.csv",
        ("ranked_features.csv",),
    ),
    "sweep": (
        "s3_feature_activation_graphs.build_report",
        "--s2-results results --s1-data lies_features --layer-sweep sweep/layer_sweep.csv --output out.html "
        "--top-n 1",
        "lies_features results sweep",
        "sweep/layer_sweep.csv",
        ("layer_sweep.csv",),
    ),
}
CELLS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["-1", "0", "3", "1e400", "nan", "9" * 30, "\u0663", "1,2", '"', "\r"]),
)


@pytest.mark.parametrize("name", CSV_FILES)
def test_a_csv_cell_is_another_one(name, world):
    script, arguments, parts, file, names = CSV_FILES[name]
    lines = (world / file).read_text(encoding="utf-8").split("\n")

    @MANY
    @given(st.integers(0, 3), st.integers(0, 60), CELLS)
    def property_(line, column, text):
        cells = lines[line].split(",")
        cells[column % len(cells)] = text
        damaged = "\n".join([*lines[:line], ",".join(cells), *lines[line + 1 :]])
        with scratch(world, parts) as folder:
            (folder / file).write_bytes(damaged.encode("utf-8", "replace"))
            check(script, arguments, folder, names)

    property_()


BINARY_FILES = {
    "hidden states": "hidden_layer_00.npz",
    "activations": "sae_layer_01_l0_8.npz",
    "tokens": "tokens.npz",
}


@pytest.mark.parametrize("name", BINARY_FILES)
def test_bytes_of_an_npz_are_others(name, world):
    script, arguments, parts, manifest, names = JSON_FILES["manifest"]
    file = Path(manifest).parent / "block_0000" / BINARY_FILES[name]
    sound = (world / file).read_bytes()

    # The headers are what can go wrong: data that changed has another checksum in the archive.
    @MANY
    @given(st.sampled_from([0, -1]), st.integers(0, 300), st.binary(min_size=1, max_size=4), st.booleans())
    def property_(end, offset, damage, cut):
        place = offset if end == 0 else max(len(sound) - offset, 0)
        damaged = sound[:place] + damage + (b"" if cut else sound[place + len(damage) :])
        with scratch(world, parts) as folder:
            (folder / file).write_bytes(damaged)
            check(script, arguments, folder, (*names, "feature 3"))

    property_()


@MANY
@given(st.text(st.sampled_from("aé: -[]{}&*!|>'\"#%@`,?1.e\n\t\0"), max_size=40))
@example("a: !!timestamp x")
@example("a: !!float .")
@example("a: !!bool maybe")
@example("? [a]\n: b")
@example("<<: 5")
@example("a: &a [*a]")
@example("estimators: &e [*e]")
def test_any_text_as_config_yaml(world, text):
    with scratch(world, "experiment/working") as folder:
        working = folder / "experiment" / "working"
        (working / "config.yaml").write_bytes(text.encode())
        check(
            "s5_classifier_training.framework.train", "experiment", folder, ("config.yaml", "dataset.config")
        )


@MANY
@given(st.text(max_size=30))
def test_any_text_as_the_path_of_a_dataset(world, text):
    with scratch(world, "experiment/working") as folder:
        config = folder / "experiment" / "working" / "dataset.config"
        config.write_text("dataset: " + json.dumps(text), encoding="utf-8")
        check("s5_classifier_training.framework.train", "experiment", folder, ("dataset.config",))


@MANY
@given(
    st.lists(
        st.sampled_from(["--layers", "--labels", "0-2", "-1", "nan", "1e9", "", "x", "--seed"]), max_size=4
    )
)
@pytest.mark.parametrize(
    ("script", "sound"),
    [
        (
            "s4_classifier_data_prep.generate_datasets",
            "--strategy hidden-to-concept --input s --output o.npz",
        ),
        ("s3_feature_activation_graphs.visualize_activations", "--s2-results r --s1-data s --output o"),
        ("s5_classifier_training.framework.sweep_layers", "--input s --output o"),
        ("s2_find_top_features.analyze_features", "--input s --output o"),
    ],
)
def test_arguments_at_random(script, sound, tmp_path, further):
    code, errors = run(script, shlex.join([*shlex.split(sound), *further]), tmp_path)
    assert code in (1, 2)  # there is no store s
    assert "error: " in errors.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
