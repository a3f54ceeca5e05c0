"""What `charts.svg.jinja` needs to draw the report's pictures; and the loss curve alone, with matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ttt_docs.errors import UsageError
from ttt_docs.figures import new_figure, save_figure
from ttt_docs.report.findings import FastWeightChange, Findings

#: Average width of a character of the small labels, in pixels.
CHARACTER = 6.4
#: Pixels from the curve to the number of a passage: the first that is free, above rather than below.
SPOT_PLACES = (-13, 13, -31, 31, -49, 49, -67, 67)
#: The least that a part of a strip is shown with, in pixels.
SLIVER = 3.0


class Frame(NamedTuple):
    """A rectangle of pixels and the values at its edges; y grows upwards."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (self.right - self.left) * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (self.bottom - self.top) * (value - low) / ((high - low) or 1)


def count(value: float) -> str:
    """A number of tokens for an axis: 500, 12K, 1.5M."""
    for limit, unit in ((1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.1f}".removesuffix(".0") + unit
    return f"{value:.0f}"


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= most)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def loss_curve(findings: Findings, width: int) -> dict[str, Any]:
    """The loss along the document: frame, ticks, paths and labels, in pixels."""
    points, height = findings.curve, 260 + width // 12
    values = [point.loss for point in points]
    room = (max(values) - min(values) or 1) * 0.06
    low, high = max(min(values) - room, 0.0), max(values) + room
    frame = Frame(40, width - 8, 46, height - 40, (0, points[-1].end), (low, high))
    middles = [frame.x((point.start + point.end) / 2) for point in points]
    widths = [frame.x(chapter.end) - frame.x(chapter.start) for chapter in findings.chapters]
    labels = _labels([chapter.label for chapter in findings.chapters], widths)
    return {
        "frame": frame,
        "width": width,
        "height": height,
        "low": min(values),
        "high": max(values),
        "y_ticks": nice_ticks(low, high, 6),
        "x_ticks": nice_ticks(0, points[-1].end, 4 if width < 500 else 8),
        "fine": _path(middles, [frame.y(loss) for loss in values]),
        "trend": _path(middles, [frame.y(point.trend) for point in points]),
        "chapters": list(zip(findings.chapters, labels, strict=True)),
        "spots": list(_spots(findings, frame)),
    }


def change_bars(changes: Sequence[FastWeightChange], width: int) -> dict[str, Any]:
    """The change of the fast weights by block: frame, ticks and the width of a bar, in pixels."""
    greatest, height = max(max(change.change.values()) for change in changes), 240
    frame = Frame(40, width - 8, 12, height - 34, (0, len(changes)), (0, greatest * 1.08 or 1))
    return {
        "frame": frame,
        "width": width,
        "height": height,
        "greatest": greatest,
        "y_ticks": nice_ticks(0, greatest * 1.08, 5),
        "bar": min((frame.right - frame.left) / len(changes) * 0.26, 22),
    }


def shares(parts: Sequence[tuple[str, str, float]], width: int) -> Iterator[tuple[float, float, str, str]]:
    """(x, width in pixels, class, label) of each (class, label, amount); small parts keep a visible sliver."""
    total = sum(amount for _, _, amount in parts) or 1
    widths = [max(SLIVER, width * amount / total) if amount else 0.0 for _, _, amount in parts]
    scale, x = width / (sum(widths) or 1), 0.0
    for (kind, label, _), share in zip(parts, widths, strict=True):
        yield x, max(share * scale - 1, 0.0), kind, label
        x += share * scale


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def _labels(names: Sequence[str], widths: Sequence[float]) -> list[str]:
    """The chapters' names in the longest form that fits for all, empty where even the shortest is too wide.

    They are tried in full; without a first word that several have; and as the first word of the rest, their number.
    """
    firsts = [name.partition(" ")[0] for name in names]
    forms = []
    for name, first in zip(names, firsts, strict=True):
        rest = name.partition(" ")[2] or name if firsts.count(first) > 1 else name
        forms.append((name, rest, name if rest == name else rest.partition(" ")[0].rstrip(".:,")))
    fitting: list[str] = []
    for form in zip(*forms, strict=True):
        room = zip(form, widths, strict=True)
        fitting = [label if len(label) * CHARACTER < width - 4 else "" for label, width in room]
        if all(fitting):
            break
    return fitting


def _spots(findings: Findings, frame: Frame) -> Iterator[tuple[float, float]]:
    """Where the numbers of the surprising passages stand beside the curve, none on top of another."""
    taken: list[tuple[float, float]] = []
    for passage in findings.passages or ():
        point = next((p for p in findings.curve if p.start <= passage.token < p.end), findings.curve[0])
        x, height = frame.x(passage.token), frame.y(point.loss)
        inside = (height + away for away in SPOT_PLACES if frame.top + 9 < height + away < frame.bottom - 9)
        y = next((y for y in inside if all(abs(x - a) > 17 or abs(y - b) > 17 for a, b in taken)), height)
        taken.append((x, y))
        yield x, y


def save_plot(findings: Findings, path: str | os.PathLike[str]) -> Path:
    """Draws the loss along the document; the suffix of `path` chooses the format (png, svg, pdf). Returns the path.

    Raises:
        UsageError: matplotlib is not installed, it cannot write that format, or nothing was read.
        TTTDocsError: the file cannot be written; an older one is as it was.
    """
    target, figure = Path(path), new_figure((9, 3.6), dpi=150)
    if not findings.curve or findings.mean is None:
        raise UsageError("there is nothing to plot: this memory has read nothing")
    axes = figure.add_subplot()
    middle = [(point.start + point.end) / 2 for point in findings.curve]
    axes.plot(middle, [point.loss for point in findings.curve], color="#9fc3c3", linewidth=1)
    axes.plot(middle, [point.trend for point in findings.curve], color="#0e6d73", linewidth=2.2)
    axes.axhline(findings.mean, color="#6c675f", linewidth=1, linestyle="--")
    for chapter in findings.chapters[::2]:
        axes.axvspan(chapter.start, chapter.end, color="#f1eee7", zorder=0, linewidth=0)
    for document in findings.documents[1:]:
        axes.axvline(document.start, color="#6c675f", linewidth=1, linestyle=":")
    axes.set(xlim=(0, findings.curve[-1].end), xlabel="tokens read", ylabel="nats per token")
    axes.set_title(findings.title.replace("$", r"\$"), loc="left")  # a dollar would start a formula
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, target)
    return target
