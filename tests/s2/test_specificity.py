"""Features of one trait on the sentences of others."""

import csv

import matplotlib.image
import numpy as np
import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.analyze_features import main
from s2_find_top_features.ranked_features import read_results
from s2_find_top_features.specificity import judged_sentences, open_traits
from tests.s2.planted_store import noise, plant, write_planted_store

LABELS = np.arange(320) % 4
TRAITS = ("lying", "hitting", "sharing")


def write_trait(folder, number, sentences=None):
    """Feature ``10 + number`` follows this trait's label; feature 5 follows every trait's."""
    rng = np.random.default_rng(number)
    dense = noise(rng, len(LABELS), 30)
    for other in range(len(TRAITS)):
        dense[:, 10 + other] = plant(rng, np.zeros(len(LABELS)), 0.0, 1.0)
    dense[:, 10 + number] = plant(rng, LABELS, 4.0, 1.0)
    dense[:, 5] = plant(rng, LABELS, 1.5, 1.0)
    return write_planted_store(
        folder, [dense], LABELS, sentences=sentences, input_name=f"{TRAITS[number]}.csv"
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("traits")
    return [
        write_trait(root / trait, number, [f"{trait} {s}" for s in range(len(LABELS))])
        for number, trait in enumerate(TRAITS)
    ]


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_specific_feature_is_told_from_one_that_fires_on_every_trait(stores, tmp_path, capsys):
    output = tmp_path / "results"
    others = [str(path) for path in stores[1:]]
    where = ["--input", str(stores[0]), "--output", str(output), "--contrast", *others]
    assert main([*where, "--top-n", "5"]) == 0
    rows = rows_of(output / "specificity.csv")
    assert len(rows) == 5 * 2
    value = {(row["feature_id"], row["other_trait"]): row for row in rows}
    for trait in TRAITS[1:]:
        own, shared = value["10", trait], value["5", trait]
        assert float(own["held_out_auroc_3_vs_0"]) > 0.95
        assert abs(float(own["held_out_auroc_3_vs_0_of_other"]) - 0.5) < 0.3
        assert float(own["held_out_auroc_3_vs_3_of_other"]) > 0.95
        assert float(shared["held_out_auroc_3_vs_0_of_other"]) > 0.9
        assert abs(float(shared["held_out_auroc_3_vs_3_of_other"]) - 0.5) < 0.3
    matrix = rows_of(output / "specificity_matrix.csv")
    assert [row["best_feature_of"] for row in matrix] == [
        f"{trait} 0:8:{10 + k}" for k, trait in enumerate(TRAITS)
    ]
    for number, row in enumerate(matrix):
        for other, trait in enumerate(TRAITS):
            assert (float(row[trait]) > 0.95) == (number == other)
    assert matplotlib.image.imread(output / "specificity_matrix.png").std() > 0.05
    assert read_results(output).summary["specificity"]["lying 0:8:10"]["lying"] > 0.95
    assert "lying 0:8:10" in capsys.readouterr().out


def test_sentences_of_the_own_train_split_do_not_judge(tmp_path):
    texts = [f"sentence {s}" for s in range(len(LABELS))]
    own, other = (
        FeatureStore(write_trait(tmp_path / name, number, chosen))
        for name, number, chosen in (("a", 0, texts), ("b", 1, [text.upper() for text in texts]))
    )
    assert own.held_out.any()
    judged, n_left_out = judged_sentences(other, own)
    assert (judged == other.held_out).all()  # one split, so a shared held-out sentence is held out twice
    assert n_left_out == 0
    own.held_out = np.zeros(len(LABELS), dtype=bool)
    judged, n_left_out = judged_sentences(other, own)
    assert not judged.any()
    assert n_left_out == other.held_out.sum()


def test_stores_that_cannot_be_compared_are_refused(stores, tmp_path, capsys):
    rng = np.random.default_rng(0)
    two = write_planted_store(tmp_path / "two", [noise(rng, len(LABELS), 30)] * 2, LABELS, input_name="x.csv")
    with pytest.raises(UserError, match="SAE sae_1 is missing or has other weights"):
        open_traits(FeatureStore(two), [stores[0]])
    with pytest.raises(UserError, match="two of the stores are called"):
        open_traits(FeatureStore(stores[0]), [stores[0]])
    store = FeatureStore(stores[0])
    store.manifest["model"]["id"] = "other"
    with pytest.raises(UserError, match="made with the model planted, the ranked store with other"):
        open_traits(store, [stores[1]])
    arguments = ["--input", str(stores[0]), "--output", str(tmp_path / "r"), "--contrast", str(tmp_path)]
    assert main(arguments) == 1
    assert "not a feature store" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_stores_of_equally_named_tables_go_by_their_folders(tmp_path):
    rng = np.random.default_rng(0)
    folders = [
        write_planted_store(tmp_path / name, [noise(rng, len(LABELS), 30)], LABELS) for name in ("a", "b")
    ]
    assert [trait.name for trait in open_traits(FeatureStore(folders[0]), folders[1:])] == ["a", "b"]
