"""Lines of pages to running text: headers go, paragraphs and hyphenated words are put together again."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_NUMBER_LINE = re.compile(r"^\W*(?:(\d{1,4})|([ivxlc]{1,8}))\W*$", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?:…][\"'”’»)\]—–*\d]*$")
_HYPHEN_END = re.compile(r"([^\W_]+(?:-[^\W_]+)*)[-‐\u00ad]$")
_CONTENTS_LINE = re.compile(r"\.\.\. ?[\divxlc]{1,6}$", re.IGNORECASE)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}


@dataclass(frozen=True)
class Line:
    """One line of a page. `x` and `y` are points of its start, y upwards; `size` is the font's in points."""

    text: str
    x: float = 0.0
    y: float = 0.0
    size: float = 0.0  # 0: the position is not known


@dataclass(frozen=True)
class _Habits:
    """What is usual in this document."""

    full: float  # characters of a full line
    leading: float  # points from line to line, 0 if unknown
    indent: float  # points of a paragraph's first line, 0 if none
    size: float  # points of the body's font
    words: Counter[str]  # lower case, without those cut at line ends


def remove_running_lines(pages: Sequence[list[Line]], labels: Sequence[str]) -> list[list[Line]]:
    """Pages without running headers, footers and page numbers.

    A line at the top or bottom of a page goes when, digits aside, it stands at the same height on at least three
    pages and on a neighbouring one, unless it is a full line as close to its neighbour as the body's are. A bare
    number goes when it is the page's label or counts up with the pages.
    """
    edges = [_edges(page) for page in pages]
    full, leading = _full_line(pages), _leading(pages)
    heights: dict[str, list[tuple[int, float]]] = defaultdict(list)
    offsets: dict[int, set[int]] = defaultdict(set)  # number - page index -> pages
    for index, page in enumerate(pages):
        for edge in edges[index]:
            key = _running_key(page[edge].text)
            if key and not (len(key) > 0.7 * full and _nearest(page, edge) <= 1.25 * leading):
                heights[key].append((index, page[edge].y))
            if (number := _page_number(page[edge].text)) is not None:
                offsets[number - index].add(index)

    def goes(index: int, line: Line) -> bool:
        number = _page_number(line.text)
        if number is not None:
            counted = offsets[number - index]
            return labels[index].casefold() == line.text.strip("-–—·|[]() .").casefold() or any(
                index + step in counted for step in (-2, -1, 1, 2)
            )
        same = {page for page, y in heights.get(_running_key(line.text), ()) if abs(y - line.y) <= 4}
        return len(same) >= 3 and any(index + step in same for step in (-2, -1, 1, 2))

    kept = [
        [line for number, line in enumerate(page) if number not in edges[index] or not goes(index, line)]
        for index, page in enumerate(pages)
    ]
    return kept if any(kept) else list(pages)


def join_pages(pages: Sequence[list[Line]]) -> tuple[str, list[tuple[int, int]]]:
    """The running text of all pages, and (offset, page index) of the start of each page that has lines."""
    habits = _habits(pages)
    margins = _left_margins(pages)
    parts: list[str] = []
    starts: list[tuple[int, int]] = []
    length = 0
    previous: tuple[Line, float, int] | None = None
    for index, page in enumerate(pages):
        for number, line in enumerate(page):
            joint = ""
            if previous:
                above, margin, page_above = previous
                joint = _joint(above, above.x - margin, line, line.x - margins[index], habits, page_above == index)
                if not joint or joint == " ":
                    joint, ending = _mend_word(parts[-1], line.text, joint, habits.words)
                    length += len(ending) - len(parts[-1])
                    parts[-1] = ending
            parts += [joint, line.text]
            length += len(joint)
            if number == 0:
                starts.append((length, index))
            length += len(line.text)
            previous = (line, margins[index], index)
    return "".join(parts), starts


def _joint(above: Line, above_in: float, line: Line, line_in: float, habits: _Habits, same_page: bool) -> str:
    """What belongs between two lines: a space inside a paragraph, "\\n" inside verse and lists, "\\n\\n" between."""
    length = len(above.text)
    ended = bool(_SENTENCE_END.search(above.text))
    continues = line.text[0].islower() and not ended
    placed = above.size > 0 and line.size > 0
    drop = above.y - line.y
    below = placed and same_page and drop > 0  # otherwise a new page or column
    apart = below and habits.leading > 0 and drop > 1.4 * max(habits.leading, 1.05 * line.size)
    if _CONTENTS_LINE.search(above.text) and not apart:
        return "\n"
    if placed:
        ratio = line.size / above.size
        if not 0.87 < ratio < 1.15 and not (continues and length > 0.6 * habits.full):
            return "\n\n"
        if continues and length > 0.7 * habits.full:
            return " "
        if apart:
            return "\n\n"
        if below and 0.95 < ratio < 1.05 and line.size > 1.2 * habits.size:  # a heading of two lines
            return " "
        if below and drop < 0.3 * line.size:  # pieces of one line
            return " "
        if (below or not same_page) and line_in > max(4.0, 0.5 * line.size):
            alike = abs(above_in - line_in) < 2
            if alike and length > 0.7 * habits.full and not ended:  # a quotation
                return " "
            if alike and abs(line_in - habits.indent) > 2:  # set in deeper than paragraphs are: verse, a list
                return " " if length > 0.7 * habits.full else "\n"
            return "\n\n"
    if ended and length < 0.8 * habits.full:
        return "\n\n"
    if length < (0.45 if continues else 0.6) * habits.full and not _HYPHEN_END.search(above.text):
        return "\n"
    return " "


