"""What the flags of the extraction promise: what is stored, which SAEs, how computed, what refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from pipeline_common.errors import UserError
from s1_compute_all_features import sae_encoder
from s1_compute_all_features.extract_sae_features import main
from s1_compute_all_features.feature_store import EMBEDDINGS, POOLINGS, FeatureStore
from s1_compute_all_features.language_model import forward_states, load_language_model
from s1_compute_all_features.pooling import pool_dense
from s1_compute_all_features.sae_configurations import read_sae_configurations
from s1_compute_all_features.tokenisation import tokenise
from tests.fake_hub import small_tokenizer, tiny_gemma2
from tests.s1.conftest import (
    SENTENCES,
    Killed,
    arguments,
    assert_same_bytes,
    contents,
    kill_at_write,
    write_sentences_csv,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_final_tokens_only(finished_store, labelled_csv, tiny_configuration, tmp_path):
    assert main(arguments(labelled_csv, tmp_path / "final", tiny_configuration, "--tokens", "final")) == 0
    whole, final = FeatureStore(finished_store), FeatureStore(tmp_path / "final")
    rows = whole.tokens.is_final
    assert final.n_tokens.tolist() == [1] * 12
    for name in ("token_id", "sentence_index", "position", "is_final", "text"):
        np.testing.assert_array_equal(getattr(final.tokens, name), getattr(whole.tokens, name)[rows])
    # The batches are others, so float32 adds in another order; then both are rounded to float16.
    for layer in (EMBEDDINGS, 0, 1, 2):
        np.testing.assert_allclose(
            final.hidden_states(layer), whole.hidden_states(layer)[rows], rtol=2e-3, atol=1e-3
        )
    for sae in final.saes:
        np.testing.assert_allclose(
            final.activations(sae).to_dense(), whole.activations(sae).to_dense()[rows], rtol=1e-4, atol=1e-4
        )
        assert len(final.activations(sae).data)


def test_pooled_hidden_states(finished_store, labelled_csv, tiny_configuration, tmp_path, capsys):
    output = tmp_path / "pooled"
    assert main(arguments(labelled_csv, output, tiny_configuration, "--hidden-states", "pooled")) == 0
    whole, pooled = FeatureStore(finished_store), FeatureStore(output)
    assert pooled.hidden_states_stored == "pooled"
    for pooling in POOLINGS:
        for layer in (EMBEDDINGS, 0, 1, 2):
            expected = pool_dense(whole.hidden_states(layer), whole.starts, whole.content, pooling)
            # Rounded to float16 before pooling there, after it here.
            np.testing.assert_allclose(
                pooled.pooled_hidden_states(layer, pooling), expected, rtol=2e-3, atol=2e-3
            )
    assert not np.allclose(pooled.pooled_hidden_states(0, "max"), pooled.pooled_hidden_states(0, "mean"))
    one, other = contents(output), contents(finished_store)
    assert [name for name in one if "sae_" in name or "tokens" in name] == [
        name for name in other if "sae_" in name or "tokens" in name
    ]
    assert all(one[name] == other[name] for name in one if "sae_" in name)
    with pytest.raises(UserError, match="made with --hidden-states pooled"):
        pooled.hidden_states(0)
    with pytest.raises(UserError, match="layer 7 is not stored; there are layers 0, 1, 2"):
        pooled.pooled_hidden_states(7)


def test_no_hidden_states(finished_store, labelled_csv, tiny_configuration, tmp_path):
    output = tmp_path / "none"
    assert main(arguments(labelled_csv, output, tiny_configuration, "--hidden-states", "none")) == 0
    one, other = contents(output), contents(finished_store)
    assert not [name for name in one if "hidden" in name or "embeddings" in name]
    assert all(one[name] == other[name] for name in one if "sae_" in name or "tokens.npz" in name)
    reader = FeatureStore(output)
    with pytest.raises(UserError, match="made with --hidden-states none"):
        reader.hidden_states(0)
    with pytest.raises(UserError, match="made with --hidden-states none"):
        reader.pooled_hidden_states(0)
    assert reader.pooled_activations(reader.saes[0]).shape == (12, 64)


@pytest.mark.parametrize("kind", ["pooled", "none"])
def test_a_store_without_states_resumes_too(kind, labelled_csv, tiny_configuration, tmp_path, monkeypatch):
    outputs = [tmp_path / "one", tmp_path / "cut"]
    whole, cut = (
        arguments(labelled_csv, output, tiny_configuration, "--hidden-states", kind, "--resume")
        for output in outputs
    )
    assert main(whole) == 0
    with monkeypatch.context() as patch:
        kill_at_write(patch, 9)
        with pytest.raises(Killed):
            main(cut)
    assert main(cut) == 0
    assert_same_bytes(*outputs)


def test_limit_takes_the_first_sentences(labelled_csv, tiny_configuration, tmp_path, capsys):
    assert main(arguments(labelled_csv, tmp_path / "part", tiny_configuration, "--limit", "7")) == 0
    short = write_sentences_csv(tmp_path / "short.csv", 0, 7)
    assert main(arguments(short, tmp_path / "short", tiny_configuration)) == 0
    part, whole = contents(tmp_path / "part"), contents(tmp_path / "short")
    assert FeatureStore(tmp_path / "part").sentences == [text for text, _ in SENTENCES[:7]]
    assert {name for name in part if part[name] != whole[name]} == {"manifest.json"}
    assert main(arguments(labelled_csv, tmp_path / "one", tiny_configuration, "--limit", "1")) == 1
    assert "the first 1 sentences have one label only; raise --limit" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    ("more", "layers", "saes"),
    [
        (["--layers", "0,2"], [0, 2], [(0, 8), (0, 24), (2, 8), (2, 24)]),
        (["--layers", "1"], [1], [(1, 8), (1, 24)]),
        (["--l0", "20"], [0, 1, 2], [(0, 24), (1, 24), (2, 24)]),
        (["--l0", "16"], [0, 1, 2], [(0, 8), (1, 8), (2, 8)]),  # as near to both: the sparser
        (["--max-l0", "23", "--layers", "1-2"], [1, 2], [(1, 8), (2, 8)]),
        (["--saes", "layer_00_l0_24, layer_02_l0_8"], [0, 1, 2], [(0, 24), (2, 8)]),
        (["--saes", "none", "--layers", "0-1"], [0, 1], []),
        (["--saes", "none", "--layers", "none"], [], []),
    ],
)
def test_layers_and_saes_are_selected(
    more, layers, saes, finished_store, labelled_csv, tiny_configuration, tmp_path
):
    assert main(arguments(labelled_csv, tmp_path / "part", tiny_configuration, *more)) == 0
    reader = FeatureStore(tmp_path / "part")
    assert reader.layers == layers
    assert [(sae.layer, sae.average_l0) for sae in reader.saes] == saes
    part, whole = contents(tmp_path / "part"), contents(finished_store)
    assert all(part[name] == whole[name] for name in part if name.endswith(".npz"))
    hidden = {f"hidden_layer_{layer:02d}.npz" for layer in layers}
    assert {name.split("/")[1] for name in part if "hidden" in name} == hidden


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--layers", "7"],
            "no SAE of the configuration is left by --layers, --saes, --max-l0 or --l0",
        ),
        (["--max-l0", "5"], "l0 from 8 upwards"),
        (["--layers", "1", "--saes", "layer_00_l0_8"], "no SAE of the configuration is left"),
        (["--saes", "layer_00_l0_9"], "the configuration has no SAE layer_00_l0_9"),
        (["--layers", "0,9"], "--layers: the model model has the layers 0 to 2"),
        (["--model", "no/such/folder"], "model no/such/folder cannot be loaded"),
        (["--sae-root", "."], "none of params.npz, params.safetensors, sae_weights.safetensors there"),
    ],
)
def test_a_selection_that_is_not_there_is_named(
    more, message, labelled_csv, tiny_configuration, tmp_path, capsys, monkeypatch
):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration, *more)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_sentences_without_labels(finished_store, tiny_configuration, tmp_path, capsys):
    """The same files, but nothing is split and there are no labels to read."""
    csv = tmp_path / "new.csv"
    csv.write_text("sentence\n" + "".join(f'"{sentence}"\n' for sentence, _ in SENTENCES))
    assert main(arguments(csv, tmp_path / "store", tiny_configuration)) == 1
    assert "column 'concept_strength_label' is missing" in capsys.readouterr().err
    assert main(arguments(csv, tmp_path / "store", tiny_configuration, "--unlabelled")) == 0
    part, whole = contents(tmp_path / "store"), contents(finished_store)
    assert {name for name in whole if part[name] != whole[name]} == {"manifest.json", "sentences.csv"}
    reader = FeatureStore(tmp_path / "store")
    assert reader.held_out.all()
    assert len(set(reader.groups)) == len(SENTENCES)
    with pytest.raises(UserError, match="made with --unlabelled, so it has no labels"):
        _ = reader.labels
    one = arguments(csv, tmp_path / "one", tiny_configuration, "--unlabelled", "--limit", "1")
    assert main(one) == 0
    assert FeatureStore(tmp_path / "one").sentences == [SENTENCES[0][0]]


def test_another_model_from_a_local_folder(
    finished_store, labelled_csv, tiny_configuration, tmp_path, monkeypatch
):
    """Relative to where the command runs, as every path on the command line."""
    torch.manual_seed(1)
    model = tiny_gemma2()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(-1)
    model.save_pretrained(tmp_path / "my" / "model")
    small_tokenizer().save_pretrained(tmp_path / "my" / "model")
    monkeypatch.chdir(tmp_path / "my")
    assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration, "--model", "model")) == 0
    reader, other = FeatureStore(tmp_path / "store"), FeatureStore(finished_store)
    assert reader.manifest["model"]["revision"] != other.manifest["model"]["revision"]
    np.testing.assert_array_equal(reader.hidden_states(EMBEDDINGS), -other.hidden_states(EMBEDDINGS))
    assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration, "--resume")) == 1


def test_saes_from_a_local_folder(finished_store, labelled_csv, tiny_configuration, tmp_path):
    shutil.copytree(tiny_configuration.parent, tmp_path / "copy")
    (tmp_path / "copy" / "saes").rename(tmp_path / "elsewhere")
    more = ["--sae-root", str(tmp_path / "elsewhere")]
    assert main(arguments(labelled_csv, tmp_path / "store", tmp_path / "copy" / "tiny.json", *more)) == 0
    assert_same_bytes(tmp_path / "store", finished_store)


def test_bfloat16_encoders_are_close_to_float32(finished_store, labelled_csv, tiny_configuration, tmp_path):
    more = ["--sae-dtype", "bfloat16"]
    assert main(arguments(labelled_csv, tmp_path / "store", tiny_configuration, *more)) == 0
    reader, other = FeatureStore(tmp_path / "store"), FeatureStore(finished_store)
    assert reader.manifest["settings"]["sae_dtype"] == "bfloat16"
    assert not reader.manifest["settings"]["screening"]
    for sae in reader.saes:
        rounded, exact = (store.activations(sae).to_dense() for store in (reader, other))
        assert ((rounded > 0) == (exact > 0)).mean() > 0.98
        both = (rounded > 0) & (exact > 0)
        # Each factor is rounded to 8 bits: 2^-8 relative to |x| |w|, which is a few times the sum.
        assert np.abs(rounded - exact)[both].max() < 2.0**-6 * np.abs(exact).max()
        assert np.abs(rounded - exact)[both].max() > 0


def test_screening_changes_no_support(labelled_csv, tiny_configuration, tmp_path, monkeypatch):
    monkeypatch.setattr(sae_encoder, "MAX_CANDIDATES", 1.0)  # so dense a case would fall back
    calls, original = [], sae_encoder.ThresholdEncoder._screened
    monkeypatch.setattr(
        sae_encoder.ThresholdEncoder,
        "_screened",
        lambda encoder, states: calls.append(len(states)) or original(encoder, states),
    )
    readers = []
    for screening in ("on", "off"):
        output = tmp_path / screening
        assert main(arguments(labelled_csv, output, tiny_configuration, "--screening", screening)) == 0
        readers.append(FeatureStore(output))
        assert readers[-1].manifest["settings"]["screening"] == (screening == "on")
    assert sum(calls) == 6 * readers[0].manifest["n_tokens"]
    for sae in readers[0].saes:
        one, other = (reader.activations(sae) for reader in readers)
        np.testing.assert_array_equal(one.indptr, other.indptr)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_allclose(one.data, other.data, rtol=1e-5, atol=1e-5)
    on, off = (contents(tmp_path / screening) for screening in ("on", "off"))
    assert all(on[name] == off[name] for name in on if "hidden" in name or "tokens" in name)


def full_states(configuration, layer, sentences):
    """The model's own hidden states in float64, sentence by sentence."""
    entry = read_sae_configurations(configuration).model
    model = load_language_model(entry, configuration.parent, "cpu", "float32")
    tokens = [tokenise(model, [text], True)[0] for text in sentences]
    return np.concatenate([forward_states(model, [one], [layer])[layer].double().numpy() for one in tokens])


