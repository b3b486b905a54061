"""Text for training SAEs: which documents are read, how they are cut, what is held out."""

import dataclasses

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.language_model import load_language_model
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.saes.training_text import Pieces, documents_as_ids, read_training_text


@pytest.fixture(scope="module")
def model(tiny_configuration):
    return load_language_model(ModelEntry(id="model"), tiny_configuration.parent, "cpu", "float32")


def lines(n, start=0):
    return [
        f"sentence number {index} about a clerk and {index * 7} coins" for index in range(start, start + n)
    ]


def read(model, paths, n_tokens=400, n_held_out=100, context=16, prepend_bos=True, seed=0):
    return read_training_text(model, paths, prepend_bos, context, n_tokens, n_held_out, seed)


def texts_of(model, pieces):
    return [model.tokenizer.decode(pieces[index].ids[pieces[index].stored]) for index in range(len(pieces))]


def test_pieces_give_back_what_was_added():
    pieces = Pieces(bos=9)
    pieces.add([1, 2, 3])
    pieces.add([4, 5])
    assert (len(pieces), pieces.total, pieces.n_tokens.tolist()) == (2, 5, [3, 2])
    assert pieces[1].ids.tolist() == [9, 4, 5]
    assert pieces[1].stored.tolist() == [False, True, True]
    assert Pieces(bos=None).n_tokens.tolist() == []


def test_without_bos_every_token_is_stored():
    pieces = Pieces(bos=None)
    pieces.add([4, 5])
    assert (pieces[0].ids.tolist(), pieces[0].stored.tolist()) == ([4, 5], [True, True])


def test_pieces_fit_the_context_and_begin_with_bos(model, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(60)))
    text = read(model, [tmp_path / "a.txt"])
    for pieces in (text.train, text.held_out):
        for index in range(len(pieces)):
            assert len(pieces[index].ids) <= 16
            assert pieces[index].ids[0] == model.tokenizer.bos_token_id
    assert 400 <= text.train.total < 400 + 16
    assert 100 <= text.held_out.total < 100 + 16


def test_a_document_is_either_trained_on_or_measured_on(model, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(80)))
    text = read(model, [tmp_path / "a.txt"], n_tokens=10_000, n_held_out=3000, context=64)
    train, held_out = set(texts_of(model, text.train)), set(texts_of(model, text.held_out))
    assert train
    assert held_out
    assert not train & held_out
    assert train | held_out == set(lines(80))  # context 64: no document is cut


def test_repeated_documents_are_read_once(model, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join([*lines(30), "", *lines(30)]))
    (tmp_path / "b.csv").write_text("sentence,other\n" + "\n".join(f"{line},x" for line in lines(40)))
    text = read(model, [tmp_path / "a.txt", tmp_path / "b.csv"], n_tokens=10_000, n_held_out=3000)
    assert (text.n_documents, text.n_repeated) == (40, 60)


def test_files_are_read_side_by_side(model, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(400)))
    (tmp_path / "b.txt").write_text("\n".join(lines(400, start=1000)))
    text = read(model, [tmp_path / "a.txt", tmp_path / "b.txt"], n_tokens=1500, context=64)
    numbers = [int(document.split()[2]) for document in texts_of(model, text.train)]
    assert abs(np.mean([number >= 1000 for number in numbers]) - 0.5) < 0.1


def test_the_seed_decides_what_is_held_out(model, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(80)))
    held_out = [texts_of(model, read(model, [tmp_path / "a.txt"], seed=seed).held_out) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_documents_as_ids_has_no_special_tokens(model, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(3)))
    ids = list(documents_as_ids(model, tmp_path / "a.txt"))
    assert [model.tokenizer.decode(one) for one in ids] == lines(3)


def test_special_tokens_in_a_document_are_left_out_and_told(model, tmp_path, caplog):
    (tmp_path / "a.txt").write_text("\n".join([f"<bos>{lines(1)[0]}<eos>", *lines(2)]))
    ids = list(documents_as_ids(model, tmp_path / "a.txt"))
    assert [model.tokenizer.decode(one) for one in ids] == [*lines(1), *lines(2)]
    assert "1 documents hold special tokens in their text; those are left out" in caplog.text
    text = read(model, [tmp_path / "a.txt"], n_tokens=30, n_held_out=20)
    stored = np.concatenate([text.train[0].ids[1:], text.held_out[0].ids[1:]])
    assert not set(stored.tolist()) & {0, 1, 2}
    assert caplog.text.count("1 documents hold special tokens") == 2


def test_too_little_text_is_refused(model, tmp_path):
    (tmp_path / "a.txt").write_text(lines(1)[0])
    with pytest.raises(UserError, match="1 documents, too few to train on one part and measure on another"):
        read(model, [tmp_path / "a.txt"])


def test_a_file_that_is_no_text_is_named(model, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.txt: cannot be read as UTF-8 text"):
        read(model, [tmp_path / "a.txt"])


def test_a_model_without_bos_is_told_from_one_that_has_it(model, tmp_path):
    class WithoutBos:
        bos_token_id = None

        def __getattr__(self, name):
            return getattr(model.tokenizer, name)

        def __call__(self, *arguments, **options):
            return model.tokenizer(*arguments, **options)

    (tmp_path / "a.txt").write_text("\n".join(lines(60)))
    other = dataclasses.replace(model, tokenizer=WithoutBos())
    with pytest.raises(UserError, match="no BOS token to put in front; set prepend_bos to false"):
        read(other, [tmp_path / "a.txt"])
    assert read(other, [tmp_path / "a.txt"], prepend_bos=False).train[0].stored.all()