def _mend_word(above: str, below: str, joint: str, words: Counter[str]) -> tuple[str, str]:
    """(joint, ending): how a line that may end inside a word goes on. `ending` is `above`, perhaps less its hyphen."""
    if above.endswith(("—", "--")) and not above.endswith((" —", " --")) and below[0].isalnum():
        return "", above
    cut = _HYPHEN_END.search(above)
    begun = _WORD.match(below)
    if not cut or not begun:
        return joint, above
    if above.endswith("\u00ad"):
        return "", above[:-1]
    first, second = cut.group(1), begun.group(0)
    capitals = len(first) > 1 and (first + second).isupper()
    if not (second[0].islower() or capitals) or not first[-1].isalpha():  # Anglo-Saxon, 1914-18
        return "", above
    joined, hyphened = (first + second).lower(), f"{first}-{second}".lower()
    if words[joined] or words[hyphened]:
        keep = words[hyphened] > words[joined]
    else:  # neither is known: a compound of two words that the document uses, or else one word
        keep = "-" in first or all(len(half) > 2 and words[half.lower()] > 1 for half in (first, second))
    return "", above if keep else above[:-1]


def _habits(pages: Sequence[list[Line]]) -> _Habits:
    words: Counter[str] = Counter()
    sizes: Counter[float] = Counter()
    cut = False
    for page in pages:
        for line in page:
            sizes[round(line.size, 1)] += len(line.text)
            found = [word.lower() for word in _WORD.findall(line.text)]
            ends_cut = bool(_HYPHEN_END.search(line.text))
            words.update(found[1 if cut else 0 : -1 if ends_cut else None])
            cut = ends_cut
    margins = _left_margins(pages)
    indents = Counter(
        round(line.x - margins[index])
        for index, page in enumerate(pages)
        for line in page
        if line.size and 4 < line.x - margins[index] < 60
    )
    return _Habits(
        full=_full_line(pages),
        leading=_leading(pages),
        indent=indents.most_common(1)[0][0] if indents else 0.0,
        size=sizes.most_common(1)[0][0] if sizes else 0.0,
        words=words,
    )


def _left_margins(pages: Sequence[list[Line]]) -> list[float]:
    """Points of the left margin of each page. Left-hand and right-hand pages differ in books."""
    usual: list[float] = []
    for side in (0, 1):
        lefts = Counter(round(line.x) for page in pages[side::2] for line in page if line.size)
        usual.append(float(lefts.most_common(1)[0][0]) if lefts else 0.0)
    margins = []
    for index, page in enumerate(pages):
        lefts = Counter(round(line.x) for line in page if line.size)
        margin = usual[index % 2]
        leftmost = min(lefts, default=margin)
        own = lefts.most_common(1)[0][0] == leftmost and len(page) >= 8 if lefts else False
        # A short page may hold indented lines only; a full one that never touches the usual margin has its own.
        if abs(leftmost - margin) > 2 and (own or not 0 < leftmost - margin < 60):
            margin = float(leftmost)
        margins.append(margin)
    return margins


def _full_line(pages: Sequence[list[Line]]) -> int:
    """Characters of a full line."""
    lengths = sorted(len(line.text) for page in pages for line in page)
    return lengths[int(0.9 * len(lengths))] if lengths else 0


def _leading(pages: Sequence[list[Line]]) -> float:
    """Points from line to line, 0 where positions are not known."""
    drops = [above.y - line.y for page in pages for above, line in pairwise(page) if line.size]
    drops = [drop for drop in drops if 0 < drop < 72]
    return statistics.median(drops) if drops else 0.0


def _nearest(page: list[Line], number: int) -> float:
    """Points to the line nearest in height."""
    return min((abs(line.y - page[number].y) for other, line in enumerate(page) if other != number), default=math.inf)


def _edges(page: list[Line]) -> set[int]:
    """Numbers of the two first and two last lines, both in the order of the file and by height on the page."""
    numbers = range(len(page))
    by_height = sorted(numbers, key=lambda number: page[number].y) if page and page[0].size else numbers
    return {*numbers[:2], *numbers[-2:], *by_height[:2], *by_height[-2:]}


def _running_key(text: str) -> str:
    """The line with its digits masked; "" for one without words, which is no running header."""
    return _DIGITS.sub("#", text).casefold() if len(_LETTER.findall(text)) > 1 else ""


def _page_number(text: str) -> int | None:
    """The value of a line that is only a number, arabic or roman."""
    match = _NUMBER_LINE.match(text)
    if not match:
        return None
    if match.group(1):
        return int(match.group(1))
    values = [_ROMAN[letter] for letter in match.group(2).lower()]
    return sum(-value if value < max(values[i:]) else value for i, value in enumerate(values))
