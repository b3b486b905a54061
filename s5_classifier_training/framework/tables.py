"""Small tables as aligned text and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from s1_compute_all_features.feature_store import model_name


def named_model(dataset: Mapping[str, Any]) -> str:
    """The language model of a dataset, by its description, as pictures and tables name it."""
    return model_name({"id": dataset["model"], **dataset.get("model_details", {})})


def number(value: float | None, digits: int = 3) -> str:
    """A number as tables show it; a dash where there is none."""
    # + 0.0 turns the -0.0 that rounding may leave into 0.0.
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def as_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, two spaces between them."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"
    )
