"""Where the program keeps what it made or fetched once: converted weights, compiled kernels, memories."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """`TTT_DOCS_CACHE`, or the user's cache folder of this system."""
    chosen = os.environ.get("TTT_DOCS_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("ttt-docs"))
