"""Whatever happens to a file's bytes, reading it gives a sound Document or a DocumentError, nothing else."""

import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_docs.documents import iter_text, load_document
from ttt_docs.errors import DocumentError

DAMAGE = st.lists(
    st.tuples(st.sampled_from(["change", "cut", "drop", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, damage: list[tuple[str, float, bytes]]) -> bytes:
    for kind, place, junk in damage:
        at = int(place * len(data))
        if kind == "change":
            data = data[:at] + junk + data[at + len(junk) :]
        elif kind == "cut":
            data = data[: max(at, 40)]
        elif kind == "drop":
            data = data[:at] + data[at + 5 * len(junk) :]
        else:
            data = data[:at] + data[at : at + 9 * len(junk)] + data[at:]
    return data


@pytest.fixture(scope="module")
def sound_files(make_pdf, make_epub):
    nav = '<nav type="toc"><a href="a.xhtml">One</a><a href="b.xhtml#x">Two</a></nav>'
    chapters = {"a.xhtml": "<h1>One</h1><p>Words &amp; more.</p>", "b.xhtml": "<p id='x'>Last <b>words</b>.</p>"}
    return {
        "a.pdf": make_pdf([["Some words of a page.", "And more."]] * 3, header="HEADER", numbers=True),
        "b.pdf": make_pdf([["Some words."]], encrypt="secret"),
        "a.epub": make_epub(chapters, nav=nav),
        "a.html": b"<!doctype html><html><head><title>T</title></head><body><h1>A</h1><p>b<pre>c</pre><ul><li>d</ul>",
        "a.md": b"# One\n\n*some* [link](x) ![image](y)\n\n```\ncode\n```\n\nTwo\n===\n",
        "a.txt": "\ufeffChapter I\r\n\r\nSüße Wörter.\r\n\r\nChapter II\r\n\r\nEnde.".encode("utf-16"),
    }


@pytest.mark.parametrize("name", ["a.pdf", "b.pdf", "a.epub", "a.html", "a.md", "a.txt"])
@settings(max_examples=60, deadline=None)
@given(damage=DAMAGE)
def test_only_document_errors(sound_files, name, damage):
    data = damaged(sound_files[name], damage)
    with contextlib.suppress(DocumentError):
        document = load_document(io.BytesIO(data), name=name, password="secret")
        ends = [0, *(span.end for span in document.spans)]
        assert [span.start for span in document.spans] == ends[:-1]  # no gap, no overlap
        assert not document.spans or ends[-1] == len(document)
        assert len(document.sha256) == 64
    with contextlib.suppress(DocumentError):
        list(iter_text(io.BytesIO(data)))
