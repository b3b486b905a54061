import hashlib
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from s1_compute_all_features import gather_texts
from s1_compute_all_features.models import text_writing, written_batches
from s1_compute_all_features.models.openings import OPENINGS, draw_opening
from s1_compute_all_features.models.text_writing import (
    Sampling,
    Writer,
    draw_tokens,
    load_writer,
    write_batch,
)
from tests.fake_hub import small_tokenizer, tiny_gemma2

SMALL = Sampling(texts_per_batch=4, n_tokens=80, dtype="float32")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama with grouped heads, as a folder; it ends a text now and then."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    small_tokenizer(bos="<|im_start|>", prepend=False).save_pretrained(folder)
    return folder


# Openings


def test_openings_are_many_and_complete():
    rng = np.random.default_rng(0)
    drawn = [draw_opening(rng) for _ in range(2000)]
    assert len(OPENINGS) == len(set(OPENINGS)) > 150
    assert len(set(drawn)) > 1200
    assert not any("{" in text or "}" in text for text in drawn)
    assert all(text == text.strip() and not text[0].islower() for text in drawn)


# One step


def test_tokens_are_drawn_as_often_as_the_nucleus_says():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0, 1.5]]).repeat(40_000, 1)
    drawn = draw_tokens(logits, top_k=4, top_p=0.8, generator=torch.Generator().manual_seed(0))
    # By hand: of the four likeliest (0, 4, 2, 1) the shares are .474, .287, .174, .064, and the first three
    # are the fewest that reach .8.
    weights = np.exp([2.0, 0.0, 1.0, -np.inf, 1.5])
    weights[1] = 0
    shares = np.bincount(drawn[:, 0], minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.01)  # 4 standard errors
    assert shares[1] == shares[3] == 0


def test_the_likeliest_token_is_always_in_the_nucleus():
    logits = torch.tensor([[0.0, 9.0, 0.0], [5.0, 0.0, 0.0]])
    drawn = draw_tokens(logits, top_k=200, top_p=0.01, generator=torch.Generator().manual_seed(0))
    assert drawn.tolist() == [[1], [0]]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_step_by_step_equals_one_pass_of_the_untouched_model(architecture, llama, tmp_path):
    folder = llama
    if architecture == "gemma2":  # caps its scores
        folder = tmp_path
        tiny_gemma2().save_pretrained(folder)
        small_tokenizer().save_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert isinstance(reference, LlamaForCausalLM | Gemma2ForCausalLM)
    writer = load_writer(folder, "float32")
    ids = torch.randint(3, 400, (3, 20), generator=torch.Generator().manual_seed(0))
    cache = text_writing._reserved_cache(reference.config.num_hidden_layers, 20)
    with torch.inference_mode():
        wanted = reference(input_ids=ids).logits
        steps = [text_writing.next_logits(writer, ids[:, [position]], cache) for position in range(20)]
    # float32 sums in another order; the logits are of the order of 1.
    torch.testing.assert_close(torch.stack(steps, 1), wanted, atol=1e-4, rtol=1e-4)


# One batch


def test_texts_begin_with_their_openings_and_end_at_a_special_token(llama):
    writer = load_writer(llama, "float32")
    texts, n_tokens = write_batch(writer, SMALL, 3)
    rng = np.random.default_rng([0, 3])
    openings = [draw_opening(rng) for _ in range(4)]
    lengths = [len(ids) for ids in writer.tokenizer(openings)["input_ids"]]
    assert all(length < 60 for length in lengths)
    for text, opening in zip(texts, openings, strict=True):
        assert text.startswith(opening)
        assert "<" not in text
    assert n_tokens <= 4 * 79
    # Every token ends a text now, so nothing follows the openings.
    all_end = Writer(writer.model, writer.tokenizer, tuple(range(400)))
    assert write_batch(all_end, SMALL, 3) == (["", "", "", ""], 0)


def test_a_batch_depends_on_seed_and_number_alone(llama):
    writer = load_writer(llama, "float32")
    first = write_batch(writer, SMALL, 0)
    assert write_batch(writer, SMALL, 1) != first
    assert write_batch(writer, Sampling(seed=1, texts_per_batch=4, n_tokens=80, dtype="float32"), 0) != first
    assert write_batch(writer, SMALL, 0) == first


