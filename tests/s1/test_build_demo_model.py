"""The demonstration model, built with a recipe so small that it learns nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from concept_evaluation.splits import NEAR_DUPLICATE_COSINE
from pipeline_common.files import sha256_of_file, write_csv
from s0_dataset_generation.labelled_sentences import assign_split, read_labelled_sentences
from s1_compute_all_features import build_demo_model as demo
from s1_compute_all_features.extract_sae_features import main as extract
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.sae_configurations import read_sae_configurations
from tests.s1.conftest import SENTENCES

RECIPE = demo.Recipe(
    n_layers=2,
    d_model=16,
    vocabulary=300,
    epochs=1,
    batch_sentences=4,
    d_sae=32,
    l0s=(2, 6),
    sae_steps=25,
    sae_batch=32,
)
TEXTS = [sentence for sentence, _ in SENTENCES]
INPUTS = {"recipe": "tiny"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two builds of one recipe from one text."""
    folders = [tmp_path_factory.mktemp("demo") / "demo_model" for _ in range(2)]
    for folder in folders:
        demo.build(folder, TEXTS, RECIPE, INPUTS)
    return folders


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_builds_are_equal_byte_by_byte(built):
    first, second = map(digests, built)
    assert first == second
    weights = [name for name in first if name.endswith((".safetensors", ".npz"))]
    assert len(weights) == 1 + 2 * 2


def test_another_seed_gives_other_weights(built, tmp_path):
    demo.build(tmp_path / "other", TEXTS, replace(RECIPE, seed=1, n_layers=1, l0s=(2,)), INPUTS)
    name = "saes/layer_0/width_32/average_l0_2/params.npz"
    assert digests(tmp_path / "other")[name] != digests(built[0])[name]


def test_the_folder_holds_model_saes_configuration_and_record(built):
    folder = built[0]
    assert [path.name for path in folder.parent.iterdir()] == ["demo_model"]
    configurations = read_sae_configurations(folder / demo.CONFIGURATION)
    assert configurations.model.demonstration
    model = json.loads((folder / configurations.model.id / "config.json").read_text())
    assert model["model_type"] == "gemma2"
    assert (model["hidden_size"], model["num_hidden_layers"]) == (16, 2)
    assert [(sae.layer, sae.average_l0) for sae in configurations.saes] == [(0, 2), (0, 6), (1, 2), (1, 6)]
    assert [sae.hook for sae in configurations.saes[::2]] == [
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    ]
    assert json.loads((folder / demo.BUILD).read_text()) == INPUTS


def test_the_saes_are_in_gemma_scopes_layout(built):
    folder = built[0]
    for sae in read_sae_configurations(folder / demo.CONFIGURATION).saes:
        assert sae.path == f"layer_{sae.layer}/width_32/average_l0_{sae.average_l0}"
        with np.load(folder / "saes" / sae.path / "params.npz", allow_pickle=False) as params:
            shapes = {name: params[name].shape for name in params.files}
            assert {params[name].dtype for name in params.files} == {np.dtype(np.float32)}
            assert (params["threshold"] > 0).all()
        assert shapes == {
            "W_enc": (16, 32),
            "W_dec": (32, 16),
            "b_enc": (32,),
            "b_dec": (16,),
            "threshold": (32,),
        }


def test_the_extraction_takes_it_like_any_other_configuration(built, labelled_csv, tmp_path):
    config = ["--config", str(built[0] / demo.CONFIGURATION), "--device", "cpu"]
    assert extract(["--input", str(labelled_csv), "--output", str(tmp_path / "store"), *config]) == 0
    store = FeatureStore(tmp_path / "store")
    assert store.manifest["model"]["demonstration"]
    assert [sae.name for sae in store.saes] == [
        "layer_00_l0_2",
        "layer_00_l0_6",
        "layer_01_l0_2",
        "layer_01_l0_6",
    ]
    per_token = [store.activations(sae).indptr[-1] / store.starts[-1] for sae in store.saes]
    assert all(0 < value < 32 for value in per_token)
    assert per_token[0] < per_token[1]
    assert per_token[2] < per_token[3]


