"""Bad input of stage 5: the two configuration files, results, versions, new sentences, models."""

import itertools
import json

from pipeline_common.files import sealed, sha256_of_file
from tests.bad_input.cases import Kind, case, content, cut, entry, folder_instead, gone, swap, without

TRAINING = "s5_classifier_training.framework.train"


def doubled_references(depth):
    """A YAML document of a few lines whose value, written out, would have 9^depth entries."""
    names = [f"n{place}" for place in range(depth)]
    lines = [f"n0: &n0 [{', '.join('x' * 9)}]"]
    for old, new in itertools.pairwise(names):
        lines.append(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]")
    return "\n".join([*lines, f"seed: *{names[-1]}", "estimators: []", ""])


EXPERIMENT = Kind(
    name="config.yaml",
    script=TRAINING,
    arguments="experiment",
    parts="lies.npz experiment/working",
    file="experiment/working/config.yaml",
    where="config.yaml",
    cases=(
        case("empty", content(""), "keys and values"),
        case("a list", content("- logistic\n"), "keys and values"),
        case("not YAML", content("estimators: [\n"), "YAML"),
        case("a tab", content("estimators:\n\t- name: ridge\n"), "YAML"),
        case("not UTF-8", content(b"seed: \xff\n"), "utf-8"),
        case("an unknown key", swap("n_folds", "folds"), "folds"),
        case("an unknown estimator", swap("nearest_centroid", "xgboost"), "estimators.0.name", "xgboost"),
        case("one fold", swap("2", "1"), "n_folds"),
        case("a day that there is not", content("seed: 2020-13-45\n"), "YAML", "month"),
        case("a tag that builds nothing", content("seed: !!int ''\n"), "YAML"),
        case("a Python object", content("seed: !!python/object/apply:os.getcwd []\n"), "YAML", "python"),
        case("deeply nested", content("seed: " + "[" * 5000), "YAML"),
        case("a bomb of references", content(doubled_references(14)), "seed"),
    ),
)


def one_estimator(entry):
    """A configuration of this estimator alone."""
    return content(f"n_folds: 2\nestimators:\n  - {entry}\n")


ESTIMATOR = Kind(
    name="estimators that do not suit",
    script=TRAINING,
    arguments="experiment",
    parts="lies.npz experiment/working",
    file="experiment/working/config.yaml",
    where="experiment",
    cases=(
        case("an unknown parameter", one_estimator("{name: nearest_centroid, params: {C: 1.0}}"), "params.C"),
        case(
            "a parameter of another kind",
            one_estimator("{name: nearest_centroid, params: {shrink_threshold: much}}"),
            "shrink_threshold",
        ),
        case("more inputs than there are", one_estimator("{name: ridge, top_k: 99}"), "top_k", "99"),
        case("an unknown search", one_estimator("{name: ridge, search: {depth: [1, 2]}}"), "depth"),
        case("a search of another kind", one_estimator("{name: ridge, search: {alpha: [a, b]}}"), "alpha"),
        case("a negative number", one_estimator("{name: ridge, params: {alpha: -1.0}}"), "alpha"),
        case("a classifier for a regression", content(
            "task: regression\nestimators: [{name: logistic}]\n"
        ), "logistic", "regression"),
    ),
)  # fmt: skip

DATASET_CONFIG = Kind(
    name="dataset.config",
    script=TRAINING,
    arguments="experiment",
    parts="lies.npz experiment/working",
    file="experiment/working/dataset.config",
    where="dataset.config",
    cases=(
        case("missing", gone, "no such file"),
        case("empty", content(""), "dataset"),
        case("a bare path", content("../../lies.npz\n"), "keys and values"),
        case("no dataset", content("made_by: me\n"), "dataset"),
        case("an empty path", content("dataset: ''\n"), "dataset"),
        case("a list of paths", content("dataset: [a, b]\n"), "dataset"),
        case("a NUL in the path", content('dataset: "a\\0b"\n'), "dataset"),
        case("a path of 10,000 letters", content(f"dataset: {'a' * 10_000}\n"), "dataset"),
        case("a folder", content("dataset: ..\n"), "does not exist"),
        case("a key of the other file", content("dataset: x\nseed: 1\n"), "seed", "config.yaml"),
    ),
)

RESULTS = Kind(
    name="classifier results",
    script="s5_classifier_training.framework.checkpoint",
    arguments="experiment --name second --message again",
    parts="experiment/working",
    file="experiment/working/results.json",
    where="results.json",
    cases=(
        case("missing", gone, "train.py"),
        case("cut", cut(0.5), "JSON"),
        case("a list", content("[]"), "holds no results"),
        case("another version", entry("format_version", 0, seal=True), "format 0"),
        case("no files", without("files"), "files"),
        case("files as a list", entry("files", ["model.skops"], seal=True), "files"),
        case("a file outside", entry("files", {"../../lies.csv": "0"}, seal=True), "files", "../../lies.csv"),
        case(
            "a file that it does not write",
            entry("files", {"/etc/passwd": "0"}, seal=True),
            "files",
            "/etc/passwd",
        ),
        case("a checksum as a number", entry("files", {"model.skops": 5}, seal=True), "files.model.skops"),
        case("no dataset", without("dataset"), "dataset"),
        case("a dataset without store", without("dataset.store"), "dataset.store"),
        case("no seed", without("seed"), "seed"),
        case("no versions of libraries", without("library_versions"), "library_versions"),
    ),
)

