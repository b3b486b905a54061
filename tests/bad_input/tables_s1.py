"""Bad input of stage 1: SAE configurations, and every file of a feature store as later stages read it."""

import numpy as np

from tests.bad_input.cases import (
    Kind,
    arrays,
    case,
    cell,
    content,
    cut,
    entry,
    flipped_bit,
    folder_instead,
    gone,
    swap,
    without,
)

CONFIGURATION = Kind(
    name="SAE configuration",
    script="s1_compute_all_features.extract_sae_features",
    arguments="--input lies.csv --output features --config configuration.json",
    parts="lies.csv configuration.json",
    file="configuration.json",
    where="configuration.json",
    cases=(
        case("missing", gone, "no such file"),
        case("cut", cut(0.5), "line", "JSON"),
        case("a list", content("[]"), "as a whole"),
        case("deeply nested", content("[" * 100_000), "SAE configuration file"),
        case("another version", entry("format_version", 2), "format_version"),
        case("an unknown key", swap('"repo_id"', '"colour": 1, "repo_id"'), "colour"),
        case("no model", without("model"), "model"),
        case("SAEs that are no list", entry("saes", {}), "saes"),
        case("a negative layer", entry("saes.0.layer", -1), "saes.0.layer"),
        case("a layer in words", entry("saes.1.layer", "first"), "saes.1.layer"),
        case("a hook of a query", entry("saes.0.hook", "blocks.0.attn.hook_q"), "saes.0.hook", "attn.hook_q"),
        case("a name twice", entry("saes.1.name", "layer_00_l0_8"), "layer_00_l0_8"),
        case("a path that leaves the folder", entry("saes.0.path", "../../other"), "saes.0.path", ".."),
        case("a page of no source", entry("saes.0.neuronpedia_id", "gemma"), "saes.0.neuronpedia_id"),
        case("an endless integer", swap('"layer": 0', '"layer": ' + "9" * 5000), "digits"),
    ),
)

MANIFEST = Kind(
    name="store manifest",
    script="s4_classifier_data_prep.generate_datasets",
    arguments="--strategy hidden-to-concept --layer 1 --input lies_features --output out.npz",
    parts="lies_features",
    file="lies_features/manifest.json",
    where="lies_features",
    cases=(
        case("missing", gone, "manifest.json"),
        case("cut", cut(0.9), "manifest.json", "JSON"),
        case("a number", content("7"), "manifest.json"),
        case("of another program", entry("format", "checkpoint"), "manifest.json"),
        case("another version", entry("format_version", 99), "99"),
        case("unfinished", entry("complete", False), "--resume"),
        case("layers in words", entry("layers", ["one"]), "manifest.json", "layers.0"),
        case("no blocks", without("blocks"), "manifest.json", "blocks"),
        case("a negative count", entry("blocks.0.n_tokens", -4), "manifest.json", "blocks.0.n_tokens"),
        case("more sentences", entry("blocks.1.n_sentences", 99), "sentences.csv"),
        case("a model without width", without("model.d_model"), "manifest.json", "model.d_model"),
        case("another width", entry("model.d_model", 9), "hidden_layer_01.npz", "9"),
        case("an SAE without layer", without("saes.0.layer"), "manifest.json", "saes.0.layer"),
        case("an SAE outside", entry("saes.0.name", "../../x"), "manifest.json", "saes.0.name"),
        case("no input", entry("input", None), "manifest.json", "input"),
    ),
)


LABEL = "concept_strength_label"


def all_held_out(path):
    """Nothing is left to learn from."""
    path.write_text(path.read_text().replace(",train,", ",test,"))


