"""The regular expressions of `patterns.json`.

`~name~` in a pattern stands for a pattern of the section "parts". A pattern that ignores case begins with `(?i)`.
Section "kinds" tells the kind of answer from a question, the first that fits; "spans" are what answers of a kind look
like, the most telling pattern first; "forms" are what a sentence with such an answer holds, and the words that ask for
it; "router" takes a question apart; "exact" are whole questions that need no model, and what each asks for. A digit at
the end of a group's name only tells it from others of that name.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any


@cache
def patterns() -> dict[str, Any]:
    """Section -> its patterns as they are written; `compiled` makes one ready for use."""
    return json.loads(Path(__file__).with_name("patterns.json").read_text("utf-8"))


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern, with its parts filled in."""
    while (filled := re.sub("~([a-z ]+)~", lambda part: patterns()["parts"][part[1]], pattern)) != pattern:
        pattern = filled
    return re.compile(pattern)