COMPARED = Kind(
    name="results to compare",
    script="s5_classifier_training.framework.compare",
    arguments="experiment --detailed --output out",
    parts="experiment/working",
    file="experiment/working/results.json",
    where="results",
    cases=(
        case("no score", without("main_score"), "main_score"),
        case("a score that was not taken", entry("main_score", "beauty", seal=True), "main_score"),
        case("no baselines", without("baselines"), "baselines"),
        case("a baseline as text", entry("baselines.majority", "good", seal=True), "baselines.majority"),
        case("a test value as text", entry("test.accuracy.value", "good", seal=True), "test.accuracy.value"),
        case("a mean as text", entry("cv_mean", "high", seal=True), "cv_mean"),
        case("estimators as an object", entry("estimators", {}, seal=True), "estimators"),
        case("warnings as a number", entry("warnings", 3, seal=True), "warnings"),
        case("not finite", swap('"cv_std": 0.', '"cv_std": NaN, "x": 0.'), "NaN"),
    ),
)


def resealed(key, value):
    """A version whose results were changed and whose checksums were made to fit: a folder from elsewhere."""

    def damage(path):
        entry(key, value, seal=True)(path)
        version = path.with_name("version.json")
        document = json.loads(version.read_text())
        document["checksums"]["results.json"] = sha256_of_file(path)
        version.write_text(json.dumps(sealed(document)))

    return damage


PREDICTION = "--checkpoint experiment/v1_first --input lies.csv --output out.csv"
VERSION_RESULTS = Kind(
    name="results of a version",
    script="s5_classifier_training.framework.predict",
    arguments=PREDICTION,
    parts="lies.csv experiment/v1_first",
    file="experiment/v1_first/results.json",
    where="v1_first",
    cases=(
        case("changed by hand", entry("seed", 5), "results.json"),
        case("cut", cut(0.5), "results.json"),
        case("no format", resealed("format", None), "results.json"),
        case("no dataset", resealed("dataset", None), "results.json", "dataset"),
        case("a dataset as text", resealed("dataset", "lies"), "results.json", "dataset"),
        case("inputs as text", resealed("dataset.input", "states"), "results.json", "dataset.input"),
        case(
            "layers as text", resealed("dataset.input.layers", "all"), "results.json", "dataset.input.layers"
        ),
        case("no extraction", resealed("dataset.extraction", None), "results.json", "dataset.extraction"),
        case("types as a number", resealed("model_types", 3), "results.json", "model_types"),
        case("a foreign type", resealed("model_types", ["os.system"]), "model.skops", "os.system"),
        case("labels as text", resealed("labels", "all"), "results.json", "labels"),
        case("inputs in words", resealed("n_inputs", "many"), "results.json", "n_inputs"),
    ),
)


def sealed_without(key):
    """A version whose description lacks a key and bears the digest of what it holds."""

    def damage(path):
        without(key)(path)
        path.write_text(json.dumps(sealed(json.loads(path.read_text()))))

    return damage


VERSION = Kind(
    name="version.json",
    script="s5_classifier_training.framework.new_experiment",
    arguments="experiment --from v1_first --note again --overwrite",
    parts="experiment lies.npz",
    file="experiment/v1_first/version.json",
    where="v1_first",
    cases=(
        case("missing", gone, "v1_first"),
        case("cut", cut(0.5), "v1_first"),
        case("another version", entry("format_version", 1), "v1_first"),
        case("a file outside", entry("checksums", {"../../lies.csv": "0"}), "v1_first"),
        case("checksums as a list", entry("checksums", []), "v1_first"),
        case("another seal", entry("sha256", "0"), "version.json"),
        case("another message", entry("message", "mine"), "version.json"),
        case("no dataset", sealed_without("dataset"), "dataset"),
        case("a dataset without checksum", sealed_without("dataset.sha256"), "dataset.sha256"),
    ),
)

NEW_SENTENCES = Kind(
    name="sentences to predict",
    script="s5_classifier_training.framework.predict",
    arguments=PREDICTION,
    parts="lies.csv experiment/v1_first",
    file="lies.csv",
    where="lies.csv",
    cases=(
        case("missing", gone, "no such file"),
        case("a folder", folder_instead, "directory"),
        case("empty", content(""), "empty"),
        case("another column", content("text\nOne.\n"), "'sentence'"),
        case("header alone", content("sentence\n"), "no sentences"),
        case("a blank sentence", content('sentence\n""\n'), "line 2"),
        case("label 4", content("sentence,concept_strength_label\nOne.,4\n"), "line 2", "'4'"),
        case("Latin-1", content(b"sentence\nCaf\xe9.\n"), "byte 12"),
        case("a quote inside", content('sentence\n"One" two.\n'), "line 2"),
        case("NUL", content("sentence\n\0\n"), "line 2"),
    ),
)


def another_ending(path):
    """Its last bytes are others."""
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")


MODEL = Kind(
    name="model file",
    script="s5_classifier_training.framework.predict",
    arguments=PREDICTION,
    parts="lies.csv experiment/v1_first",
    file="experiment/v1_first/model.skops",
    where="v1_first",
    cases=(
        case("missing", gone, "model.skops"),
        case("cut", cut(0.5), "model.skops"),
        case("another ending", another_ending, "model.skops"),
        case("empty", content(b""), "model.skops"),
    ),
)

KINDS = (
    EXPERIMENT,
    ESTIMATOR,
    DATASET_CONFIG,
    RESULTS,
    COMPARED,
    VERSION_RESULTS,
    VERSION,
    NEW_SENTENCES,
    MODEL,
)
