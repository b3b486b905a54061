"""The releases of sae-lens's registry as tables: for the command line, and for REGISTRY.md."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipeline_common.errors import UserError
from s1_compute_all_features.saes.registry_entries import Refused, RegisteredSae, registry, saes_of
from s1_compute_all_features.saes.registry_files import HubFileMissing, HubFiles
from s1_compute_all_features.saes.registry_models import model_of
from s1_compute_all_features.saes.registry_names import width_of
from s1_compute_all_features.saes.registry_sites import training_of
from s1_compute_all_features.saes.sites import HOOKS

PUBLISHED = {
    "connor_rob_hook_z": "attention SAEs of GPT-2",
    "deepseek_r1": "qresearch, DeepSeek R1",
    "dictionary_learning_1": "SAE Bench; andyrdt",
    "gemma_2": "Gemma Scope",
    "gemma_2_transcoder": "Gemma Scope, transcoders",
    "gemma_3": "Gemma Scope 2",
    "goodfire": "Goodfire",
    "llama_scope": "Llama Scope",
    "llama_scope_r1_distill": "Llama Scope, R1 distillation",
    "mntss_clt_layer_transcoder": "cross-layer transcoder of Gemma 2",
    "mwhanna_transcoder": "transcoders of Qwen 3",
    "qwen_scope": "Qwen-Scope",
    "sae_lens": "GPT-2, Pythia, Gemma, Mistral, Llama 3 and others in sae-lens's own format",
    "sparsify": "EleutherAI",
    "temporal": "temporal SAEs",
}
"""Loader to what it is known for."""


def places_of(saes: Iterable[RegisteredSae]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Where SAEs read, as far as that is known without a file of the hub.

    Returns:
        Counts of SAEs by hook within a block, by the hub's file that tells it, and by the reason why
        they are refused.
    """
    known: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    files = HubFiles(looks=False)
    for sae in saes:
        try:
            known[HOOKS[training_of(sae, files).site.kind]] += 1
        except HubFileMissing as missing:
            asked[missing.name] += 1
        except Refused as refusal:
            refused[refusal.reason] += 1
    return known, asked, refused


def list_releases(model: str | None = None) -> str:
    """A table of the releases: name, model, number of SAEs, sites, widths.

    Args:
        model: Hugging Face id, or the registry's name, of the model that they are for; None for all.

    Raises:
        UserError: there is no release for the model.
    """
    directory = registry()
    chosen = [
        release
        for release in sorted(directory)
        if model is None or model.lower() in (model_of(release).lower(), directory[release].model.lower())
    ]
    if not chosen:
        models = sorted({model_of(release) or directory[release].model for release in directory})
        raise UserError(f"no release is for the model {model!r}; there are some for {', '.join(models)}")
    rows = [("release", "model", "SAEs", "sites", "widths")]
    for release in chosen:
        saes = saes_of(release)
        known, asked, _ = places_of(saes)
        sites = [*sorted(known), *(f"as {name} on the hub says" for name in asked)]
        widths = sorted({width_of(sae) for sae in saes} - {""}, key=_in_ones)
        model_id = model_of(release) or directory[release].model
        rows.append((release, model_id, str(len(saes)), ", ".join(sites), ", ".join(widths) or "-"))
    return _aligned(rows)


def _in_ones(width: str) -> float:
    scale = {"k": 1e3, "m": 1e6}.get(width[-1], 1.0)
    digits = width.rstrip("km")
    return float(digits) * scale if digits.isdigit() else 0.0


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    lengths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(length) for cell, length in zip(row, lengths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def table_of_loaders() -> str:
    """The Markdown table of REGISTRY.md: a row for each loader, and the totals."""
    groups: dict[str, list[str]] = {}
    for release, entry in registry().items():
        groups.setdefault(entry.conversion_func or "sae_lens", []).append(release)
    lines = [
        "| loader | of | releases | entries | site known off line | site from a hub file | refused because |",
        "|---|---|---:|---:|---|---|---|",
    ]
    sums = [0] * 5
    for loader in sorted(groups):
        saes = [sae for release in groups[loader] for sae in saes_of(release)]
        places = places_of(saes)
        counts = [len(groups[loader]), len(saes), *(sum(count.values()) for count in places)]
        sums = [one + other for one, other in zip(sums, counts, strict=True)]
        cells = [
            f"`{loader}`",
            PUBLISHED.get(loader, ""),
            *(f"{count:,}" for count in counts[:2]),
            *map(_counted, places),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| **all** | | {' | '.join(f'**{count:,}**' for count in sums)} |")
    return "\n".join(lines) + "\n"


def table_of_releases() -> str:
    """The Markdown table of REGISTRY.md with a row for each release."""
    lines = [
        "| release | entries | site known off line | site from a hub file | refused because |",
        "|---|---:|---|---|---|",
    ]
    for release in sorted(registry()):
        saes = saes_of(release)
        cells = [f"`{release}`", f"{len(saes):,}", *map(_counted, places_of(saes))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _counted(counts: Mapping[str, int]) -> str:
    parts = [f"{count:,} {name if ' ' in name else f'`{name}`'}" for name, count in sorted(counts.items())]
    return ", ".join(parts) or "-"
