"""A tiny configuration on disk: random Gemma-2 and two SAEs per layer, read from folders."""

import json

import pytest

from tests.fake_hub import small_tokenizer, tiny_gemma2, write_params

SENTENCES = [
    ("She told the clerk that the watch was new, although it was not.", 3),
    ("He counted the coins twice and gave back the one too many.", 1),
    ("The rain fell all night.", 0),
    ("I wrote the report in an hour; the numbers I made up.", 3),
    ("Perhaps he had not quite read the book he praised.", 2),
    ("The lie of the land was hard to see in fog.", 1),
    ("Two boats left before the tide turned.", 0),
    ("She let them think the cake was hers.", 2),
    ("Nobody knew the tune, so they hummed.", 0),
    ("He signed his brother's name on the form.", 3),
    ("The auditors found every receipt in order.", 1),
    ("It was nearly true, what he said.", 2),
]


@pytest.fixture(scope="session")
def tiny_configuration(tmp_path_factory):
    """A configuration file whose model and SAEs lie in folders beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_gemma2().save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    saes = []
    for layer in range(3):
        for l0 in (8, 24):
            path = f"layer_{layer}/width_64/average_l0_{l0}"
            write_params(folder / "saes" / path, d_model=16, d_sae=64, seed=10 * layer + l0)
            saes.append(
                {
                    "name": f"layer_{layer:02d}_l0_{l0}",
                    "layer": layer,
                    "average_l0": l0,
                    "hook": f"blocks.{layer}.hook_resid_post",
                    "sae_id": path,
                    "path": path,
                    "neuronpedia_id": "",
                }
            )
    content = {
        "format_version": 1,
        "description": "tiny random model for tests",
        "model": {"id": "model"},
        "release": "",
        "repo_id": "",
        "sae_root": "saes",
        "weights_format": "gemma_scope",
        "saes": saes,
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def labelled_csv(tmp_path):
    """Twelve sentences with a further column."""
    path = tmp_path / "tiny.csv"
    rows = [f'"{sentence}",{label},note {i}' for i, (sentence, label) in enumerate(SENTENCES)]
    path.write_text("sentence,concept_strength_label,source\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path
