"""Any text that the readers take comes back from every CSV that the project writes."""

import ast
import csv
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv, write_csv
from s0_dataset_generation.labelled_sentences import read_labelled_sentences, write_labelled_sentences
from s0_dataset_generation.ratings import RatedSentence, write_ratings
from s0_dataset_generation.sentence_generation import write_generated_sentences
from s0_dataset_generation.sentence_labelling import read_sentences
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.store_preparation import start_store
from s2_find_top_features import specificity
from s2_find_top_features.ranked_features import (
    METRICS,
    RANKED,
    RankedFeature,
    read_ranked_features,
    read_specificity,
    write_results,
)
from s5_classifier_training.framework import compare, prediction, train, transfer
from s5_classifier_training.framework.comparison import Entry
from s5_classifier_training.framework.metrics import Predictions
from tests.source_rules import PACKAGES, ROOT
from tests.synthetic_store import a_model, write_tables

SOME = settings(max_examples=30, deadline=None, derandomize=True, database=None)

AWKWARD = st.sampled_from(
    [",", '"', "\r", "\n", "\r\n", "\ufeff", "\u2028", "\x0b", "\x85", " ", ";", "'", "\\"]
)
ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.lists(st.one_of(AWKWARD, st.sampled_from("ab")), max_size=8).map("".join),
)
SENTENCE = ANY_TEXT.filter(str.strip)
SENTENCES = st.lists(SENTENCE, min_size=2, max_size=5, unique=True)
LONE_RETURNS = ["Dear Ann\rthe money is gone", "\r", "a", "ends\r"]


def columns_of(path):
    """Column to its cells, as `read_csv` reads them."""
    header, rows = read_csv(path, "table")
    return {name: [cells[place] for _, cells in rows] for place, name in enumerate(header)}


@SOME
@given(
    st.lists(ANY_TEXT.map(str.strip), min_size=1, max_size=4, unique=True),
    st.lists(st.lists(ANY_TEXT, min_size=4, max_size=4), max_size=4),
)
@example(["\ufeffone"], [["\r", "", "", ""], ["", "", "", ""]])
def test_any_table_comes_back(header, rows):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.csv"
        cells = [row[: len(header)] for row in rows]
        write_csv(path, header, cells)
        assert read_csv(path, "table")[0] == header
        assert [read for _, read in read_csv(path, "table")[1]] == cells
        with path.open(encoding="utf-8-sig", newline="") as handle:  # and any other program reads the same
            assert list(csv.reader(handle)) == [header, *cells]


def test_a_carriage_return_is_quoted_by_any_python_and_line_ends_are_unix(tmp_path):
    write_csv(tmp_path / "a.csv", ["x", "y"], [["a\rb", "plain"], ["c", "d\r\ne"]])
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\n"a\rb",plain\nc,"d\r\ne"\n'


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a\0b", "row 2 would hold a NUL"),
        ("a\ud800b", "row 2 would hold half a character"),
        ("x" * 131_073, "row 2 would hold more than 131,072 characters in one cell"),
    ],
)
def test_what_no_reader_takes_is_not_written(tmp_path, cell, message):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(UserError, match=message):
        write_csv(path, ["x", "y"], [["a", "b"], ["c", cell]])
    assert path.read_text() == "old"
    write_csv(path, ["x", "y"], [["x" * 131_072, "y" * 131_072]])
    assert [len(cell) for cell in read_csv(path, "table")[1][0][1]] == [131_072] * 2


def labelled(folder, texts):
    labels = [number % 4 for number in range(len(texts))]
    write_labelled_sentences(folder / "a.csv", texts, labels, {"note": texts[::-1]})
    data = read_labelled_sentences(folder / "a.csv")
    assert data.labels.tolist() == labels
    assert data.further_columns == {"note": texts[::-1]}
    return data.sentences


def unlabelled(folder, texts):
    write_generated_sentences(folder / "a.csv", texts, [3] * len(texts))
    sentences, intended = read_sentences(folder / "a.csv")
    assert intended == [3] * len(texts)
    return sentences


def ratings(folder, texts):
    write_ratings(folder / "a.csv", [RatedSentence(text, (1, 2, 1), 0) for text in texts])
    return columns_of(folder / "a.csv")["sentence"]


def sentences_of_a_store(folder, texts):
    n_tokens = np.ones(len(texts), dtype=np.int64)
    blocks = [{"n_sentences": len(texts), "n_tokens": len(texts)}]
    manifest = {"model": a_model(4), "saes": [], "layers": []}
    further = {"note\rby": texts[::-1]}
    given_labels = np.arange(len(texts)) % 4
    write_tables(
        folder,
        given_labels,
        n_tokens,
        blocks,
        manifest,
        input_name="a.csv",
        sentences=texts,
        further_columns=further,
    )
    store = FeatureStore(folder)
    assert store.further_columns == further
    assert store.labels.tolist() == given_labels.tolist()
    return store.sentences


def ranking(folder, texts):
    values = dict.fromkeys(METRICS, 0.5)
    features = [
        RankedFeature(rank, text, 1, 8, 3, True, values, values, text) for rank, text in enumerate(texts, 1)
    ]
    write_results(folder, features, [], {}, features[::-1])
    read = read_ranked_features(folder / RANKED)
    assert [feature.neuronpedia_url for feature in read] == texts
    return [feature.sae_name for feature in read]


