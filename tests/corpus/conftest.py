"""A folder of short documents of many lengths, one of them empty."""

from __future__ import annotations

from pathlib import Path

import pytest


def text(number: int) -> str:
    return "\n".join(f"{line}. Book {number} has {line * 37 % 101} words here." for line in range(1, 3 + number))


@pytest.fixture
def books(tmp_path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number * 7 % 9}.txt").write_text(text(number), "utf-8")
    return folder
