"""Coordinates of the report's charts; the templates draw them, so that colours follow the reader's theme."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_DOTS = 150
"""Dots per group of a strip chart; a larger group is shown by so many of its quantiles."""

WIDTH, HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 6, 10, 44
_GOLDEN = 0.6180339887  # multiples modulo 1 spread evenly for any number of dots


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low: value at ``start``.
        high: value at ``end``.
        step: between ticks.
        start: coordinate of ``low``.
        end: coordinate of ``high``.
    """

    low: float
    high: float
    step: float
    start: float
    end: float

    @classmethod
    def of(cls, low: float, high: float, start: float, end: float, n_steps: int = 5) -> "Axis":
        """An axis that covers a range with round ticks, about `n_steps` of them."""
        span = high - low if high > low else 1.0
        magnitude = 10.0 ** math.floor(math.log10(span / n_steps))
        step = min(
            (factor * magnitude for factor in (1, 2, 5, 10)), key=lambda size: abs(span / size - n_steps)
        )
        floor = math.floor(low / step + 1e-9) * step
        ceiling = math.ceil((low + span) / step - 1e-9) * step
        return cls(floor, ceiling, step, start, end)

    def at(self, value: float) -> float:
        """Coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[dict[str, Any]]:
        """Text and coordinate of every tick."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        n_ticks = round((self.high - self.low) / self.step) + 1
        values = [self.low + place * self.step for place in range(n_ticks)]
        return [{"text": f"{value:.{digits}f}", "at": self.at(value)} for value in values]


def strip_chart(pooled: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Every sentence's activation as a dot, by label, train and held-out side by side.

    Args:
        pooled: float32 [n_sentences], one activation a sentence, never negative.
        labels: int64 [n_sentences].
        held_out: bool [n_sentences].

    Returns:
        Coordinates for the template; a group without sentences is left out.
    """
    axis = Axis.of(0.0, float(pooled.max(initial=0.0)), HEIGHT - _BOTTOM, _TOP, n_steps=4)
    existing = np.unique(labels).tolist()
    width = (WIDTH - _LEFT - _RIGHT) / len(existing)
    groups = []
    for place, label in enumerate(existing):
        for side, (split, of_split) in enumerate((("train", ~held_out), ("held-out", held_out))):
            values = pooled[(labels == label) & of_split]
            if len(values):
                centre = _LEFT + (place + 0.28 + 0.44 * side) * width
                groups.append(_strip(values, label, split, centre, 0.15 * width, axis))
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "bottom": HEIGHT - _BOTTOM,
        "ticks": axis.ticks(),
        "labels": [
            {"label": label, "x": _LEFT + (place + 0.5) * width} for place, label in enumerate(existing)
        ],
        "groups": groups,
        "thinned": any(group["n"] > MAX_DOTS for group in groups),
    }


def _strip(
    values: np.ndarray, label: int, split: str, centre: float, reach: float, axis: Axis
) -> dict[str, Any]:
    dots = np.sort(values)
    if len(dots) > MAX_DOTS:
        dots = np.quantile(dots, (np.arange(MAX_DOTS) + 0.5) / MAX_DOTS)
    places = centre + (np.arange(len(dots)) * _GOLDEN % 1 - 0.5) * 2 * reach
    # A line of no length with round or square ends is a dot, in a tenth of the bytes of an element.
    path = "".join(f"M{x:.1f} {axis.at(float(value)):.1f}h0" for x, value in zip(places, dots, strict=True))
    mean = float(values.mean(dtype=np.float64))
    return {
        "label": label,
        "split": split,
        "n": len(values),
        "n_active": int((values > 0).sum()),
        "mean": mean,
        "mean_y": axis.at(mean),
        "x": centre,
        "x0": centre - reach - 3,
        "x1": centre + reach + 3,
        "path": path,
    }


def shade(value: float | None) -> dict[str, Any]:
    """How a table cell shows an AUROC: above or below 0.5, and how far, 0 to 1."""
    if value is None:
        return {"value": None, "side": "", "strength": 0.0}
    return {
        "value": value,
        "side": "above" if value >= 0.5 else "below",
        "strength": round(min(abs(value - 0.5) * 2, 1.0), 3),
    }


def interval_bar(value: float | None, low: float | None, high: float | None) -> dict[str, float] | None:
    """Percentages of a bar from 0 to 1 where an estimate and its interval lie; None without an estimate."""
    if value is None:
        return None
    left, right = value if low is None else low, value if high is None else high
    width = round(100 * (right - left), 1)
    return {"at": round(100 * value, 1), "left": round(100 * left, 1), "width": width}


def anchor(key: str) -> str:
    """The HTML id of a feature.

    A name may hold what stands for the colons of layer and l0, so before it the colon stays.

    >>> anchor("12:82:1767"), anchor("3::5"), anchor("12-82:1767")
    ('feature-12-82-1767', 'feature-3--5', 'feature-12-82:1767')
    """
    return f"feature-{key.replace(':', '-') if key.count(':') == 2 else key}"
