"""Makes a paginated PDF of a novel or story in plain text: `python make_book.py book.txt book.pdf`.

The text file has the title on its first line, the author on its second, then paragraphs separated by blank lines.
Lines such as "Chapter I" open a chapter, indented blocks are verse, _words between underscores_ are italic.
The PDF has 6 x 9 inch pages with a title page, running headers, page numbers and justified type. Chapters begin on a
new page, or with --run-on below the one before. The same text always gives the same bytes. Needs reportlab
(pip install reportlab).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from xml.sax.saxutils import escape

from reportlab import rl_config
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import inch
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, NextPageTemplate, PageBreak, PageTemplate, Paragraph

PAGE = (6 * inch, 9 * inch)
MARGIN = 0.8 * inch
CHAPTER = re.compile(r"^(?:chapter|book|part)\s+(?:[ivxlc]+|\d+)\b.{0,60}$", re.IGNORECASE)

BODY = ParagraphStyle(
    "body", fontName="Times-Roman", fontSize=10.5, leading=13.5, alignment=TA_JUSTIFY, firstLineIndent=14
)
FIRST = ParagraphStyle("first", parent=BODY, firstLineIndent=0)
VERSE = ParagraphStyle("verse", parent=FIRST, leftIndent=36, alignment=0, spaceBefore=6, spaceAfter=6)
HEADING = ParagraphStyle(
    "heading", fontName="Times-Bold", fontSize=16, leading=20, alignment=TA_CENTER, spaceBefore=14, spaceAfter=28
)
TITLE = ParagraphStyle("title", parent=HEADING, fontSize=22, leading=28, spaceBefore=2 * inch)
AUTHOR = ParagraphStyle("author", fontName="Times-Italic", fontSize=14, leading=18, alignment=TA_CENTER)


def markup(text: str) -> str:
    """reportlab's paragraph markup of Gutenberg's plain text."""
    return re.sub(r"_([^_]+)_", r"<i>\1</i>", escape(text))


def story(title: str, author: str, body: str, run_on: bool) -> list[Flowable]:
    flow: list[Flowable] = [Paragraph(markup(title), TITLE), Paragraph(markup(author), AUTHOR)]
    opening = True
    flow += [NextPageTemplate("opening"), PageBreak()]
    for block in re.split(r"\n\s*\n", body.strip("\n")):
        line = " ".join(block.split())
        if CHAPTER.match(line):
            if not opening and not run_on:
                flow += [NextPageTemplate("opening"), PageBreak()]
            flow += [NextPageTemplate("running"), Paragraph(markup(line), HEADING)]
            opening = True
        elif block.startswith("  "):
            flow.append(Paragraph("<br/>".join(markup(verse.strip()) for verse in block.splitlines()), VERSE))
            opening = False
        elif line:
            flow.append(Paragraph(markup(line), FIRST if opening else BODY))
            opening = False
    return flow


def make_book(text: str, target: Path, run_on: bool = False) -> int:
    """Writes the PDF of `text` and returns its number of pages."""
    title, author, body = text.split("\n", 2)

    def number(canvas: Canvas, _: object) -> None:
        canvas.setFont("Times-Roman", 9)
        canvas.drawCentredString(PAGE[0] / 2, 0.45 * inch, str(canvas.getPageNumber()))

    def header_and_number(canvas: Canvas, document: object) -> None:
        canvas.setFont("Times-Italic", 9)
        header = author if canvas.getPageNumber() % 2 == 0 else title
        canvas.drawCentredString(PAGE[0] / 2, PAGE[1] - 0.55 * inch, header)
        number(canvas, document)

    rl_config.useA85 = 0  # plain binary streams: a fifth smaller
    document = BaseDocTemplate(str(target), pagesize=PAGE, title=title, author=author, invariant=1)
    frame = Frame(MARGIN, MARGIN, PAGE[0] - 2 * MARGIN, PAGE[1] - 2 * MARGIN, 0, 0, 0, 0)
    document.addPageTemplates(
        [
            PageTemplate("title", [frame]),
            PageTemplate("opening", [frame], onPage=number),
            PageTemplate("running", [frame], onPage=header_and_number),
        ]
    )
    document.build(story(title, author, body, run_on))
    return document.page


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a paginated PDF of a novel or story in plain text.")
    parser.add_argument("text", type=Path, help="text file: title, author, then paragraphs")
    parser.add_argument("pdf", type=Path, nargs="?", help="PDF to write (default: beside the text)")
    parser.add_argument("--run-on", action="store_true", help="chapters do not begin on a new page")
    arguments = parser.parse_args()
    target = arguments.pdf or arguments.text.with_suffix(".pdf")
    pages = make_book(arguments.text.read_text(encoding="utf-8"), target, arguments.run_on)
    print(f"{target}: {pages} pages")


if __name__ == "__main__":
    main()
