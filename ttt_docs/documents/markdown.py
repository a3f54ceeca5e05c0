"""Markdown to readable text: marks, link targets and images go, words and code stay, headings become spans."""

from __future__ import annotations

import re

from ttt_docs.documents.document import Document
from ttt_docs.text.spans import spans_from_starts

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r"^ {0,3}(=+|-{2,})[ \t]*$")
_DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s+\S+")
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)(?:---|\.\.\.)\n", re.DOTALL)
_FRONT_MATTER_FIELD = re.compile(r"^(title|author):[ \t]*[\"']?(.{1,1000}?)[\"']?[ \t]*$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.{0,100000}?-->", re.DOTALL)
_CODE_SPAN = re.compile(r"(`+)(?!`)(.{1,1000}?)(?<!`)\1(?!`)")
_INLINE = (
    (re.compile(r"!\[([^\]]*)\](?:\([^()\s]*(?:\([^()]*\)[^()\s]*)*(?:\s+[^()]*)?\)|\[[^\]]*\])"), r"\1"),  # image
    (re.compile(r"\[([^\[\]]+)\]\([^()\s]*(?:\([^()]*\)[^()\s]*)*(?:\s+[^()]*)?\)"), r"\1"),  # link
    (re.compile(r"\[([^\[\]]+)\]\[[^\]]*\]"), r"\1"),  # reference link
    (re.compile(r"<(https?://[^>\s]+)>"), r"\1"),
    (re.compile(r"</?(?:a|b|br|code|div|em|i|img|kbd|p|span|strong|sub|sup|u)\b[^>]*>", re.IGNORECASE), ""),
    (re.compile(r"(?<![\w*])\*\*\*(?=\S)(.{1,1000}?)(?<=\S)\*\*\*(?![\w*])"), r"\1"),
    (re.compile(r"\*\*(?=\S)(.{1,1000}?)(?<=\S)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)__(?=\S)(.{1,1000}?)(?<=\S)__(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w*\\])\*(?=[^\s*])([^*\n]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w\\])_(?=[^\s_])([^_\n]+?)(?<=\S)_(?!\w)"), r"\1"),
    (re.compile(r"\\([\\`*_{}\[\]()#+\-.!>|~])"), r"\1"),
)


def markdown_document(source: str, name: str) -> Document:
    """A Document of Markdown in a str with "\\n" newlines. Raises DocumentError when it holds no text."""
    metadata = {"format": "markdown"}
    if front := _FRONT_MATTER.match(source):
        metadata |= dict(_FRONT_MATTER_FIELD.findall(front.group(1)))
        source = source[front.end() :]
    parts: list[str] = []
    headings: list[tuple[int, str]] = []  # (character, title) of levels 1 to 3
    length = 0
    fence = ""
    previous = 0  # length before the line above: where a heading underlined with === starts
    above = ""
    for line in _COMMENT.sub("", source).split("\n"):
        opened = _FENCE.match(line)
        if fence:
            if opened and opened.group(1).startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
                continue
            text = line
        elif opened:
            fence = opened.group(1)
            continue
        elif _DEFINITION.match(line):
            continue
        elif heading := _ATX.match(line):
            text = _inline(heading.group(2) or "")
            if text and len(heading.group(1)) <= 3:
                headings.append((length, text))
        elif (under := _SETEXT.match(line)) and above.strip():
            if not under.group(1).startswith("-") or not above.lstrip().startswith(("-", "|", ">", "*")):
                headings.append((previous, above.strip()))
            above = ""
            continue
        else:
            text = _inline(line)
        previous = length
        above = "" if fence else text
        parts.append(text)
        length += len(text) + 1
    text = "\n".join(parts)
    spans = spans_from_starts("chapter", headings, len(text))
    return Document.from_text(text, name=name, spans=spans, metadata=metadata)


def _inline(line: str) -> str:
    """One line without inline marks; code spans keep their content as it is."""
    kept: list[str] = []
    position = 0
    for code in _CODE_SPAN.finditer(line):
        kept += [_strip_marks(line[position : code.start()]), code.group(0)]
        position = code.end()
    return "".join([*kept, _strip_marks(line[position:])])


def _strip_marks(text: str) -> str:
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text