def test_a_build_that_fails_leaves_what_stood_there(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(demo, "train_sae", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        demo.build(tmp_path / "demo_model", TEXTS, RECIPE, INPUTS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "demo_model").mkdir()
    (tmp_path / "demo_model" / demo.BUILD).write_text("{}")
    with pytest.raises(RuntimeError, match="no memory"):
        demo.build(tmp_path / "demo_model", TEXTS, RECIPE, INPUTS)
    assert [path.name for path in tmp_path.rglob("*")] == ["demo_model", demo.BUILD]


@pytest.fixture(scope="module")
def shipped():
    """Every shipped dataset with its split."""
    paths = sorted(demo.DATA_FOLDER.glob("*.csv"))
    return {data.path.stem: (data, assign_split(data)) for data in map(read_labelled_sentences, paths)}


@pytest.fixture(scope="module")
def texts():
    return demo.training_texts()


def test_the_model_is_trained_on_every_shipped_dataset(shipped):
    # A file that a user generated may stand beside the shipped ones.
    assert set(demo.TRAITS) <= set(shipped)


def test_no_held_out_sentence_is_trained_on(shipped, texts):
    held_out, train = set(), set()
    for trait in demo.TRAITS:
        data, split = shipped[trait]
        held_out |= {text for text, out in zip(data.sentences, split.held_out, strict=True) if out}
        train |= {text for text, out in zip(data.sentences, split.held_out, strict=True) if not out}
    assert not set(texts) & held_out
    assert set(texts) <= train
    assert len(texts) > 0.9 * len(train)


def test_nothing_is_trained_on_that_resembles_a_held_out_sentence(shipped, texts):
    sentences = [text for trait in demo.TRAITS for text in shipped[trait][0].sentences]
    held_out = np.concatenate([shipped[trait][1].held_out for trait in demo.TRAITS])
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(5, 5)).fit_transform(sentences)
    trained = np.array([text in set(texts) for text in sentences])
    cosines = (vectors[np.flatnonzero(trained)] @ vectors[np.flatnonzero(held_out)].T).toarray()
    assert cosines.max() <= NEAR_DUPLICATE_COSINE


def test_a_likeness_across_datasets_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 7)) for _ in range(60)]
    sentences = [" ".join(rng.choice(words, 7)) for _ in range(40)]
    held_out = {}
    for name, ending, rows in (("one", ".", sentences), ("two", "!", sentences[::-1])):
        path = tmp_path / f"{name}.csv"
        labelled = [(f"{text}{ending}", index % 2 * 3) for index, text in enumerate(rows)]
        write_csv(path, ["sentence", "concept_strength_label"], labelled)
        data = read_labelled_sentences(path)
        held_out[name] = {text for text, out in zip(rows, assign_split(data).held_out, strict=True) if out}
    assert held_out["one"] - held_out["two"]
    assert held_out["two"] - held_out["one"]
    texts = demo.training_texts(tmp_path, ["one", "two"])
    assert {text[:-1] for text in texts} == set(sentences) - held_out["one"] - held_out["two"]


@pytest.fixture
def builds(monkeypatch):
    """`build` replaced by one that only writes its record; the calls it got."""
    calls = []

    def record(output, texts, recipe, inputs):
        calls.append((output, texts))
        output.mkdir(parents=True, exist_ok=True)
        (output / demo.BUILD).write_text(json.dumps(inputs))

    monkeypatch.setattr(demo, "build", record)
    monkeypatch.setattr(demo, "training_texts", lambda: TEXTS)
    return calls


def test_main_builds_once_and_again_when_an_input_changes(builds, monkeypatch, tmp_path, capsys):
    output = tmp_path / "demo_model"
    command = ["--output", str(output)]
    assert demo.main(command) == 0
    assert builds == [(output, TEXTS)]
    assert "demo_configurations.json: 12 SAEs in" in capsys.readouterr().out
    assert demo.main(command) == 0
    assert len(builds) == 1
    assert capsys.readouterr().out == f"{output / demo.CONFIGURATION}: up to date\n"

    assert demo.main([*command, "--force"]) == 0
    monkeypatch.setattr(demo, "training_texts", lambda: TEXTS[1:])
    assert demo.main(command) == 0
    monkeypatch.setattr(demo, "Recipe", lambda: RECIPE)
    assert demo.main(command) == 0
    versions = demo.library_versions(("torch", "transformers", "sae-lens", "tokenizers"))
    monkeypatch.setattr(demo, "library_versions", lambda _: {**versions, "torch": "99"})
    assert demo.main(command) == 0
    assert len(builds) == 5
    assert demo.main(command) == 0
    assert len(builds) == 5


def test_main_never_replaces_another_folder(builds, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    assert demo.main(["--output", str(tmp_path / "thesis"), "--force"]) == 1
    assert "a folder that holds something else than demonstration model" in capsys.readouterr().err
    assert builds == []


def test_a_damaged_record_is_told_in_one_line(builds, tmp_path, capsys):
    (tmp_path / demo.BUILD).write_text("{")
    assert demo.main(["--output", str(tmp_path)]) == 1
    assert "build.json: line 1: not valid JSON" in capsys.readouterr().err
    assert demo.main(["--output", str(tmp_path), "--force"]) == 0
    assert len(builds) == 1
