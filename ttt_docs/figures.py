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


def save_figure(figure: Any, path: Path, form: str = "png") -> None:
    """A file of the format `form`, written whole or not at all."""
    with replacing(path) as file:
        figure.savefig(file, format=form)
