"""SAEs of equal layer and l0, or without an l0: through stages 2, 3 and 4 with keys that tell them apart."""

import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_common.errors import UserError
from pipeline_common.files import read_json
from s1_compute_all_features.feature_keys import find_sae, needs_name
from s1_compute_all_features.feature_store import FeatureKey, FeatureStore, StoredSae, feature_key
from s2_find_top_features.analyze_features import main as analyze
from s2_find_top_features.ranked_features import RANKED, RankedResults, read_ranked_features, read_results
from s3_feature_activation_graphs.build_report import main as build_report
from s3_feature_activation_graphs.report_charts import anchor
from s3_feature_activation_graphs.visualize_activations import main as visualize
from s4_classifier_data_prep.classifier_dataset import read_dataset
from s4_classifier_data_prep.generate_datasets import main as generate
from tests.shared_l0 import write_shared_store

WIDE, NARROW = "layer_0_width_64_l0_72", "layer_0_width_32_l0_72"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shared_store(tmp_path_factory.mktemp("shared") / "lies_features", input_name="lies.csv")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared_too") / "caring_features"
    return write_shared_store(folder, input_name="caring.csv", seed=5)


@pytest.fixture(scope="module")
def results(store: Path, other: Path) -> Path:
    folder = store.parent / "results"
    command = ["--input", str(store), "--output", str(folder), "--permutations", "20", "--top-n", "12"]
    assert analyze([*command, "--contrast", str(other), "--workers", "1"]) == 0
    return folder


def keys_of(results: RankedResults) -> dict[str, str]:
    """SAE and feature to key, of the best and the falling features."""
    features = [*results.features, *results.falling]
    return {f"{feature.sae_name} {feature.feature_id}": feature.key for feature in features}


def test_the_ranking_has_a_key_for_each_feature_and_reads_it_back(store: Path, results: Path) -> None:
    opened, read = FeatureStore(store), read_results(results)
    assert {feature.sae_name for feature in read.features[:5]} == {sae.name for sae in opened.saes}
    keys = keys_of(read)
    assert len(set(keys.values())) == len(keys)
    assert {keys[f"{name} 3"] for name in ("layer_00_l0_8", WIDE, "layer_1-a")} == {
        "0:8:3",
        f"{WIDE}:3",
        "layer_1-a:3",
    }
    for feature in read.features:
        key = FeatureKey.parse(feature.key)
        assert opened.find_sae(key.layer, key.average_l0, key.sae_name).name == feature.sae_name
    matrix = read.summary["specificity"]
    assert [name.split()[0] for name in matrix] == ["lies", "caring"]
    assert next(iter(matrix)) == f"lies {read.features[0].key}"
    examples = read_json(results / "feature_examples.json", "examples")
    assert [example["key"] for example in examples] == [feature.key for feature in read.features]


def test_the_table_of_the_terminal_shows_the_names(results: Path, capsys: pytest.CaptureFixture) -> None:
    assert analyze(["--output", str(results), "--display-only"]) == 0
    told = capsys.readouterr().out.splitlines()
    head = next(line for line in told if line.startswith("rank"))
    (row,) = (line for line in told if f" {WIDE}:3 " in line and line.strip()[0].isdigit())
    assert "layer:l0:feature or SAE:feature" in head
    assert row.index("|") == head.index("|")


def test_a_table_without_keys_is_read_as_before(results: Path, tmp_path: Path) -> None:
    lines = (results / RANKED).read_text().splitlines()
    assert lines[0].endswith(",neuronpedia_url,key")
    old = tmp_path / RANKED
    old.write_text("\n".join(line.rsplit(",", 1)[0] for line in lines) + "\n")
    assert {feature.key.count(":") for feature in read_ranked_features(old)} == {2}


def test_a_key_of_another_feature_is_refused(results: Path, tmp_path: Path) -> None:
    text = (results / RANKED).read_text()
    changed = tmp_path / RANKED
    changed.write_text(text.replace(f",{WIDE}:3\n", ",0:71:3\n"))
    with pytest.raises(UserError, match=rf"key is '0:71:3', not 0:72:3 or {WIDE}:3"):
        read_ranked_features(changed)


def test_pictures_and_summary_take_both_forms(store: Path, results: Path, tmp_path: Path) -> None:
    keys = ["layer_00_l0_8:3", f"{WIDE}:3", f"{NARROW}:3", "layer_1-a:3", "layer_1-b:3"]
    command = ["--s2-results", str(results), "--s1-data", str(store), "--output", str(tmp_path / "plots")]
    few = ["--max-sentences", "2", "--workers", "1", "--dpi", "40"]
    assert visualize([*command, "--features", ",".join([*keys, "0:8:3"]), *few]) == 0
    document = read_json(tmp_path / "plots" / "summary_statistics.json", "summary")
    # The short form stays what it is called where it takes one SAE, however it was asked for.
    assert [feature["key"] for feature in document["features"]] == ["0:8:3", *keys[1:]]


