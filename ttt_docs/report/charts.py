"""The report's pictures as SVG, each drawn for the width it is shown at so that its letters keep their size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ttt_docs.report.findings import Change, Findings, Stretch
from ttt_docs.report.markup import Markup, element, join

#: Average width of a character of the small labels, in pixels.
CHARACTER = 6.4
MATRICES = ("w1", "w2", "w3")
#: Pixels from the curve to the number of a passage: the first that is free, above rather than below.
SPOT_PLACES = (-13, 13, -31, 31, -49, 49, -67, 67)


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


def loss_curve(findings: Findings, width: int, height: int, key: str) -> Markup:
    """The loss along the document; `key` keeps the ids of two pictures in one page apart."""
    points = findings.curve
    last = points[-1].end
    values = [point.loss for point in points]
    room = (max(values) - min(values) or 1) * 0.06
    low, high = max(min(values) - room, 0.0), max(values) + room
    frame = Frame(40, width - 8, 46, height - 40, (0, last), (low, high))
    trend = _path([(frame.x((p.start + p.end) / 2), frame.y(p.trend)) for p in points])
    fine = _path([(frame.x((p.start + p.end) / 2), frame.y(p.loss)) for p in points])
    assert findings.mean is not None
    level = frame.y(findings.mean)
    return _picture(
        f"curve-{key}",
        width,
        height,
        "Loss along the document",
        f"Loss in nats per token over {last:,} tokens, between {min(values):.2f} and {max(values):.2f}; "
        f"the mean is {findings.mean:.2f}.",
        *_bands(findings, frame),
        *_y_axis(frame, nice_ticks(low, high, 6), lambda tick: f"{tick:.2f}".rstrip("0").rstrip(".")),
        *_x_axis(frame, last, most=4 if width < 500 else 8),
        element("line", x1=frame.left, x2=frame.right, y1=level, y2=level, class_="mean"),
        element("path", d=fine, class_="fine"),
        element("path", d=trend, class_="trend"),
        *_spots(findings, frame),
        *(_hover(findings, frame, index) for index in range(len(points))),
        element("text", "tokens read", x=frame.right, y=height - 4, class_="axis end"),
        element("text", "nats per token", x=2, y=12, class_="axis"),
    )


def _bands(findings: Findings, frame: Frame) -> list[Markup]:
    """Chapters as alternating bands with their names above, as far as they fit; documents as lines."""
    parts = []
    ends = [(frame.x(chapter.start), frame.x(chapter.end)) for chapter in findings.chapters]
    labels = _labels([chapter.label for chapter in findings.chapters], [right - left for left, right in ends])
    for index, ((left, right), label) in enumerate(zip(ends, labels, strict=True)):
        if index % 2 == 0:
            size = {"width": right - left, "height": frame.bottom - frame.top}
            parts.append(element("rect", x=left, y=frame.top, class_="band", **size))
        if label:
            parts.append(element("text", label, x=(left + right) / 2, y=frame.top - 7, class_="chapter middle"))
    for document in findings.documents[1:]:
        at = frame.x(document.start)
        parts.append(element("line", x1=at, x2=at, y1=frame.top, y2=frame.bottom, class_="border"))
    return parts


def _labels(names: Sequence[str], widths: Sequence[float]) -> list[str]:
    """The chapters' names in the longest form that fits for all, empty where even the shortest is too wide.

    They are tried in full; without a first word that several have; and as the first word of the rest, their number.
    """
    firsts = [name.partition(" ")[0] for name in names]
    rests = [
        name.partition(" ")[2] or name if firsts.count(first) > 1 else name
        for name, first in zip(names, firsts, strict=True)
    ]
    numbers = [
        rest.partition(" ")[0].rstrip(".:,") if rest != name else name for rest, name in zip(rests, names, strict=True)
    ]
    fitting: list[str] = []
    for form in (names, rests, numbers):
        fitting = [
            label if len(label) * CHARACTER < width - 4 else "" for label, width in zip(form, widths, strict=True)
        ]
        if all(fitting):
            break
    return fitting


def _spots(findings: Findings, frame: Frame) -> list[Markup]:
    """The surprising passages as numbers beside the curve where they stand, none on top of another."""
    parts: list[Markup] = []
    taken: list[tuple[float, float]] = []
    for number, passage in enumerate(findings.passages or (), start=1):
        point = next((p for p in findings.curve if p.start <= passage.token < p.end), findings.curve[0])
        x, height = frame.x(passage.token), frame.y(point.loss)
        inside = (height + away for away in SPOT_PLACES if frame.top + 9 < height + away < frame.bottom - 9)
        y = next((y for y in inside if all(abs(x - a) > 17 or abs(y - b) > 17 for a, b in taken)), height)
        taken.append((x, y))
        dot = element("circle", cx=x, cy=y, r=8, class_="spot")
        digit = element("text", number, x=x, y=y + 3.6, class_="digit middle")
        parts.append(element("a", dot, digit, href=f"#passage-{number}", aria_label=f"Passage {number}"))
    return parts


def _hover(findings: Findings, frame: Frame, index: int) -> Markup:
    point = findings.curve[index]
    chapter = _at(findings.chapters, point.start)
    said = [f"tokens {point.start:,} to {point.end:,}", f"{point.loss:.2f} nats per token"]
    said += [chapter.label] if chapter else []
    left, right = frame.x(point.start), frame.x(point.end)
    size = {"width": right - left, "height": frame.bottom - frame.top}
    return element("rect", element("title", "\n".join(said)), x=left, y=frame.top, class_="hover", **size)


def _at(stretches: Sequence[Stretch], token: int) -> Stretch | None:
    return next((stretch for stretch in stretches if stretch.start <= token < stretch.end), None)


def change_bars(changes: Sequence[Change], width: int, height: int, key: str) -> Markup:
    """How far reading moved each block's three matrices: Frobenius norms side by side."""
    greatest = max(change.change[name] for change in changes for name in MATRICES)
    frame = Frame(40, width - 8, 12, height - 34, (0, len(changes)), (0, greatest * 1.08 or 1))
    group = (frame.right - frame.left) / len(changes)
    bar = min(group * 0.26, 22)
    parts = []
    for index, change in enumerate(changes):
        middle = frame.x(index + 0.5)
        for order, name in enumerate(MATRICES):
            top = frame.y(change.change[name])
            size = {"width": bar - 1.5, "height": frame.bottom - top, "rx": min(2.0, bar / 4)}
            said = element("title", f"block {change.block}, {name}: {change.change[name]:.3f}{_share(change, name)}")
            parts.append(element("rect", said, x=middle + (order - 1.5) * bar, y=top, class_=f"bar {name}", **size))
        parts.append(element("text", change.block, x=middle, y=frame.bottom + 16, class_="axis middle"))
    return _picture(
        f"change-{key}",
        width,
        height,
        "Change of the fast weights by block",
        f"Frobenius norm of the change of w1, w2 and w3 in {len(changes)} blocks, at most {greatest:.2f}.",
        *_y_axis(frame, nice_ticks(0, greatest * 1.08, 5), lambda tick: f"{tick:g}"),
        *parts,
        element("text", "block", x=frame.right, y=height - 3, class_="axis end"),
    )


