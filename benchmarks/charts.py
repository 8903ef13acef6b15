"""Charts as inline SVG: no library, no script, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640
CHAR = 6.6  # average width of a character of the 12 px labels
LINE = 13  # their height


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
class Box:
    """A rectangle that a point or a label takes, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, half_width: float, half_height: float) -> Box:
        """Make the box with this centre."""
        return cls(x - half_width, y - half_height, x + half_width, y + half_height)

    @property
    def middle(self) -> float:
        """Half way from top to bottom."""
        return (self.top + self.bottom) / 2

    def meets(self, other: Box) -> bool:
        """Tell whether two boxes share any area."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


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
    ordered = sorted(points, key=lambda point: (y_axis(point.y), x_axis(point.x)))
    # Labels keep clear of each other and of all points.
    taken = [Box.around(x_axis(point.x), y_axis(point.y), 6, 6) for point in ordered]
    for point in ordered:
        x, y = x_axis(point.x), y_axis(point.y)
        box = _free_place(x, y, CHAR * len(point.label), taken)
        taken.append(box)
        side, near = ("start", box.left) if box.left > x else ("end", box.right)
        parts.append(
            f"<g><title>{escape(point.label)}: {escape(x_label)} {point.x:.4g}, {escape(y_label)} {point.y:.4g}</title>"
            f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near:.1f}" y2="{box.middle:.1f}"/>'
            f'<circle class="{point.style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
            f'<text class="{side}" x="{near:.1f}" y="{box.middle + 4:.1f}">{escape(point.label)}</text></g>'
        )
    return _svg(height, f"{y_label} against {x_label}", parts)


def _free_place(x: float, y: float, width: float, taken: Sequence[Box]) -> Box:
    """Find the place nearest to a point, to its right or left, where a label covers nothing."""
    places = [
        Box(left, y + line * LINE - LINE / 2, left + width, y + line * LINE + LINE / 2)
        for line in sorted(range(-20, 21), key=abs)
        for left in (x + 8 + 2 * abs(line), x - 8 - 2 * abs(line) - width)
    ]
    inside = [box for box in places if box.left >= 52 and box.right <= WIDTH and box.top >= 14 and box.bottom <= 320]
    free = (box for box in inside if not any(box.meets(other) for other in taken))
    return next(free, places[0])


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