@pytest.mark.parametrize("key", ["0:72:3", "1::3"])
def test_a_key_that_takes_several_saes_is_refused(
    store: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture, key: str
) -> None:
    command = ["--s2-results", str(results), "--s1-data", str(store), "--output", str(tmp_path / "plots")]
    assert visualize([*command, "--features", key]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error.split("error: ")[-1]
    assert error.endswith("by --target-sae NAME, in a key as NAME:feature_id")
    assert (
        f"{NARROW} (l0 72), {WIDE} (l0 72)" if key == "0:72:3" else "layer_1-a (l0 not published)"
    ) in error


def test_the_report_has_a_section_for_each_of_them(store: Path, results: Path, tmp_path: Path) -> None:
    page, text = tmp_path / "lies.html", tmp_path / "lies.txt"
    command = ["--s2-results", str(results), "--s1-data", str(store), "--output", str(page)]
    assert build_report([*command, "--text", str(text)]) == 0
    html = page.read_text()
    for feature in read_results(results).features:
        assert html.count(f'id="{anchor(feature.key)}"') == 1
    assert f"SAE {WIDE}, feature 3" in html
    assert "feature" in text.read_text()


@pytest.mark.parametrize("strategy", ["embedding-to-feature", "hidden-to-feature"])
def test_a_target_by_name(store: Path, tmp_path: Path, strategy: str) -> None:
    output = tmp_path / "d.npz"
    target = ["--target-sae", WIDE, "--target-feature", "40", "--unit", "sentence"]
    assert generate(["--strategy", strategy, *target, "--input", str(store), "--output", str(output)]) == 0
    dataset, opened = read_dataset(output), FeatureStore(store)
    assert dataset.metadata["target"]["sae"] == WIDE
    pooled = opened.pooled_activations(opened.find_sae(name=WIDE)).to_dense()
    assert np.array_equal(dataset.y, pooled[:, 40])


def test_whole_saes_by_name_and_rows_of_a_ranking(store: Path, results: Path, tmp_path: Path) -> None:
    rest = ["--strategy", "sae-to-concept", "--input", str(store), "--output", str(tmp_path / "d.npz")]
    assert generate([*rest, "--target-sae", f"{WIDE},layer_1-b"]) == 0
    dataset, opened = read_dataset(tmp_path / "d.npz"), FeatureStore(store)
    wanted = [opened.pooled_activations(opened.find_sae(name=n)).to_dense() for n in (WIDE, "layer_1-b")]
    assert np.array_equal(dataset.X, np.hstack(wanted))
    assert generate([*rest, "--features", str(results / RANKED), "--top-k", "5", "--overwrite"]) == 0
    saes = read_dataset(tmp_path / "d.npz").metadata["input"]["saes"]
    assert {sae["name"] for sae in saes} == {sae.name for sae in opened.saes}


TARGET = ["hidden-to-feature", "--target-feature", "3", "--target-sae"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*TARGET, "a", "--target-layer", "1"], "--target-layer cannot stand beside it"),
        ([*TARGET, "a", "--target-l0", "1"], "--target-l0 cannot stand beside it"),
        ([*TARGET, "a,b"], "a target is a feature of one"),
        (["hidden-to-feature", "--target-feature", "3"], "needs --target-layer or --target-sae"),
        (["sae-to-concept", "--target-sae", "a", "--layer", "3"], "--layer cannot stand beside it"),
        (["sae-to-concept", "--target-sae", "a", "--features", "r.csv"], "--features cannot stand beside it"),
        (["sae-to-concept", "--target-sae", "a,a"], "names an SAE twice"),
        (["sae-to-concept", "--target-sae", "a,"], "is not a name"),
        (["hidden-to-concept", "--target-sae", "a", "--layer", "1"], "does not belong to"),
    ],
)
def test_a_name_stands_in_place_of_layer_and_l0(
    capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        generate(["--strategy", *flags, "--input", "s", "--output", "d.npz"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_name_that_is_not_there_is_told_with_those_that_are(store: Path) -> None:
    with pytest.raises(
        UserError, match=rf"no SAE is named 12; there are layer_00_l0_8, {NARROW}, .*layer:l0:feature_id$"
    ):
        FeatureStore(store).find_sae(name="12")


NAMES = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=12).filter(
    lambda name: not name.isdigit()
)
SAES = st.lists(
    st.builds(
        lambda name, layer, l0: StoredSae(name, layer, l0, 8, "blocks.0.hook_resid_post", "", "", "", ""),
        NAMES,
        st.integers(0, 3),
        st.none() | st.integers(0, 3),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda sae: sae.name,
)


@given(SAES, st.integers(0, 7))
def test_keys_are_unique_and_take_their_sae_back(saes: list[StoredSae], feature_id: int) -> None:
    keys = [
        repr(feature_key(sae.name, sae.layer, sae.average_l0, feature_id, needs_name(saes, sae)))
        for sae in saes
    ]
    assert len(set(keys)) == len({anchor(key) for key in keys}) == len(saes)
    for sae, text in zip(saes, keys, strict=True):
        key = FeatureKey.parse(text)
        assert (repr(key), key.feature_id) == (text, feature_id)
        assert find_sae(Path("store"), saes, key.layer, key.average_l0, key.sae_name) is sae
        # The name form takes every SAE, also where the short one would do.
        named = FeatureKey.parse(f"{sae.name}:{feature_id}")
        assert find_sae(Path("store"), saes, named.layer, named.average_l0, named.sae_name) is sae
        # And the short form is used wherever it takes exactly this one.
        short = [other for other in saes if (other.layer, other.average_l0) == (sae.layer, sae.average_l0)]
        if len(short) == 1 and (sae.average_l0 is not None or sum(o.layer == sae.layer for o in saes) == 1):
            assert key.sae_name is None
