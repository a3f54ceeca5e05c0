"""HTML to text with the standard library's parser: blocks become paragraphs, headings become chapter spans."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from ttt_docs.documents.document import Document
from ttt_docs.documents.plain import byte_order_mark, decode, decode_as
from ttt_docs.text.spans import spans_from_starts

_SKIPPED = {"script", "style", "nav", "template", "noscript", "svg", "head", "iframe", "object", "select"}
_BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer "
        "form h1 h2 h3 h4 h5 h6 header hgroup hr html li main menu ol p pre section summary table tbody tfoot thead "
        "tr ul",
    )
)
_CLOSE = {"tr", "li", "dt", "dd"}  # blocks that follow one another without an empty line
_HEADINGS = {"h1", "h2", "h3"}
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""^\s*<\?xml[^>]{0,100}?encoding\s*=\s*["']([\w.:-]+)""")


def html_document(source: str, name: str) -> Document:
    """A Document of HTML in a str; nothing it links to is fetched. Raises DocumentError when it holds no text."""
    page = HtmlText(source)
    metadata = {"format": "html"} | ({"title": page.title} if page.title else {})
    spans = spans_from_starts("chapter", page.headings, len(page.text))
    return Document.from_text(page.text, name=name, spans=spans, metadata=metadata)


def decode_html(data: bytes, name: str) -> str:
    """HTML bytes as a str: byte order mark, then the encoding the page declares, then as plain text.

    Raises DocumentError for binary data.
    """
    declared = _XML_ENCODING.search(data[:1024]) or _CHARSET.search(data[:4096])
    if declared and not byte_order_mark(data):
        encoding = declared.group(1).decode("ascii", "replace").lower()
        # Browsers read these as Windows-1252, and so do the people who wrote the pages.
        encoding = "cp1252" if encoding in ("iso-8859-1", "latin1", "latin-1", "us-ascii") else encoding
        if not encoding.startswith(("utf-16", "utf16")):  # a page whose <meta> can be read as ASCII is not UTF-16
            try:
                return decode_as(data, encoding, name)
            except Exception:  # a wrong or unknown declaration is common: look at the bytes instead
                pass
    return decode(data, name)


class HtmlText(HTMLParser):
    """Text, title, headings, anchors and links of an HTML page; never fails on malformed markup."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = self.title = ""
        self.headings: list[tuple[int, str]] = []  # (character of `text`, heading), h1 to h3
        self.anchors: dict[str, int] = {}  # id -> character of `text`
        self.links: list[tuple[str, str]] = []  # (href, text), also those in <nav>
        self.parts: list[str] = []
        self.length = 0
        self.gap = ""  # white space to write before the next word
        self.skipping: list[str] = []
        self.preformatted = 0
        self.in_title = False
        self.heading: tuple[int, list[str]] | None = None
        self.pending_anchors: list[str] = []
        self.link: tuple[str, list[str]] | None = None
        self.feed(source)
        self.close()
        self.text, self.title = "".join(self.parts), " ".join(self.title.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.pending_anchors += [value for key in ("id", "name") if (value := attributes.get(key))]
        if tag == "a" and attributes.get("href"):
            self.link = (attributes["href"] or "", [])
        if tag == "title":
            self.in_title = not self.title
        if tag == "body":  # an unclosed <head> must not swallow the page
            self.skipping.clear()
        if tag in _SKIPPED:
            self.skipping.append(tag)
        elif not self.skipping:
            if tag == "br":
                self.gap = "\n" if len(self.gap) < 2 and "\n" not in self.gap else "\n\n"
            elif tag in ("td", "th"):
                self.gap = self.gap if "\n" in self.gap else "\t"
            elif tag in _BLOCKS:
                self.break_block(tag)
            if tag == "li":
                self.add("- ")
            if tag == "pre":
                self.preformatted += 1
            if tag in _HEADINGS:
                self.heading = (-1, [])

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.in_title = False
        if tag == "a" and self.link:
            self.links.append((self.link[0], " ".join("".join(self.link[1]).split())))
            self.link = None
        if tag in self.skipping:
            del self.skipping[self.skipping.index(tag) :]
        elif not self.skipping:
            if tag in _HEADINGS and self.heading:
                offset, words = self.heading
                if label := " ".join("".join(words).split()):
                    self.headings.append((offset, label))
                self.heading = None
            if tag in _BLOCKS:
                self.break_block(tag)
            if tag == "pre":
                self.preformatted = max(0, self.preformatted - 1)

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title += data
        if self.link:
            self.link[1].append(data)
        if self.skipping:
            return
        if self.preformatted:
            self.add(data.replace("\r\n", "\n"))
            return
        words = " ".join(data.split())
        if not words:
            self.gap = self.gap or (" " if data else "")
            return
        if data[0].isspace():
            self.gap = self.gap or " "
        self.add(words)
        if data[-1].isspace():
            self.gap = " "

    def break_block(self, tag: str) -> None:
        if "\n\n" not in self.gap:
            self.gap = "\n" if tag in _CLOSE else "\n\n"

    def add(self, text: str) -> None:
        """Appends the white space that is due, then visible text."""
        if self.gap and self.parts and not (self.parts[-1] == "- " and not self.gap.strip()):
            self.parts.append(self.gap)
            self.length += len(self.gap)
        self.gap = ""
        for anchor in self.pending_anchors:
            self.anchors.setdefault(anchor, self.length)
        self.pending_anchors.clear()
        if self.heading:
            if self.heading[0] < 0:
                self.heading = (self.length, self.heading[1])
            self.heading[1].append(text + " ")
        self.parts.append(text)
        self.length += len(text)
