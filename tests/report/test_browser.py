"""The page in a real browser: what it shows, on wide screens and phones, in light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ttt_docs.report import html_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=2000",
]
DARK = "--blink-settings=preferredColorScheme=0"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


@pytest.fixture
def browse(tmp_path) -> Callable[..., str]:
    def browse(page: Path, *options: str) -> str:
        """What the browser prints; it starts with a profile of its own, and has no network."""
        command = [BROWSER, *QUIET, "--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path / 'profile'}", *options]
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return browse


@pytest.fixture
def report(findings, tmp_path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(html_page(findings), "utf-8")
    return path


def measured(report: Path, width: int, browse: Callable[..., str]) -> dict[str, float]:
    """Sizes in pixels of the page in a frame of this width: browsers refuse windows as narrow as a phone."""
    frame = report.with_name("frame.html")
    script = """
      const inside = frame.contentDocument, seen = (e) => e.getBoundingClientRect().width > 0;
      const pictures = [...inside.querySelectorAll('svg')].filter(seen);
      const letters = pictures.flatMap((p) => [...p.querySelectorAll('text')]);
      document.title = JSON.stringify({
        overflow: inside.documentElement.scrollWidth - inside.documentElement.clientWidth,
        pictures: pictures.length,
        smallest: Math.min(...letters.map((e) => e.getBoundingClientRect().height)),
        scripts: inside.scripts.length,
        title: inside.title,
      });"""
    source = html.escape(report.read_text("utf-8"))
    frame.write_text(
        f"<title></title><iframe id=frame width={width} height=800 srcdoc='{source}'></iframe>"
        f"<script>frame.onload = () => {{{script}}}</script>",
        "utf-8",
    )
    title = re.search("<title>(.*?)</title>", browse(frame, "--dump-dom"), re.DOTALL)
    assert title is not None
    return json.loads(html.unescape(title[1]))


@pytest.mark.parametrize("width", [360, 390, 700, 768, 1000, 1280])
def test_readable_at_every_width(width, report, browse):
    found = measured(report, width, browse)
    assert found["overflow"] <= 0 and found["pictures"] == 4 and found["smallest"] > 9
    assert found["scripts"] == 0 and found["title"].endswith("memory report")  # what hostile text tried to change


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshot(scheme, report, browse, tmp_path):
    from matplotlib.image import imread

    picture = tmp_path / "picture.png"
    browse(report, "--window-size=1100,1600", f"--screenshot={picture}", *([DARK] if scheme == "dark" else []))
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    paper = pixels[2, 2]
    assert pixels.shape[:2] == (1600, 1100) and (paper.mean() > 200 if scheme == "light" else paper.mean() < 60)
    line = np.array([0x0E, 0x6D, 0x73] if scheme == "light" else [0x6C, 0xC6, 0xC4])  # of the curve's trend
    rows, columns = np.nonzero(np.abs(pixels - line).max(-1) < 12)
    assert len(rows) > 500 and columns.max() - columns.min() > 700
