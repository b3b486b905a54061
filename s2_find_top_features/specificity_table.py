"""``specificity.csv`` read back: listed features on other traits' sentences; part of ranked_features.py."""

from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv
from s2_find_top_features.table_cells import index_of, number_of

SPECIFICITY = "specificity.csv"
_SPECIFICITY_NUMBERS = (
    "held_out_auroc_3_vs_0",
    "held_out_auroc_3_vs_0_of_other",
    "held_out_auroc_3_vs_3_of_other",
    "n_label_3",
    "n_label_3_of_other",
    "n_label_0_of_other",
    "n_left_out",
)
SPECIFICITY_COLUMNS = (
    *("rank", "sae_name", "layer", "average_l0", "feature_id", "other_trait"),
    *_SPECIFICITY_NUMBERS,
)


def read_specificity(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``specificity.csv``; none where the run compared no other traits.

    Returns:
        Column to value: texts for ``sae_name`` and ``other_trait``, else numbers, None where one does not
        exist.

    Raises:
        UserError: a column is missing, or a number is none.
    """
    path = folder / SPECIFICITY
    if not path.is_file():
        return []
    header, rows = read_csv(path, "table of specificity")
    missing = [name for name in SPECIFICITY_COLUMNS if name not in header]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; run analyze_features.py again")
    specificity: list[dict[str, Any]] = []
    for line, cells in rows:
        row = dict(zip(header, cells, strict=True))
        try:
            identity: dict[str, int | None] = {
                name: index_of(name, row[name]) for name in ("rank", "layer", "feature_id")
            }
            identity["average_l0"] = index_of("average_l0", row["average_l0"]) if row["average_l0"] else None
            numbers = {name: number_of(row[name]) for name in _SPECIFICITY_NUMBERS}
        except ValueError as error:
            raise UserError(f"{path}: line {line}: {error}; run analyze_features.py again") from None
        texts = {name: row[name] for name in ("sae_name", "other_trait")}
        specificity.append({**texts, **identity, **numbers})
    return specificity
