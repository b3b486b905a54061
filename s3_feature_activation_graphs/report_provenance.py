"""Where a report's numbers come from: model, SAEs, versions, hashes, seeds, and the commands behind them."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_common.provenance import library_versions
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import RankedResults

LIBRARIES = ("jinja2", "numpy")

_FLAGS = {
    "min_pearson": "--min-pearson",
    "min_tpr": "--min-tpr",
    "max_fpr": "--max-fpr",
    "pooling": "--pooling",
    "rank_by": "--rank-by",
    "top_n": "--top-n",
    "n_permutations": "--permutations",
    "seed": "--seed",
}


def provenance(
    store: FeatureStore,
    results: RankedResults,
    other_traits: Sequence[str],
    hashes: Mapping[str, str],
    own_command: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """The content of the report's last section.

    Args:
        store: the feature store.
        results: of stage 2.
        other_traits: of the contrast.
        hashes: file name to SHA-256, of the files that the report shows.
        own_command: of the report.
        seed: of the report's random sentences.
    """
    manifest = store.manifest
    given = manifest["input"]
    return {
        "model": manifest["model"],
        "releases": sorted({sae.release for sae in store.saes if sae.release}),
        "saes": store.saes,
        "hashes": {
            f"sentences, {given['file']}": given["sha256"],
            f"feature store {store.path.resolve().name}, manifest.json": store.fingerprint,
            **hashes,
        },
        "seeds": {
            "split of the sentences": manifest.get("split", {}).get("seed"),
            "permutations, bootstraps, random directions": results.summary["settings"]["seed"],
            "random sentences of this report": seed,
        },
        "libraries": {
            "feature store (stage 1)": manifest.get("libraries", {}),
            "ranking (stage 2)": results.summary.get("libraries", {}),
            "this report": library_versions(LIBRARIES),
        },
        "extraction_settings": manifest.get("settings", {}),
        "commands": [
            shlex.join(_extraction(store)),
            shlex.join(_ranking(store, results, other_traits)),
            shlex.join(own_command),
        ],
    }


def _extraction(store: FeatureStore) -> list[str]:
    command = ["extract_sae_features.py", "--input", store.manifest["input"]["file"]]
    command += ["--output", store.path.resolve().name, "--config", "CONFIGURATION.json"]
    command += ["--hidden-states", store.hidden_states_stored]
    if not store.tells_sinks:
        command.append("--keep-sinks")
    settings = {"dtype": store.manifest["model"].get("dtype"), **store.manifest.get("settings", {})}
    for name in (
        "tokens",
        "device",
        "dtype",
        "sae_dtype",
        "batch_tokens",
        "block_tokens",
        "threads",
        "limit",
    ):
        if settings.get(name) is not None:
            command += [f"--{name.replace('_', '-')}", str(settings[name])]
    return command


def _ranking(store: FeatureStore, results: RankedResults, other_traits: Sequence[str]) -> list[str]:
    settings = results.summary["settings"]
    command = ["analyze_features.py", "--input", store.path.resolve().name, "--output", "RESULTS"]
    for name, flag in _FLAGS.items():
        command += [flag, str(settings[name])]
    if settings["stratify_by_length"]:
        command.append("--stratify-by-length")
    if results.keep_sinks:
        command.append("--keep-sinks")
    if results.summary.get("pooling_comparison"):
        command.append("--compare-poolings")
    if other_traits:
        command += ["--contrast", *(f"STORE_OF_{trait}" for trait in other_traits)]
    return command