def specificity_table(folder, texts):
    store = SimpleNamespace(
        saes=[SimpleNamespace(name="sae")], held_out=np.ones(2, dtype=bool), labels=np.array([0, 3])
    )
    traits = [SimpleNamespace(name=text, store=store) for text in ("own", *texts)]
    values = dict.fromkeys(METRICS, 0.5)
    feature = RankedFeature(1, "sae", 1, 8, 3, True, values, values, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specificity, "_pooled", lambda *_: np.eye(1, 2))
        patch.setattr(specificity, "judged_sentences", lambda *_: (np.ones(2, dtype=bool), 0))
        specificity.write_specificity(folder, [feature], np.eye(1, 2), traits, None)
    return [row["other_trait"] for row in read_specificity(folder)]


def answers(n_rows):
    return Predictions(np.ones(n_rows), np.full((n_rows, 2), 0.5), np.array([0, 3]))


def predictions_of_training(folder, texts):
    """Half of the rows are train, the others test; a row is a token."""
    n = len(texts)
    held_out = np.arange(n) % 2 == 1
    dataset = SimpleNamespace(
        held_out=held_out,
        sentence_index=np.arange(n),
        group=np.arange(n),
        y=np.ones(n),
        label=np.ones(n, dtype=int),
        sentence=np.array(texts, dtype=object),
        token=np.array(texts[::-1], dtype=object),
        position=np.arange(n),
    )
    n_train = int((~held_out).sum())
    rows = SimpleNamespace(y=np.ones(n_train), folds=[(None, np.arange(n_train))])
    outcome = SimpleNamespace(rows=rows, test=answers(n - n_train), out_of_fold=answers(n_train))
    write_csv(folder / "a.csv", *train.prediction_table(dataset, outcome))
    read = columns_of(folder / "a.csv")
    by_index = dict(
        zip(read["sentence_index"], zip(read["sentence"], read["token"], strict=True), strict=True)
    )
    assert [by_index[str(index)][1] for index in range(n)] == texts[::-1]
    return [by_index[str(index)][0] for index in range(n)]


def predictions_on_new(folder, texts):
    new = prediction.NewSentences(texts, None)
    answered = prediction.Answered(answers(len(texts)), np.arange(len(texts)), None, None)
    write_csv(folder / "a.csv", *prediction.prediction_table(new, answered))
    return columns_of(folder / "a.csv")["sentence"]


def predictions_of_transfer(folder, texts):
    store = SimpleNamespace(sentences=texts, labels=np.arange(len(texts)) % 4)
    one = SimpleNamespace(trait=SimpleNamespace(name=texts[0], store=store), sentences=range(len(texts)))
    tested = [SimpleNamespace(estimator=texts[1], answers=[answers(len(texts))])]
    transfer._write(folder, [one], tested, [])
    read = columns_of(folder / transfer.PREDICTIONS)
    assert set(read["test_trait"]) == {texts[0]}
    assert set(read["estimator"]) == {texts[1]}
    return read["sentence"]


def comparison(folder, texts):
    scores = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    entries = []
    for text in texts:
        results = {"best": text, "main_score": "accuracy", "cv_mean": 0.5, "cv_std": 0.1, "baselines": {}}
        results |= {"test": scores, "dataset": {"strategy": text, "file": text}}
        entries.append(Entry(text, "working", folder, results))
    write_csv(folder / "a.csv", *compare.score_table(entries, [None] * len(entries)))
    read = columns_of(folder / "a.csv")
    assert read["model"] == read["dataset"] == texts
    return read["experiment"]


WRITERS = [
    labelled,
    unlabelled,
    ratings,
    sentences_of_a_store,
    ranking,
    specificity_table,
    predictions_of_training,
    predictions_on_new,
    predictions_of_transfer,
    comparison,
]


@pytest.mark.parametrize("write_and_read", WRITERS)
def test_any_text_comes_back_from_every_table(write_and_read):
    @SOME
    @given(SENTENCES)
    @example([text for text in LONE_RETURNS if text.strip()])
    def property_(texts):
        with tempfile.TemporaryDirectory() as name:
            assert list(write_and_read(Path(name), texts)) == texts

    property_()


def test_a_store_keeps_every_column_of_its_input_under_a_name_of_its_own(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "sentence,concept_strength_label,input_split,split,note\nOne.,0,x,y,z\nTwo.,3,x,y,z\n", "utf-8"
    )
    data = read_labelled_sentences(path)
    split = SimpleNamespace(held_out=[False, True], groups=np.arange(2))
    texts = [SimpleNamespace(texts=["One"])] * 2
    store = SimpleNamespace(
        source=SimpleNamespace(data=data, split=split, stored=None),
        task=SimpleNamespace(folder=tmp_path / "store", sentences=texts),
        manifest={},
    )
    start_store(store, overwrite=False)
    read = columns_of(tmp_path / "store" / "sentences.csv")
    assert read["split"] == ["train", "test"]
    assert (read["input_split"], read["input_input_split"], read["note"]) == (["x"] * 2, ["y"] * 2, ["z"] * 2)


def written_elsewhere(source):
    """Lines of a module that write a CSV by other means than `write_csv`."""
    writers = {"writer", "DictWriter", "to_csv", "savetxt"}
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in writers
    ]


def test_every_csv_is_written_by_the_one_writer():
    assert written_elsewhere("csv.writer(x)\nframe.to_csv(p)\nprint(1)") == [1, 2]
    modules = [ROOT / "run_pipeline.py", *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
    assert len(modules) > 100
    found = {path.name for path in modules if written_elsewhere(path.read_text(encoding="utf-8"))}
    assert found == {"files.py"}
