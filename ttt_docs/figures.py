"""Pictures with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ttt_docs.errors import UsageError
from ttt_docs.io import replacing


def new_figure(inches: tuple[float, float], dpi: int = 120) -> Any:
    """Raises UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a picture needs matplotlib: pip install 'ttt-docs[plot]'") from None
    return Figure(figsize=inches, dpi=dpi, layout="constrained")


def picture_format(path: Path) -> str:
    """The format that the suffix of `path` names. Raises UsageError for one that matplotlib cannot write, or without
    matplotlib."""
    form = path.suffix.lstrip(".").lower()
    if form not in new_figure((1, 1)).canvas.get_supported_filetypes():
        raise UsageError(f"{path}: plots are written as png, svg or pdf; end the name with one of them")
    return form


def save_figure(figure: Any, path: Path) -> None:
    """Writes the format that the suffix of `path` names, whole or not at all. Raises UsageError as `picture_format`."""
    form = picture_format(path)
    with replacing(path) as file:
        figure.savefig(file, format=form)
