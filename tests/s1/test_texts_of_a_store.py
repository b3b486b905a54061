"""What a store says of characters in pieces and of special tokens in the text, from the CSV on."""

import csv
import json

import numpy as np
import pytest

from pipeline_common.files import read_npz, write_npz
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import FeatureStore, write_manifest
from tests.s1.conftest import arguments, assert_same_bytes

SENTENCES = [
    ("He said \u201cthe letter never arrived.\u201d", 3),
    ("We kept the change \U0001f600", 2),
    ("\u6211\u6ca1\u6709\u8bf4\u5b9e\u8bdd\u3002", 1),
    ("Ten boats left the quay.", 0),
    ("Nobody saw the clock \u2026", 3),
]
SPECIAL = [("<bos>He lied about the watch.", 3), ("The coins <eos>were all there.", 0)]


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("sentence", "concept_strength_label"), *rows])
    return path


def extracted(folder, configuration, rows, *more):
    """The command line that extracts those sentences."""
    folder.mkdir(exist_ok=True)
    csv_file = write_csv(folder / "d.csv", rows)
    return arguments(csv_file, folder / "store", configuration, "--layers", "0", "--saes", "none", *more)


def by_sentence(reader, values):
    return [values[a:b] for a, b in zip(reader.starts, reader.starts[1:], strict=False)]


def test_the_texts_spell_the_sentences_and_signs_are_no_content(tiny_configuration, tmp_path):
    assert main(extracted(tmp_path, tiny_configuration, SENTENCES)) == 0
    reader = FeatureStore(tmp_path / "store")
    texts = by_sentence(reader, reader.tokens.text)
    assert ["".join(of_sentence) for of_sentence in texts] == reader.sentences
    content = by_sentence(reader, reader.content)
    last = [
        str(text[np.flatnonzero(is_content)[-1]]) for text, is_content in zip(texts, content, strict=True)
    ]
    assert [word.strip()[-1] for word in last] == ["d", "e", "\u8bdd", "y", "k"]
    assert "special_tokens_in_text" not in reader.manifest


def test_pooled_states_take_the_last_word_too(tiny_configuration, tmp_path):
    for name in ("all", "pooled"):
        assert main(extracted(tmp_path / name, tiny_configuration, SENTENCES, "--hidden-states", name)) == 0
    whole, pooled = (FeatureStore(tmp_path / name / "store") for name in ("all", "pooled"))
    expected = whole.pooled_hidden_states(0, "last-content")
    np.testing.assert_allclose(pooled.pooled_hidden_states(0, "last-content"), expected, rtol=2e-3)
    assert (expected != whole.pooled_hidden_states(0, "final")).any(axis=1).all()


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_special_tokens_in_the_text_are_told_and_counted(prepend_bos, tiny_configuration, tmp_path, caplog):
    content = json.loads(tiny_configuration.read_text())
    content["model"] = {"id": str(tiny_configuration.parent / "model"), "prepend_bos": prepend_bos}
    (tmp_path / "c.json").write_text(json.dumps(content))
    command = extracted(tmp_path, tmp_path / "c.json", [*SENTENCES, *SPECIAL])
    assert main(command) == 0
    reader = FeatureStore(tmp_path / "store")
    assert reader.manifest["special_tokens_in_text"] == {"with_opening": 1, "with_others": 1}
    assert reader.manifest["model"]["prepend_bos"] is prepend_bos
    texts = ["".join(of_sentence) for of_sentence in by_sentence(reader, reader.tokens.text)]
    assert texts[-2:] == ["He lied about the watch.", "The coins were all there."]
    assert reader.sentences[-2:] == [sentence for sentence, _ in SPECIAL]
    warnings = [line for line in caplog.messages if line.startswith("warning: d.csv: 1 sentences")]
    assert len(warnings) == 2
    assert ("takes away" in warnings[0] or "taken away" in warnings[0]) is not prepend_bos
    assert main([*command, "--resume"]) == 0


def test_a_sentence_that_names_the_bos_token_has_the_states_of_one_that_does_not(
    tiny_configuration, tmp_path
):
    plain = [(sentence.removeprefix("<bos>"), label) for sentence, label in SPECIAL[:1]]
    for name, rows in (("named", SPECIAL[:1]), ("plain", plain)):
        assert main(extracted(tmp_path / name, tiny_configuration, [*SENTENCES[:2], *rows])) == 0
    named, other = (FeatureStore(tmp_path / name / "store") for name in ("named", "plain"))
    np.testing.assert_array_equal(named.hidden_states(0), other.hidden_states(0))


@pytest.fixture
def old_store(tiny_configuration, tmp_path):
    """An unfinished store of an earlier program, which showed each byte by a letter of its own."""
    command = extracted(tmp_path, tiny_configuration, SENTENCES)
    assert main(command) == 0
    path = tmp_path / "store" / "block_0000" / "tokens.npz"
    arrays = read_npz(path, ("token_id", "sentence_index", "position", "is_final", "text"), "tokens")
    texts = ["\u013f" if text in ("", "\u201d") else text for text in arrays["text"].tolist()]
    write_npz(path, {**arrays, "text": np.array(texts)})
    return command


def test_a_store_that_shows_pieces_otherwise_is_read_as_it_is(old_store, tmp_path):
    reader = FeatureStore(tmp_path / "store")
    assert "\u013f" in reader.tokens.text
    assert len(reader.content) == reader.n_tokens.sum()


def test_a_store_that_shows_pieces_otherwise_is_not_gone_on_with(old_store, tmp_path, capsys):
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    del manifest["sha256"]
    write_manifest(tmp_path / "store", {**manifest, "complete": False})
    assert main([*old_store, "--resume"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        "tokens.npz: cannot go on with this store, whose tokens were made otherwise (text of token" in error
    )
    assert "the store has '\u013f', this run ''" in error
    assert main([*old_store, "--overwrite"]) == 0


def test_a_store_whose_tokens_are_the_same_goes_on(tiny_configuration, tmp_path):
    command = extracted(tmp_path / "whole", tiny_configuration, SENTENCES)
    assert main(command) == 0
    cut = extracted(tmp_path / "cut", tiny_configuration, SENTENCES)
    assert main(cut) == 0
    manifest = json.loads((tmp_path / "cut" / "store" / "manifest.json").read_text())
    del manifest["sha256"]
    write_manifest(tmp_path / "cut" / "store", {**manifest, "complete": False})
    assert main([*cut, "--resume"]) == 0
    assert_same_bytes(tmp_path / "cut" / "store", tmp_path / "whole" / "store")