def test_reconstruction_and_l0_are_what_a_hand_computes(labelled_csv, tiny_configuration, tmp_path, caplog):
    output = tmp_path / "store"
    assert main(arguments(labelled_csv, output, tiny_configuration, "--check-reconstruction")) == 0
    log = json.loads((output / "run_log.json").read_text())
    reader = FeatureStore(output)
    n_sentences = reader.manifest["blocks"][0]["n_sentences"]  # the tokens of the first unit are checked
    assert len(log["variance_explained"]) == len(log["mean_l0_measured"]) == 6
    for sae in reader.saes:
        x = full_states(tiny_configuration, sae.layer, reader.sentences[:n_sentences])
        path = tiny_configuration.parent / "saes" / sae.sae_id / "params.npz"
        arrays = {name: array.astype(np.float64) for name, array in np.load(path).items()}
        p = x @ arrays["W_enc"] + arrays["b_enc"]
        rebuilt = (p * (p > arrays["threshold"])) @ arrays["W_dec"] + arrays["b_dec"]
        expected = 1 - ((x - rebuilt) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
        assert log["variance_explained"][sae.name] == pytest.approx(expected, rel=1e-4)
        measured = (reader.activations(sae).to_dense() > 0).sum(axis=1).mean()
        assert log["mean_l0_measured"][sae.name] == pytest.approx(measured, rel=1e-12)
    rows = {line.split()[0]: line for line in caplog.text.splitlines() if line.startswith("layer_")}
    assert len(rows) == 6
    for sae in reader.saes:
        cells = rows[sae.name].split()
        l0 = log["mean_l0_measured"][sae.name]
        assert cells[1:3] == [f"{l0:.1f}", str(sae.average_l0)]
        assert float(cells[3]) == pytest.approx(log["variance_explained"][sae.name], abs=6e-4)
        assert ("warning: a factor over 2" in rows[sae.name]) == (not 0.5 <= l0 / sae.average_l0 <= 2)
    assert {"warning" in row for row in rows.values()} == {True, False}


def test_reconstruction_of_another_architecture_is_sae_lens_own(tmp_path, labelled_csv, tiny_configuration):
    from sae_lens import SAE

    from tests.s1.test_sae_architectures import save_sae

    content = json.loads(tiny_configuration.read_text())
    content["saes"] = content["saes"][:1]
    content["model"]["id"] = str(tiny_configuration.parent / "model")
    content["weights_format"] = "sae_lens"
    sae_folder = save_sae(tmp_path / "saes" / content["saes"][0]["path"], "topk", {"k": 7}, False)
    (tmp_path / "topk.json").write_text(json.dumps(content))
    more = ["--check-reconstruction"]
    assert main(arguments(labelled_csv, tmp_path / "store", tmp_path / "topk.json", *more)) == 0
    log = json.loads((tmp_path / "store" / "run_log.json").read_text())
    n_sentences = FeatureStore(tmp_path / "store").manifest["blocks"][0]["n_sentences"]
    x = torch.from_numpy(full_states(tiny_configuration, 0, [text for text, _ in SENTENCES[:n_sentences]]))
    with torch.inference_mode():
        rebuilt = SAE.load_from_disk(sae_folder).forward(x.float()).double()
    expected = 1 - (x - rebuilt).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert log["variance_explained"]["layer_00_l0_8"] == pytest.approx(float(expected), rel=1e-4)
    assert log["mean_l0_measured"]["layer_00_l0_8"] == pytest.approx(7, abs=0.5)


def test_the_precision_reaches_encoders_that_sae_lens_runs(tmp_path, labelled_csv, tiny_configuration):
    from tests.s1.test_sae_architectures import save_sae

    content = json.loads(tiny_configuration.read_text())
    content["saes"] = content["saes"][:1]
    content["model"]["id"] = str(tiny_configuration.parent / "model")
    content["weights_format"] = "sae_lens"
    save_sae(tmp_path / "saes" / content["saes"][0]["path"], "topk", {"k": 7}, False)
    (tmp_path / "topk.json").write_text(json.dumps(content))
    values = {}
    for dtype in ("float32", "bfloat16"):
        output = tmp_path / dtype
        assert main(arguments(labelled_csv, output, tmp_path / "topk.json", "--sae-dtype", dtype)) == 0
        with np.load(output / "block_0000" / "sae_layer_00_l0_8.npz") as arrays:
            values[dtype] = torch.from_numpy(arrays["data"])
    assert torch.equal(values["bfloat16"], values["bfloat16"].bfloat16().float())
    assert not torch.equal(values["float32"], values["float32"].bfloat16().float())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--input", "a.csv", "b.csv"], "2 --input and 1 --output; give one output each"),
        (["--output", "x", "y"], "1 --input and 2 --output"),
        (["--input", "a.csv", "b.csv", "--output", "x", "./x"], "two --output are the same folder"),
        (["--screening", "on", "--sae-dtype", "bfloat16"], "--screening on needs --sae-dtype float32"),
        (["--resume", "--overwrite"], "not allowed with argument"),
        (["--extend", "--verify"], "not allowed with argument"),
        (["--resume", "--extend"], "not allowed with argument"),
        (["--l0", "8", "--max-l0", "9"], "not allowed with argument"),
        (["--layers", "3-1"], "runs backwards"),
        (["--layers", "first"], "neither a number nor a range"),
        (["--limit", "0"], "0 is not at least 1"),
        (["--block-tokens", "-5"], "-5 is not at least 1"),
        (["--tokens", "some"], "invalid choice"),
        (["--hidden-states", "half"], "invalid choice"),
        (["--device", "tpu"], "invalid choice"),
        (["--sae-dtype", "int8"], "invalid choice"),
    ],
)
def test_wrong_usage_exits_2(more, message, labelled_csv, tiny_configuration, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments(labelled_csv, tmp_path / "store", tiny_configuration, *more))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [labelled_csv]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named(kind, labelled_csv, tiny_configuration, tmp_path, capsys):
    if getattr(torch.backends, kind).is_built() and getattr(torch, kind).is_available():
        pytest.skip(f"this machine has {kind}")
    assert main([*arguments(labelled_csv, tmp_path / "store", tiny_configuration), "--device", kind]) == 1
    assert f"--device {kind}: this machine has none that torch can use" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