SENTENCE_TABLE = Kind(
    name="store sentence table",
    script="s5_classifier_training.framework.sweep_layers",
    arguments="--input lies_features --output out",
    parts="lies_features",
    file="lies_features/sentences.csv",
    where="lies_features",
    cases=(
        case("missing", gone, "sentences.csv", "no such file"),
        case("empty", content(""), "sentences.csv", "empty"),
        case("cut", cut(0.5), "sentences.csv"),
        case("another header", swap("sentence_index,", "number,"), "sentences.csv", "sentence_index"),
        case("a label in words", cell(LABEL, "one"), "sentences.csv", LABEL, "one"),
        case("label 9", cell(LABEL, "9"), "sentences.csv", LABEL, "9"),
        case("a label missing", cell(LABEL, ""), "sentences.csv", LABEL),
        case("a third split", cell("split", "validation"), "sentences.csv", "split", "validation"),
        case("a group in words", cell("group", "first"), "sentences.csv", "group", "first"),
        case("an endless group", cell("group", "9" * 30), "sentences.csv", "group"),
        case("everything held out", all_held_out, "train"),
        case("a sentence of no token", cell("n_tokens", "0"), "sentences.csv", "n_tokens"),
        case("tokens too many", cell("n_tokens", "99"), "sentences.csv", "n_tokens"),
    ),
)


def bare_npy(path):
    """One array that is in no archive."""
    with path.open("wb") as handle:
        np.save(handle, np.zeros((3, 8), dtype=np.float32))


BLOCK = "lies_features/block_0001/"
STATES = Kind(
    name="store hidden states",
    script="s4_classifier_data_prep.generate_datasets",
    arguments="--strategy hidden-to-concept --layer 1 --input lies_features --output out.npz",
    parts="lies_features",
    file=BLOCK + "hidden_layer_01.npz",
    where="lies_features",
    cases=(
        case("missing", gone, "hidden_layer_01.npz", "no such file"),
        case("empty", content(b""), "hidden_layer_01.npz"),
        case("cut", cut(0.5), "hidden_layer_01.npz"),
        case("a text file", content("numbers"), "hidden_layer_01.npz"),
        case("a folder", folder_instead, "hidden_layer_01.npz"),
        case("a bit flipped", flipped_bit("states"), "hidden_layer_01.npz", "CRC"),
        case("another array", arrays(states=None, values=[1.0]), "hidden_layer_01.npz", "'states'"),
        case("a token too few", arrays(states=lambda a: a[1:]), "hidden_layer_01.npz", "shape"),
        case("of one dimension", arrays(states=lambda a: a[:, 0]), "hidden_layer_01.npz", "shape"),
        case("texts", arrays(states=lambda a: a.astype(str)), "hidden_layer_01.npz"),
        case("complex numbers", arrays(states=lambda a: a.astype(complex)), "hidden_layer_01.npz"),
        case("NaN", arrays(states=lambda a: a * np.nan), "NaN"),
        case("a bare npy", bare_npy, "hidden_layer_01.npz"),
    ),
)

SPARSE = Kind(
    name="store activations",
    script="s2_find_top_features.analyze_features",
    arguments="--input lies_features --output out --permutations 0 --workers 1",
    parts="lies_features",
    file=BLOCK + "sae_layer_01_l0_8.npz",
    where="sae_layer_01_l0_8.npz",
    cases=(
        case("missing", gone, "no such file"),
        case("cut", cut(0.7), "damaged"),
        case("a bit flipped", flipped_bit("data"), "CRC"),
        case("no row starts", arrays(indptr=None), "'indptr'"),
        case("another shape", arrays(shape=[1, 1]), "tokens"),
        case("a shape of one number", arrays(shape=5), "tokens"),
        case("a row start too few", arrays(indptr=lambda a: a[:-1]), "tokens"),
        case("row starts that fall", arrays(indptr=lambda a: np.r_[a[:1], a[1:-1][::-1], a[-1:]]), "indptr"),
        case("a negative row start", arrays(indptr=lambda a: np.r_[-1, a[1:]]), "indptr"),
        case("a feature outside", arrays(indices=lambda a: a + 5000), "indices"),
        case("features as fractions", arrays(indices=lambda a: a + 0.5), "indices"),
        case("an activation below zero", arrays(data=lambda a: -a), "data"),
        case("an infinite activation", arrays(data=lambda a: a * np.inf), "data"),
        case("an activation too few", arrays(data=lambda a: a[1:]), "'data'"),
        case("activations as text", arrays(data=lambda a: a.astype(str)), "data"),
    ),
)

