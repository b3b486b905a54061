"""The script that trains SAEs: what it writes, that it goes on after a kill, and what it refuses."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from s1_compute_all_features import extract_sae_features, train_saes
from s1_compute_all_features.feature_store import FeatureStore
from s1_compute_all_features.saes import training, training_run

WORDS = ["clerk", "watch", "coin", "rain", "gardener", "report", "number", "hour", "house", "river"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "general.txt"
    path.write_text("\n".join(" ".join(rng.choice(WORDS, 9)) + "." for _ in range(300)))
    return path


def command(tiny_configuration, texts, output, *more):
    return [
        *("--config", str(tiny_configuration), "--texts", str(texts), "--output", str(output)),
        *("--layers", "0,2", "--width", "48", "--l0", "6", "--tokens", "3000", "--held-out-tokens", "500"),
        *("--context", "24", "--step-tokens", "128", "--batch-tokens", "512", "--threads", "1", *more),
    ]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(training, "UNIT_TOKENS", 1000)


@pytest.fixture(scope="module")
def trained(tiny_configuration, texts, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "saes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "UNIT_TOKENS", 1000)
        assert train_saes.main(command(tiny_configuration, texts, output, "--measure", str(texts))) == 0
    return output


def weights(folder):
    return {
        (path.parent.name, name): array
        for path in sorted(folder.glob("*/sae_weights.safetensors"))
        for name, array in load_file(path).items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_sae_lens_opens_what_was_written(trained):
    from sae_lens import SAE

    sae = SAE.load_from_disk(trained / "layer_02")
    assert (sae.cfg.architecture(), sae.cfg.d_in, sae.cfg.d_sae) == ("jumprelu", 16, 48)
    assert sae.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    assert sae.cfg.normalize_activations == "none"  # the scale is in the weights
    assert (sae.threshold > 0).all()


def test_the_configuration_has_s1_use_them(trained, tmp_path):
    rng = np.random.default_rng(1)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, 6)) for _ in range(160)]
    rows = [f"{' '.join(words[8 * index : 8 * index + 8])}.,{index % 2 * 3}" for index in range(20)]
    (tmp_path / "caring.csv").write_text("\n".join(["sentence,concept_strength_label", *rows]))
    arguments = ["--input", str(tmp_path / "caring.csv"), "--output", str(tmp_path / "store")]
    assert extract_sae_features.main([*arguments, "--config", str(trained / "configurations.json")]) == 0
    store = FeatureStore(tmp_path / "store")
    assert [(sae.layer, sae.d_sae) for sae in store.saes] == [(0, 48), (2, 48)]
    assert all(len(store.activations(sae).data) for sae in store.saes)


def test_the_card_shows_the_measurements(trained):
    card = (trained / "README.md").read_text()
    record = json.loads((trained / "measurements.json").read_text())
    assert set(record["measured"]) == {training_run.HELD_OUT, "general.txt"}
    for by_layer in record["measured"].values():
        for layer, figure in by_layer.items():
            assert f"| {layer} | {figure['l0']:.1f} | {figure['variance_explained']:.3f} |" in card
            assert figure["variance_explained"] <= 1
    # whole steps only: at most one step less than all in each of the units, and no token twice
    assert 3000 - 128 * 5 <= record["n_tokens"] <= 3000 + 24
    assert record["texts"][0]["sha256"] in card
    assert not (trained / "progress.json").exists()
    assert not (trained / "checkpoints").exists()


def test_training_explains_more_than_the_mean(trained):
    record = json.loads((trained / "measurements.json").read_text())
    figures = record["measured"][training_run.HELD_OUT]
    assert all(figure["variance_explained"] > 0.1 for figure in figures.values())


def test_the_same_run_gives_the_same_weights(trained, tiny_configuration, texts, tmp_path):
    assert train_saes.main(command(tiny_configuration, texts, tmp_path / "again")) == 0
    assert same(weights(trained), weights(tmp_path / "again"))
    assert train_saes.main(command(tiny_configuration, texts, tmp_path / "other", "--seed", "1")) == 0
    assert not same(weights(trained), weights(tmp_path / "other"))


def test_a_killed_run_goes_on_to_the_same_weights(trained, tiny_configuration, texts, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    compute = training.hidden_states
    units = []

    def killed_in_the_third(*arguments):
        units.append(1)
        if len(units) == 3:
            raise Killed
        return compute(*arguments)

    output = tmp_path / "saes"
    with monkeypatch.context() as patch:
        patch.setattr(training, "hidden_states", killed_in_the_third)
        with pytest.raises(Killed):
            train_saes.main(command(tiny_configuration, texts, output))
    assert not output.exists()
    units.clear()
    monkeypatch.setattr(training, "hidden_states", lambda *a: units.append(1) or compute(*a))
    assert train_saes.main(command(tiny_configuration, texts, output)) == 0
    assert len(units) == 2  # of four
    assert same(weights(trained), weights(output))


def test_float16_matrices_are_half_the_size(trained, tiny_configuration, texts, tmp_path):
    output = tmp_path / "saes"
    assert train_saes.main(command(tiny_configuration, texts, output, "--weights-dtype", "float16")) == 0
    for key, array in weights(output).items():
        assert array.dtype == (np.float16 if array.ndim == 2 else np.float32)
        np.testing.assert_array_equal(array, weights(trained)[key].astype(array.dtype))


def test_what_is_there_is_not_replaced_unasked(trained, tiny_configuration, texts, capsys):
    assert train_saes.main(command(tiny_configuration, texts, trained)) == 1
    assert "already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--layers", "1,7"], 1, "--layers: the model model has the layers 0 to 2"),
        (["--texts", "none.txt"], 1, "none.txt: no such file"),
        (["--measure", "none.txt"], 1, "none.txt: no such file"),
        (["--no-bos"], 2, "--no-bos goes with --model"),
        (["--l0", "0"], 2, "at least 1"),
    ],
)
def test_wrong_input_is_told_in_one_line(more, code, message, tiny_configuration, texts, tmp_path, capsys):
    arguments = command(tiny_configuration, texts, tmp_path / "saes", *more)
    if code == 2:
        with pytest.raises(SystemExit) as ended:
            train_saes.main(arguments)
        assert ended.value.code == 2
    else:
        assert train_saes.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "saes").exists()
