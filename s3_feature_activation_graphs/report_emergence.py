"""At which layer the concept becomes readable: stage 5's sweep over layers, read and laid out as a chart."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv
from s3_feature_activation_graphs.report_charts import Axis

NUMBERS = (
    "n_train",
    "n_test",
    "cv_auroc_mean",
    "cv_auroc_std",
    "test_auroc",
    "test_auroc_low",
    "test_auroc_high",
    "cv_accuracy_mean",
    "test_accuracy",
)
COLUMNS = ("trait", "layer", "estimator", "pooling", *NUMBERS)
EMBEDDINGS = "embeddings"
MAX_BANDS = 3
"""With more curves than this, their intervals would hide one another; the table has them."""

WIDTH, HEIGHT = 560, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 12, 40
_TICK_WIDTH = 34


@dataclass(frozen=True)
class SweepRow:
    """One classifier of the sweep.

    Attributes:
        layer: -1 for the embeddings; None for a baseline that reads no layer.
        estimator: the kind of classifier, or the baseline's name.
        pooling: how a sentence's tokens became one vector.
        values: each of `NUMBERS`; None where it does not exist.
    """

    layer: int | None
    estimator: str
    pooling: str
    values: dict[str, float | None]

    @property
    def name(self) -> str:
        """Estimator and pooling in words."""
        estimator = self.estimator.replace("_", " ")
        return f"{estimator}, {self.pooling} pooling" if self.pooling else estimator

    @property
    def auroc(self) -> float:
        """The held-out AUROC, for a row that has one."""
        value = self.values["test_auroc"]
        assert value is not None
        return value

    @property
    def interval(self) -> tuple[float, float]:
        """Of the held-out AUROC; the AUROC itself where there is no interval."""
        low, high = self.values["test_auroc_low"], self.values["test_auroc_high"]
        return (self.auroc if low is None else low, self.auroc if high is None else high)


def read_layer_sweep(path: Path, names: Collection[str], model: str) -> list[SweepRow]:
    """The rows of one trait in a layer sweep.

    Args:
        path: the CSV.
        names: under which the trait may stand: the labelled CSV's name, or the store folder's.
        model: rows of another model, where the file names models, are passed over.

    Raises:
        UserError: missing, a column is missing, a cell is no number, or no row is of this trait and model.
    """
    header, rows = read_csv(path, "layer sweep made by sweep_layers.py")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; expected a CSV made by sweep_layers.py")
    found, traits = [], set()
    for line, cells in rows:
        row = dict(zip(header, cells, strict=True))
        traits.add(row["trait"])
        if row["trait"] not in names or row.get("model", model) != model:
            continue
        try:
            layer = -1 if row["layer"] == EMBEDDINGS else int(row["layer"]) if row["layer"] else None
            values = {name: _finite(row[name]) for name in NUMBERS}
        except ValueError as error:
            raise UserError(f"{path}: line {line}: {error}; run sweep_layers.py again") from None
        found.append(SweepRow(layer, row["estimator"], row["pooling"], values))
    if not found:
        there = ", ".join(sorted(traits)) or "none"
        raise UserError(
            f"{path}: no row of the trait {' or '.join(names)} with the model {model}; "
            f"traits in the file: {there}"
        )
    return found


def _finite(text: str) -> float | None:
    value = float(text) if text else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def emergence_chart(rows: Sequence[SweepRow]) -> dict[str, Any] | None:
    """The sweep as coordinates of a chart: held-out AUROC over layers, one curve per estimator and pooling.

    Returns:
        Ready for the template; None where no row has a layer and a held-out AUROC.
    """
    known = [row for row in rows if row.values["test_auroc"] is not None]
    layers = sorted({row.layer for row in known if row.layer is not None})
    if not layers:
        return None
    y_axis = Axis.of(min(0.4, *(row.interval[0] for row in known)), 1.0, HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _LEFT - _RIGHT) / len(layers)
    x_of = {layer: _LEFT + (place + 0.5) * step for place, layer in enumerate(layers)}
    curves: dict[str, list[tuple[float, SweepRow]]] = {}
    for row in known:
        if row.layer is not None:
            curves.setdefault(row.name, []).append((x_of[row.layer], row))
    every = math.ceil(_TICK_WIDTH / step)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "bottom": HEIGHT - _BOTTOM,
        "ticks": y_axis.ticks(),
        "chance": y_axis.at(0.5),
        "layers": [
            {"x": x_of[layer], "text": "emb" if layer < 0 else str(layer)} for layer in layers[::every]
        ],
        "curves": [_curve(name, points, y_axis, len(curves) <= MAX_BANDS) for name, points in curves.items()],
        "baselines": [{"y": y_axis.at(row.auroc), "row": row} for row in known if row.layer is None],
        "rows": rows,
        "embeddings": -1 in layers,
    }


def _curve(name: str, points: list[tuple[float, SweepRow]], y_axis: Axis, with_band: bool) -> dict[str, Any]:
    points = sorted(points, key=lambda point: point[0])
    low, high = ([(x, y_axis.at(row.interval[end])) for x, row in points] for end in (0, 1))
    return {
        "name": name,
        "line": _path([(x, y_axis.at(row.auroc)) for x, row in points]),
        "band": _path([*high, *reversed(low)]) + "Z" if with_band and len(points) > 1 else "",
        "points": [{"x": x, "y": y_axis.at(row.auroc), "row": row} for x, row in points],
        "best": _best_on_train([row for _, row in points]),
    }


def _best_on_train(rows: Sequence[SweepRow]) -> SweepRow | None:
    """The row with the best cross-validated AUROC: chosen by held-out ones, a layer would look too good."""
    known = [(row.values["cv_auroc_mean"], row) for row in rows if row.values["cv_auroc_mean"] is not None]
    return max(known, key=lambda pair: pair[0] or 0.0)[1] if known else None


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
