"""A summary as a file for people: Markdown or a page, each sentence with the quotes that it stands on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from ttt_docs.errors import UsageError
from ttt_docs.generation.results import Evidence, Summary, SummarySection, SummarySentence
from ttt_docs.report.page import FORBIDDEN, rendered

#: What stands after a sentence that is not supported.
UNCHECKED = "[not found in the text]"
#: Pages or chapters that are named after a sentence, at most.
NAMED = 3
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~])")


def place(found: Evidence) -> str:
    """The page of a quote, or its chapter; "" where neither is known."""
    return f"page {found.page}" if found.page is not None else found.chapter or ""


def cited(section: SummarySection, places: bool = True) -> str:
    """A section's text with what is not supported marked, and with the places of the rest."""

    def one(sentence: SummarySentence) -> str:
        if not sentence.supported:
            return f"{sentence.text} {UNCHECKED}"
        named = list(dict.fromkeys(filter(None, map(place, sentence.evidence))))[:NAMED]
        return f"{sentence.text} ({', '.join(named)})" if places and named else sentence.text

    return " ".join(map(one, section.sentences))


def summary_file(path: Path) -> Callable[[Summary, str], str]:
    """What writes a file of that name: a function of the summary and of what it is of.

    Raises UsageError for another suffix than .md and .html.
    """
    kinds = {".md": summary_markdown, ".html": summary_html}
    if path.suffix.lower() not in kinds:
        raise UsageError(
            f"{path}: a summary is written as {' or '.join(kinds)}; give a file with one of these suffixes"
        )
    return kinds[path.suffix.lower()]


def summary_markdown(summary: Summary, of: str) -> str:
    """Markdown with a footnote for each quote."""
    numbers, notes = count(1), list[str]()

    def one(sentence: SummarySentence) -> str:
        marks = []
        for found in sentence.evidence:
            number, where = next(numbers), _plain(place(found))
            marks.append(f"[^{number}]")
            notes.append(f"[^{number}]: {f'{where}: ' if where else ''}“{_plain(found.quote)}”")
        return _plain(sentence.text) + "".join(marks) + ("" if sentence.supported else f" \\{UNCHECKED}")

    def parts() -> Iterator[str]:
        yield f"# Summary of {_plain(of)}" if of else "# Summary"
        if summary.note:
            yield f"*{_plain(summary.note)}*"
        for section in summary.sections:
            if section.title:
                yield f"## {_plain(section.title)}"
            yield " ".join(map(one, section.sentences))
        yield "\n".join(notes)

    return "\n\n".join(parts()).rstrip() + "\n"


def _plain(text: str) -> str:
    """A text on one line that Markdown shows as it is; what a page may not hold is replaced."""
    return _MARKS.sub(r"\\\1", FORBIDDEN.sub("\ufffd", " ".join(text.split())))


def summary_html(summary: Summary, of: str) -> str:
    """One self-contained page, as `html_page`; each sentence links to its quotes."""
    numbers = count(1)

    def numbered(sentence: SummarySentence) -> tuple[SummarySentence, list[tuple[int, str, Evidence]]]:
        return sentence, [(next(numbers), place(found), found) for found in sentence.evidence]

    sections = [(section, list(map(numbered, section.sentences))) for section in summary.sections]
    return rendered("summary.html.jinja", of=of, summary=summary, sections=sections, unchecked=UNCHECKED)
