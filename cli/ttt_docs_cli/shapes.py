"""What --json prints: {command: {field: meaning}}. The tests compare the commands with it, docs/cli.md shows it."""

from __future__ import annotations

import json
from pathlib import Path

SHAPES: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("shapes.json").read_text("utf-8"))