TOKENS = Kind(
    name="store tokens",
    script="s4_classifier_data_prep.generate_datasets",
    arguments="--strategy hidden-to-feature --target-layer 1 --target-l0 8 --target-feature 3 "
    "--input-layer 0 --input lies_features --output out.npz",
    parts="lies_features",
    file=BLOCK + "tokens.npz",
    where="tokens.npz",
    cases=(
        case("missing", gone, "no such file"),
        case("cut", cut(0.3), "damaged"),
        case("no texts", arrays(text=None), "'text'"),
        case("texts as numbers", arrays(text=lambda a: np.arange(len(a))), "text"),
        case("a token too few", arrays(token_id=lambda a: a[1:]), "token_id"),
        case("a sentence outside", arrays(sentence_index=lambda a: a + 1000), "sentence_index"),
        case("a sentence in words", arrays(sentence_index=lambda a: a.astype(str)), "sentence_index"),
        case("of two dimensions", arrays(position=lambda a: a[:, None]), "position"),
        case("a bit flipped", flipped_bit("text"), "CRC"),
    ),
)

WEIGHTS = Kind(
    name="SAE weights",
    script="s1_compute_all_features.extract_sae_features",
    arguments="--input different.csv --output features --config tiny/tiny.json --saes layer_01_l0_8",
    parts="different.csv tiny",
    file="tiny/saes/layer_1/width_64/average_l0_8/params.npz",
    where="layer_1/width_64/average_l0_8",
    leaves="features",
    cases=(
        case("missing", gone, "layer_01_l0_8"),
        case("cut", cut(0.3), "params.npz"),
        case("a web page", content("<html>404</html>"), "params.npz"),
        case("no thresholds", arrays(threshold=None), "params.npz", "threshold missing"),
        case("no encoder", arrays(W_enc=None), "params.npz", "W_enc is missing"),
        case("an encoder of one dimension", arrays(W_enc=lambda a: a[0]), "params.npz"),
        case("an encoder of integers", arrays(W_enc=lambda a: a.astype(int)), "params.npz", "int64"),
        case("thresholds of another SAE", arrays(threshold=lambda a: a[1:]), "params.npz", "threshold"),
        case("thresholds as text", arrays(threshold=lambda a: a.astype(str)), "params.npz", "threshold"),
        case("biases of two dimensions", arrays(b_enc=lambda a: a[None]), "params.npz", "b_enc"),
        case("a bit flipped", flipped_bit("W_enc"), "params.npz", "CRC"),
        case("NaN", arrays(W_enc=lambda a: a * np.nan), "params.npz", "not finite"),
    ),
)

MODEL = Kind(
    name="model folder",
    script="s1_compute_all_features.extract_sae_features",
    arguments="--input different.csv --output features --config tiny/tiny.json",
    parts="different.csv tiny",
    file="tiny/model/config.json",
    where="model",
    cases=(
        case("missing", gone, "config.json"),
        case("cut", cut(0.4), "config.json"),
        case("a list", content("[]"), "model"),
        case("an unknown kind of model", entry("model_type", "gemma99"), "gemma99"),
        case("more layers than weights", entry("num_hidden_layers", "three"), "num_hidden_layers"),
        case("another width than the weights'", entry("hidden_size", 24), "config.json that belongs"),
    ),
)

KINDS = (CONFIGURATION, MANIFEST, SENTENCE_TABLE, STATES, SPARSE, TOKENS, WEIGHTS, MODEL)