# Many batches


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def all_batches(folder, model, n_tokens=700, n_processes=1):
    return list(written_batches.written_batches(folder, model, SMALL, n_tokens, n_processes))


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(llama, tmp_path, monkeypatch):
    whole = all_batches(tmp_path / "whole", llama)
    assert len(whole) >= 3
    assert sum(batch.n_tokens for batch in whole[:-1]) < 700 <= sum(batch.n_tokens for batch in whole)

    write = written_batches.write_batch

    def stopped_at_the_third(writer, sampling, number):
        if number == 2:
            raise KeyboardInterrupt
        return write(writer, sampling, number)

    monkeypatch.setattr(written_batches, "write_batch", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        all_batches(tmp_path / "stopped", llama)
    assert len(files_of(tmp_path / "stopped")) == 3  # two batches and the settings
    monkeypatch.setattr(written_batches, "write_batch", write)
    resumed = all_batches(tmp_path / "stopped", llama)
    assert [batch.was_there for batch in resumed] == [True, True] + [False] * (len(whole) - 2)
    assert [batch.texts for batch in resumed] == [batch.texts for batch in whole]
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(llama, tmp_path):
    one = all_batches(tmp_path / "one", llama)
    two = all_batches(tmp_path / "two", llama, n_processes=2)
    assert one == two
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


# The script


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "trait.csv"
    path.write_text("sentence,concept_strength_label\nThe owl kept what it had found.,3\nIt rained.,0\n")
    return path


@pytest.fixture
def arguments(llama, tmp_path, dataset, monkeypatch):
    """A command line that has the tiny model write, in this process and in short texts."""
    monkeypatch.setattr(text_writing, "Sampling", lambda seed, dtype: Sampling(seed, 4, 80, dtype=dtype))
    more = ["--model", str(llama), "--written-tokens", "500", "--processes", "1", "--dtype", "float32"]
    return ["--output", str(tmp_path / "texts"), "--datasets", str(dataset), *more, "--sources"]


def test_the_written_text_stands_beside_its_record(arguments, tmp_path):
    assert gather_texts.main(arguments) == 0
    text = (tmp_path / "texts" / "written_by_model.txt").read_bytes()
    (record,) = json.loads((tmp_path / "texts" / "sources.json").read_text())["sources"]
    assert record["text_sha256"] == hashlib.sha256(text).hexdigest()
    assert record["n_tokens_written"] >= 500
    assert record["sampling"]["top_p"] == 0.95
    assert all(len(line.split()) >= 5 for line in text.decode().splitlines())
    assert gather_texts.main(arguments) == 0
    assert (tmp_path / "texts" / "written_by_model.txt").read_bytes() == text


def test_a_labelled_sentence_that_the_model_writes_is_left_out(arguments, tmp_path, dataset):
    assert gather_texts.main(arguments) == 0
    path = tmp_path / "texts" / "written_by_model.txt"
    lines = path.read_text().splitlines()
    dataset.write_text(dataset.read_text() + f'"{lines[0].replace(chr(34), chr(34) * 2)}",1\n')
    assert gather_texts.main(arguments) == 0
    assert path.read_text().splitlines() == lines[1:]
    (record,) = json.loads((tmp_path / "texts" / "sources.json").read_text())["sources"]
    assert record["n_paragraphs_left_out"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "5"], "holds text written with seed 0, not 5; delete the folder"),
        (["--model", "no_such_model"], "no_such_model: no such folder"),
    ],
)
def test_a_wrong_model_or_seed_is_told_in_a_line(arguments, change, message, capsys):
    assert gather_texts.main(arguments) == 0
    capsys.readouterr()
    assert gather_texts.main([*arguments[:-1], *change, "--sources"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in line


def test_a_folder_that_is_no_model_is_told_in_a_line(arguments, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert gather_texts.main([*arguments[:-1], "--model", str(tmp_path / "empty"), "--sources"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "empty cannot be loaded" in line
