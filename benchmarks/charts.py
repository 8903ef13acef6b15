"""Charts as inline SVG: no library, no script, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640
CHAR = 6.6  # average width of a character of the 12 px labels


@dataclass(frozen=True)
class Bar:
    """One bar: a mean, the values behind it, and the class that colours it."""

    label: str
    value: float
    values: Sequence[float]
    style: str


@dataclass(frozen=True)
class Point:
    """One point of a scatter chart."""

    label: str
    x: float
    y: float
    style: str


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels."""

    label: str
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Map a value to its pixel."""
        low, high, value = (map(math.log10, (self.low, self.high, value))) if self.log else (self.low, self.high, value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> Iterator[float]:
        """Yield round values inside the axis."""
        if self.log:
            for exponent in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1):
                yield 10.0**exponent
            return
        step = _round_step((self.high - self.low) / 5)
        for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            yield i * step


def bar_chart(label: str, bars: Sequence[Bar]) -> str:
    """
    Draw horizontal bars, with a tick for each value behind a bar's mean.

    Parameters
    ----------
    label : str
        What is measured.
    bars : sequence of Bar
        From top to bottom.

    Returns
    -------
    str
        An ``<svg>`` element; empty if there are no bars.
    """
    if not bars:
        return ""
    left = 16 + CHAR * max(len(bar.label) for bar in bars)
    row = 26
    height = row * len(bars) + 34
    highest = max(max(bar.values) for bar in bars)
    axis = Axis(label, 0.0, highest * 1.02 or 1.0, left, WIDTH - 56)
    parts = [_vertical_grid(axis, 0, row * len(bars))]
    for i, bar in enumerate(bars):
        top = i * row
        middle = top + row / 2
        parts.append(
            f"<g><title>{escape(bar.label)}: {bar.value:.4f}</title>"
            f'<text class="end" x="{left - 8:.1f}" y="{middle + 4:.1f}">{escape(bar.label)}</text>'
            f'<rect class="{bar.style}" x="{left:.1f}" y="{top + 4}" height="{row - 8}" '
            f'width="{axis(bar.value) - left:.1f}"/>'
        )
        parts += [
            f'<line class="value" x1="{axis(value):.1f}" x2="{axis(value):.1f}" y1="{top + 8}" y2="{top + row - 8}"/>'
            for value in bar.values
        ]
        parts.append(f'<text x="{axis(max(bar.values)) + 6:.1f}" y="{middle + 4:.1f}">{bar.value:.3f}</text></g>')
    return _svg(height, label, parts)


def scatter_chart(x_label: str, y_label: str, points: Sequence[Point], log_x: bool = False) -> str:
    """
    Draw labelled points.

    Parameters
    ----------
    x_label, y_label : str
        What the axes measure.
    points : sequence of Point
        Points; on a logarithmic axis x must be positive.
    log_x : bool
        Whether the horizontal axis is logarithmic.

    Returns
    -------
    str
        An ``<svg>`` element; empty if there are no points.
    """
    if not points:
        return ""
    height, top, bottom = 360, 28, 320
    right = WIDTH - 12 - CHAR * max(len(point.label) for point in points)
    x_axis = Axis(x_label, *_range([point.x for point in points], log_x), 52, right, log_x)
    y_axis = Axis(y_label, *_range([point.y for point in points], False), bottom, top)
    parts = [_vertical_grid(x_axis, top, bottom), _horizontal_grid(y_axis, x_axis.start, x_axis.end)]
    placed: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: y_axis(point.y)):
        x, y = x_axis(point.x), y_axis(point.y)
        label_y = _free_height(x + 8, x + 8 + CHAR * len(point.label), y + 4, placed)
        parts.append(
            f"<g><title>{escape(point.label)}: {escape(x_label)} {point.x:.4g}, {escape(y_label)} {point.y:.4g}</title>"
            f'<circle class="{point.style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
            f'<text x="{x + 8:.1f}" y="{label_y:.1f}">{escape(point.label)}</text></g>'
        )
    return _svg(height, f"{y_label} against {x_label}", parts)


def _free_height(left: float, right: float, y: float, placed: list[tuple[float, float, float]]) -> float:
    """Move a label down until it covers none of those placed before it."""
    line = 13
    for other_left, other_right, other_y in sorted(placed, key=lambda label: label[2]):
        if left < other_right and other_left < right and abs(y - other_y) < line:
            y = other_y + line
    placed.append((left, right, y))
    return y


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Widen the span of values so that no point sits on the frame."""
    low, high = min(values), max(values)
    if log:
        return low / 1.6, high * 1.6
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return float(next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9)) * power)


def _vertical_grid(axis: Axis, top: float, bottom: float) -> str:
    lines = [
        f'<line class="grid" x1="{axis(tick):.1f}" x2="{axis(tick):.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text class="middle" x="{axis(tick):.1f}" y="{bottom + 15}">{tick:.6g}</text>'
        for tick in axis.ticks()
    ]
    centre = (axis.start + axis.end) / 2
    return "".join(lines) + f'<text class="middle" x="{centre:.1f}" y="{bottom + 31}">{escape(axis.label)}</text>'


def _horizontal_grid(axis: Axis, left: float, right: float) -> str:
    lines = [
        f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{axis(tick):.1f}" y2="{axis(tick):.1f}"/>'
        f'<text class="end" x="{left - 6:.1f}" y="{axis(tick) + 4:.1f}">{tick:.6g}</text>'
        for tick in axis.ticks()
    ]
    return "".join(lines) + f'<text x="4" y="11">{escape(axis.label)}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
