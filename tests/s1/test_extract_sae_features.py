"""The extraction from a CSV to a store: contents, resume, refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig

from s0_dataset_generation.labelled_sentences import assign_split, read_labelled_sentences
from s1_compute_all_features import block_states
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import EMBEDDINGS, FeatureStore
from s1_compute_all_features.language_model import load_language_model
from s1_compute_all_features.sae_configurations import GPT2_SMALL, read_sae_configurations
from s1_compute_all_features.tokenisation import tokenise
from s1_compute_all_features.work_plan import plan_blocks
from tests.fake_hub import write_fake_gpt2, write_fake_gpt2_saes
from tests.s1.conftest import SENTENCES, arguments, contents

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_store_holds_what_model_and_saes_compute(store, tiny_configuration):
    reader = FeatureStore(store)
    assert len(reader.manifest["blocks"]) > 2
    entry = read_sae_configurations(tiny_configuration).model
    model = load_language_model(entry, tiny_configuration.parent, "cpu", "float32")
    for index in (0, 5, 11):
        ids = torch.from_numpy(tokenise(model, [SENTENCES[index][0]], True)[0].ids)[None]
        with torch.inference_mode():
            own = model.model(input_ids=ids, output_hidden_states=True).hidden_states
        rows = slice(int(reader.starts[index]), int(reader.starts[index + 1]))
        # float16 rounding of what is stored: 2^-11 relative.
        np.testing.assert_allclose(reader.hidden_states(0)[rows], own[1][0, 1:].numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(
            reader.hidden_states(EMBEDDINGS)[rows], own[0][0, 1:].numpy(), rtol=1e-3, atol=1e-3
        )
        for sae in reader.saes[2:4]:
            arrays = np.load(tiny_configuration.parent / "saes" / sae.sae_id / "params.npz")
            reference = JumpReLUSAE(JumpReLUSAEConfig(d_in=16, d_sae=64, apply_b_dec_to_input=False))
            reference.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
            expected = reference.encode(own[2][0, 1:]).detach().numpy()
            np.testing.assert_allclose(
                reader.activations(sae).to_dense()[rows], expected, rtol=1e-3, atol=1e-3
            )
    assert isinstance(reference, SAE)


def test_sentences_split_and_further_columns_are_kept(store, labelled_csv):
    reader = FeatureStore(store)
    data = read_labelled_sentences(labelled_csv)
    split = assign_split(data)
    assert reader.sentences == data.sentences
    assert reader.labels.tolist() == data.labels.tolist()
    assert reader.held_out.tolist() == split.held_out.tolist()
    assert reader.groups.tolist() == split.groups.tolist()
    assert reader.further_columns == {"source": [f"note {i}" for i in range(12)]}
    assert [
        "".join(reader.tokens.text[a:b]).strip()
        for a, b in zip(reader.starts, reader.starts[1:], strict=False)
    ] == (data.sentences)
    assert reader.tokens.is_final.sum() == 12
    assert "<bos>" not in set(reader.tokens.text)


def test_a_column_with_a_reserved_name_is_kept_under_another(tiny_configuration, tmp_path):
    csv = tmp_path / "again.csv"
    rows = [f'"{sentence}",{label},{"ab"[i % 2]},x' for i, (sentence, label) in enumerate(SENTENCES)]
    csv.write_text("sentence,concept_strength_label,group,split\n" + "\n".join(rows) + "\n")
    assert main(arguments(csv, tmp_path / "store", tiny_configuration)) == 0
    reader = FeatureStore(tmp_path / "store")
    assert set(reader.further_columns) == {"input_group", "input_split"}
    assert len(set(reader.groups)) == 2
    assert set(reader.groups[reader.held_out]).isdisjoint(reader.groups[~reader.held_out])


def test_settings_of_memory_do_not_change_the_result(store, labelled_csv, tiny_configuration, tmp_path):
    other = ["--input", str(labelled_csv), "--config", str(tiny_configuration), "--device", "cpu"]
    assert main([*other, "--output", str(tmp_path / "whole")]) == 0
    one, two = FeatureStore(store), FeatureStore(tmp_path / "whole")
    assert len(two.manifest["blocks"]) == 1
    for sae in one.saes:
        first, second = one.activations(sae).to_dense(), two.activations(sae).to_dense()
        agree = (first > 0) == (second > 0)
        # At a threshold, another order of additions may flip an entry; see the error of the states above.
        assert agree.mean() > 0.999
        np.testing.assert_allclose(first[agree], second[agree], rtol=1e-4, atol=1e-4)


class Killed(BaseException):
    """Ends a run as abruptly as a signal would, at a chosen write."""


@pytest.mark.parametrize("writes", [0, 1, 4, 9, 15, 30, 41])
def test_a_run_that_was_cut_resumes_to_the_same_bytes(
    store, labelled_csv, tiny_configuration, tmp_path, monkeypatch, writes
):
    from s1_compute_all_features import block_writer

    original, calls = block_writer.write_npz, []

    def counted(path, arrays):
        if len(calls) == writes:
            (path.parent / f".{path.stem}.1.tmp.npz").parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f".{path.stem}.1.tmp.npz").write_bytes(b"half a file")
            raise Killed
        calls.append(path)
        original(path, arrays)

    again = arguments(labelled_csv, tmp_path / "cut", tiny_configuration, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(block_writer, "write_npz", counted)
        with pytest.raises(Killed):
            main(again)
    written = {path: path.stat().st_mtime_ns for path in calls}
    assert main(again) == 0
    assert contents(tmp_path / "cut") == contents(store)
    in_whole_blocks = [path for path in calls if "sae_" in path.name]
    assert all(path.stat().st_mtime_ns == written[path] for path in in_whole_blocks)


def test_a_finished_store_is_left_alone(store, labelled_csv, tiny_configuration, capsys):
    before = contents(store)
    assert main(arguments(labelled_csv, store, tiny_configuration, "--resume")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(arguments(labelled_csv, store, tiny_configuration)) == 1
    assert "--resume" in capsys.readouterr().err
    assert contents(store) == before
    assert main(arguments(labelled_csv, store, tiny_configuration, "--overwrite")) == 0
    assert contents(store) == before


def test_a_resume_with_other_settings_names_the_difference(
    store, labelled_csv, tiny_configuration, tmp_path, capsys
):
    other_csv = tmp_path / "other" / "tiny.csv"
    other_csv.parent.mkdir()
    other_csv.write_text(labelled_csv.read_text().replace("rain", "snow"))
    fewer = json.loads(tiny_configuration.read_text())
    fewer["saes"] = fewer["saes"][:-1]
    other_configuration = tiny_configuration.parent / "fewer.json"
    other_configuration.write_text(json.dumps(fewer))
    before = contents(store)
    for csv, configuration, more, message in (
        (other_csv, tiny_configuration, [], "input.sha256"),
        (labelled_csv, other_configuration, [], "saes: the store has 6 entries, this run 5"),
        (labelled_csv, tiny_configuration, ["--dtype", "bfloat16"], "model.dtype: the store has float32"),
        (
            labelled_csv,
            tiny_configuration,
            ["--block-tokens", "90"],
            "settings.block_tokens: the store has 60",
        ),
        (labelled_csv, tiny_configuration, ["--threads", "2"], "settings.threads"),
    ):
        assert main(arguments(csv, store, configuration, "--resume", *more)) == 1
        assert message in capsys.readouterr().err
    assert contents(store) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("sentence,concept_strength_label\n", "no sentences"),
        ("text,concept_strength_label\na,1\n", "column 'sentence' is missing"),
        ("sentence,concept_strength_label\na,1\nb,4\n", "line 3: concept_strength_label is '4'"),
        ("sentence,concept_strength_label\na,1.5\nb,0\n", "line 2: concept_strength_label is '1.5'"),
        ("sentence,concept_strength_label\na,1\n  ,2\n", "line 3: the sentence is blank"),
        ("sentence,concept_strength_label\na,1\nb,1\n", "every sentence has label 1"),
    ],
)
def test_a_bad_csv_is_named_before_anything_is_written(text, message, tiny_configuration, tmp_path, capsys):
    csv = tmp_path / "bad.csv"
    csv.write_text(text)
    assert main(arguments(csv, tmp_path / "store", tiny_configuration)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "bad.csv" in error
    assert not (tmp_path / "store").exists()


def test_other_bad_input_is_named(labelled_csv, tiny_configuration, tmp_path, capsys):
    latin = tmp_path / "latin.csv"
    latin.write_bytes("sentence,concept_strength_label\ncaf\u00e9,1\nb,0\n".encode("latin-1"))
    for csv, configuration, message in (
        (tmp_path / "none.csv", tiny_configuration, "no such file"),
        (latin, tiny_configuration, "not UTF-8"),
        (labelled_csv, tmp_path / "none.json", "no such file"),
    ):
        assert main(arguments(csv, tmp_path / "store", configuration)) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(arguments(labelled_csv, tmp_path / "store", tiny_configuration, "--batch-tokens", "0"))
    assert stop.value.code == 2
    assert not (tmp_path / "store").exists()


def test_overwrite_leaves_a_foreign_folder_alone(labelled_csv, tiny_configuration, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    assert main(arguments(labelled_csv, tmp_path / "precious", tiny_configuration, "--overwrite")) == 1
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_weights_that_are_not_finite_are_named(
    labelled_csv, tiny_configuration, tmp_path, capsys, monkeypatch
):
    original = block_states.forward_states

    def broken(model, batch, layers, sites):
        states = original(model, batch, layers, sites)
        damaged = states[1].clone()
        damaged[0, 0] = float("nan")
        return {**states, 1: damaged}

    monkeypatch.setattr(block_states, "forward_states", broken)
    assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration)) == 1
    assert "hidden states of layer 1 are not finite for sentence" in capsys.readouterr().err


def test_an_sae_of_another_model_is_refused(labelled_csv, tiny_configuration, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_configuration.parent, folder)
    first = folder / "saes/layer_0/width_64/average_l0_8/params.npz"
    arrays = dict(np.load(first))
    arrays |= {"W_enc": arrays["W_enc"][:8], "W_dec": arrays["W_dec"][:, :8], "b_dec": arrays["b_dec"][:8]}
    np.savez(first, **arrays)
    assert main(arguments(labelled_csv, tmp_path / "store", folder / "tiny.json")) == 1
    assert "belongs to another model" in capsys.readouterr().err
    content = json.loads((folder / "tiny.json").read_text())
    content["saes"][0]["hook"] = "blocks.7.hook_resid_post"
    (folder / "tiny.json").write_text(json.dumps(content))
    assert main(arguments(labelled_csv, tmp_path / "store2", folder / "tiny.json")) == 1
    assert "has 3 layers" in capsys.readouterr().err


def test_gpt2_from_a_hub_cache_reads_the_block_before_and_centres(labelled_csv, tmp_path, monkeypatch):
    """The shipped GPT-2 configuration on random weights under the real ids, off line."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    write_fake_gpt2(cache)
    configurations = read_sae_configurations(GPT2_SMALL)
    write_fake_gpt2_saes(cache, configurations.repo_id, [sae.path for sae in configurations.saes])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert (
        main(["--input", str(labelled_csv), "--output", str(tmp_path / "store"), "--config", str(GPT2_SMALL)])
        == 0
    )
    reader = FeatureStore(tmp_path / "store")
    assert len(reader.saes) == 13
    assert reader.manifest["model"]["revision"] == "0123456789abcdef0123456789abcdef01234567"
    saes = {sae.name: sae for sae in reader.saes}
    path = cache / "models--jbloom--GPT2-Small-SAEs-Reformatted/snapshots"
    sae = SAE.load_from_disk(next(path.iterdir()) / "blocks.5.hook_resid_pre", device="cpu")
    states = reader.hidden_states(4)
    centred = torch.from_numpy(states - states.mean(axis=1, keepdims=True))
    expected = sae.encode(centred).detach().numpy()
    got = reader.activations(saes["layer_05"]).to_dense()
    assert (got > 0).mean() > 0.05
    # The stored states are float16; the activations come from the full-precision ones.
    np.testing.assert_allclose(got, expected, atol=0.05)


def test_blocks_are_whole_sentences_within_the_limit():
    lengths = np.random.default_rng(0).integers(1, 40, size=100).tolist()
    blocks = plan_blocks(lengths, 100)
    assert [index for block in blocks for index in block] == list(range(100))
    assert all(sum(lengths[index] for index in block) <= 100 for block in blocks)
    assert [len(block) for block in plan_blocks([500, 1, 1], 100)] == [1, 2]