def _share(change: Change, name: str) -> str:
    initial = change.initial[name]
    return f", {100 * change.change[name] / initial:.1f} % of what it was" if initial else ", from zero"


def strip(parts: Sequence[tuple[str, str, float]], width: int, key: str, title: str) -> Markup:
    """One bar divided among (class, label, amount); small parts keep a visible sliver."""
    total = sum(amount for _, _, amount in parts) or 1
    smallest = 3.0
    widths = [max(smallest, width * amount / total) if amount else 0.0 for _, _, amount in parts]
    scale = width / (sum(widths) or 1)
    drawn, x = [], 0.0
    for (kind, label, _), share in zip(parts, widths, strict=True):
        size = {"width": max(share * scale - 1, 0.0), "height": 26}
        drawn.append(element("rect", element("title", label), x=x, y=0, class_=f"part {kind}", **size))
        x += share * scale
    return _picture(f"{key}-{width}", width, 26, title, "; ".join(label for _, label, _ in parts), *drawn)


def _picture(key: str, width: int, height: int, title: str, description: str, *parts: Markup) -> Markup:
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-description"),
        *parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{key}-title {key}-description",
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _y_axis(frame: Frame, ticks: Sequence[float], written: Callable[[float], str]) -> list[Markup]:
    parts = []
    for tick in ticks:
        y = frame.y(tick)
        line = element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid")
        parts.append(join(line, element("text", written(tick), x=frame.left - 7, y=y + 4, class_="axis end")))
    return parts


def _x_axis(frame: Frame, last: int, most: int) -> list[Markup]:
    parts = [element("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="ground")]
    for tick in nice_ticks(0, last, most):
        x = frame.x(tick)
        parts.append(element("line", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 4, class_="ground"))
        parts.append(element("text", count(tick), x=x, y=frame.bottom + 17, class_="axis middle"))
    return parts
