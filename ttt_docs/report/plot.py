"""The loss curve alone, as a picture for a paper or a slide."""

from __future__ import annotations

import io
import os
from pathlib import Path

from ttt_docs.errors import UsageError
from ttt_docs.io import replacing
from ttt_docs.report.findings import Findings


def save_plot(findings: Findings, path: str | os.PathLike[str]) -> Path:
    """Draws the loss along the document; the suffix of `path` chooses the format (png, svg, pdf). Returns the path.

    Raises:
        UsageError: matplotlib is not installed, it cannot write that format, or nothing was read.
        TTTDocsError: the file cannot be written; an older one is as it was.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install 'ttt-docs[plot]'") from None
    target = Path(path)
    if not findings.curve or findings.mean is None:
        raise UsageError("there is nothing to plot: this memory has read nothing")
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    form = target.suffix.lstrip(".").lower()
    if form not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{target}: plots are written as png, svg or pdf; end the name with one of them")
    axes = figure.add_subplot()
    middle = [(point.start + point.end) / 2 for point in findings.curve]
    axes.plot(middle, [point.loss for point in findings.curve], color="#9fc3c3", linewidth=1)
    axes.plot(middle, [point.trend for point in findings.curve], color="#0e6d73", linewidth=2.2)
    axes.axhline(findings.mean, color="#6c675f", linewidth=1, linestyle="--")
    for index, chapter in enumerate(findings.chapters):
        if index % 2 == 0:
            axes.axvspan(chapter.start, chapter.end, color="#f1eee7", zorder=0, linewidth=0)
    for document in findings.documents[1:]:
        axes.axvline(document.start, color="#6c675f", linewidth=1, linestyle=":")
    axes.set_xlim(0, findings.curve[-1].end)
    axes.set_xlabel("tokens read")
    axes.set_ylabel("nats per token")
    axes.set_title(findings.title.replace("$", r"\$"), loc="left")  # a dollar would start a formula
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format=form)
    with replacing(target) as file:
        file.write(picture.getvalue())
    return target
