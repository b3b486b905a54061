"""Fixtures that several stages share."""

import json

import pytest


@pytest.fixture(scope="session")
def tiny_configuration(tmp_path_factory):
    """A configuration file whose model and SAEs lie in folders beside it."""
    # Imported here: torch and transformers take seconds that tests of other stages need not spend.
    from tests.fake_hub import small_tokenizer, tiny_gemma2, write_params

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
