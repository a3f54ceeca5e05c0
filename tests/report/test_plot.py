from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from ttt_docs.errors import UsageError
from ttt_docs.report import save_plot


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_curve_as_a_picture(findings, form, tmp_path):
    path = save_plot(replace(findings, documents=findings.documents * 2), tmp_path / f"curve.{form}")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") if form == "png" else b"<svg" in content
    assert list(tmp_path.iterdir()) == [path]


def test_plots_that_cannot_be(findings, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="png, svg or pdf"):
        save_plot(findings, tmp_path / "curve.docx")
    with pytest.raises(UsageError, match="read nothing"):
        save_plot(replace(findings, curve=(), mean=None), tmp_path / "curve.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"ttt-docs\[plot\]"):
        save_plot(findings, tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())
