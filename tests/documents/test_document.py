import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ttt_docs.memory
from ttt_docs.documents import Document, Span
from ttt_docs.documents.html import html_document
from ttt_docs.documents.layout import Line, join_pages, remove_running_lines
from ttt_docs.documents.markdown import markdown_document
from ttt_docs.documents.plain import chapter_spans
from ttt_docs.errors import DocumentError
from ttt_docs.text.spans import spans_from_starts


def scan(document: Document, offset: int) -> Span | None:
    return next((span for span in document.spans if span.start <= offset < span.end), None)


def check(document: Document) -> None:
    before = 0
    for span in document.spans:
        assert before <= span.start < span.end <= len(document)
        before = span.end
    for offset in range(-1, len(document) + 2):
        assert document.span_at(offset) == scan(document, offset)


@settings(deadline=None)
@given(st.text(min_size=1), st.lists(st.integers(0, 60), max_size=8))
def test_spans_are_ordered_and_span_at_agrees_with_a_scan(text, cuts):
    text = "x" + text
    starts = sorted((cut, str(cut)) for cut in cuts)
    document = Document.from_text(text, spans=spans_from_starts("page", starts, len(text)))
    check(document)
    if document.spans:  # a span for every character
        assert document.spans[0].start == 0 and document.spans[-1].end == len(document)
        assert all(a.end == b.start for a, b in zip(document.spans, document.spans[1:], strict=False))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=6))
def test_span_at_with_gaps(pieces):
    spans, end = [], 0
    for gap, length in pieces:
        start, end = end + gap, end + gap + length + 1
        spans.append(Span("chapter", str(start), start, end))
    check(Document("d", "x" * (end + 3), tuple(spans)))


HEADINGS = st.sampled_from(
    ["Chapter I\n", "\n\nCHAPTER 2. The End\n\n", "# One\n", "Two\n===\n", "<h1>a</h1>", "words ", "\n"]
)


@settings(deadline=None)
@given(st.lists(HEADINGS | st.text(max_size=5), min_size=1, max_size=12))
def test_spans_of_every_parser_cover_the_text(pieces):
    source = "word " + "".join(pieces)
    for document in (
        Document.from_text(source, spans=chapter_spans(source)),
        markdown_document(source, "m"),
        html_document("<p>word</p>" + source, "h"),
    ):
        check(document)
        assert not document.spans or (document.spans[0].start, document.spans[-1].end) == (0, len(document))


LINE = st.builds(
    Line,
    st.sampled_from(
        ["It was a dark night, and the exam-", "ple was well-", "known.", "7", "THE BOOK", "a—", "—b", "Ωmega", "-"]
    ),
    st.sampled_from([0.0, 14.0, 30.0]),
    st.sampled_from([100.0, 90.0, 80.0, 30.0]),
    st.sampled_from([0.0, 10.0, 20.0]),
)


@settings(deadline=None)
@given(st.lists(st.lists(LINE, max_size=5), min_size=1, max_size=6))
def test_page_starts_are_exact(pages):
    kept = remove_running_lines(pages, [str(n + 1) for n in range(len(pages))])
    text, starts = join_pages(kept)
    assert [index for _, index in starts] == [index for index, page in enumerate(kept) if page]
    for offset, index in starts:  # the hyphen of a first line may go when the next page or line ends its word
        first = kept[index][0].text
        assert text.startswith(first[:-1] if first.endswith("-") else first, offset)
    spans = spans_from_starts("page", [(offset, str(index)) for offset, index in starts], len(text))
    assert sum(span.end - span.start for span in spans) == len(text)


def test_document_is_a_value():
    document = Document.from_text("Grüße", name="greeting")
    assert (document.name, len(document), document.spans, document.span_at(0)) == ("greeting", 5, (), None)
    assert document.sha256 == hashlib.sha256("Grüße".encode()).hexdigest()
    assert document == Document.from_text("Grüße", name="greeting")
    assert hash(document) == hash(Document.from_text("Grüße", name="greeting"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.text = "other"


def test_lone_surrogates_cannot_break_utf8():
    document = Document.from_text("a\ud800b")
    assert document.text == "a\ufffdb" and len(document.sha256) == 64


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_no_text_is_refused(text):
    with pytest.raises(DocumentError, match=r"empty|whitespace"):
        Document.from_text(text)


@pytest.mark.parametrize("bounds", [[(0, 9)], [(2, 2)], [(3, 1)], [(0, 3), (2, 4)], [(-1, 2)]])
def test_impossible_spans_are_refused(bounds):
    with pytest.raises(DocumentError, match="span"):
        Document.from_text("12345", spans=[Span("page", "1", start, end) for start, end in bounds])


def test_memory_uses_the_same_span():
    assert ttt_docs.memory.Span is Span
