import pytest

from ttt_docs.documents import load_document
from ttt_docs.errors import DocumentError

MARKDOWN = """---
title: "The Guide"
author: A. Writer
---
Hello *there*, **you** and __them__; snake_case_name and 2 * 3 * 4 stay.

# First *part*

See [the site](https://example.org/a_(b) "title") and ![a cat](cat.png).
A [reference][ref] and `code *stays* [here](x)`.

[ref]: https://example.org

<!-- a remark -->
```python
# not a heading
x = a*b*c
```

Second
------

- item \\*one\\*
#### Deep
"""


def test_markdown(tmp_path):
    path = tmp_path / "guide.md"
    path.write_text(MARKDOWN)
    document = load_document(path)
    text = document.text
    assert "Hello there, you and them; snake_case_name and 2 * 3 * 4 stay." in text
    assert "See the site and a cat.\nA reference and `code *stays* [here](x)`." in text
    assert "# not a heading\nx = a*b*c" in text
    assert "- item *one*" in text
    for gone in ("example.org", "remark", "```", "---", "**"):
        assert gone not in text
    assert [span.label for span in document.spans] == ["front matter", "First part", "Second"]
    assert text[document.spans[2].start :].startswith("Second\n")
    assert document.metadata == {"format": "markdown", "title": "The Guide", "author": "A. Writer"}


HTML = """<!DOCTYPE html><html><head><title>T &amp; U</title><style>p {x}</style><script>var a = "<p>no</p>";</script>
</head><body><nav><a href="x">Menu</a></nav>
<h1>One <em>and</em> only</h1>
<p>Caf&eacute; &#8212; a
   <b>bold</b>move<br>next line</p><ul><li>first</li><li><p>second</p></li></ul>
<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
<h2>Two</h2><pre>  x =  1
  y</pre><p>End.</p><img src="http://127.0.0.1:9/x.png" alt="pic"></body></html>"""


def test_html(tmp_path):
    path = tmp_path / "page"  # recognized by its content
    path.write_text(HTML)
    document = load_document(path)
    assert document.text == (
        "One and only\n\nCafé — a boldmove\nnext line\n\n- first\n- second\n\n"
        "a\tb\n1\t2\n\nTwo\n\n  x =  1\n  y\n\nEnd."
    )
    assert [(span.kind, span.label) for span in document.spans] == [("chapter", "One and only"), ("chapter", "Two")]
    assert document.text[document.spans[1].start :].startswith("Two")
    assert document.metadata == {"format": "html", "title": "T & U"}


@pytest.mark.parametrize(
    "declared", ['<meta charset="iso-8859-2">', '<meta http-equiv="x" content="a; charset=iso-8859-2">']
)
def test_declared_encoding(tmp_path, declared):
    path = tmp_path / "page.html"
    path.write_bytes(f"<html><head>{declared}</head><body>Zażółć gęślą jaźń</body></html>".encode("iso-8859-2"))
    assert load_document(path).text == "Zażółć gęślą jaźń"


def test_malformed_html_still_gives_its_text(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<html><head><title>t</title><body><p>One<p>Two</b></div><h1>Open <i>heading<p>Three < four &nope;")
    assert load_document(path).text.startswith("One\n\nTwo")
    assert "Three < four &nope;" in load_document(path).text


def test_a_page_of_scripts_has_no_text(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<html><body><script>render()</script></body></html>")
    with pytest.raises(DocumentError, match="is empty"):
        load_document(path)


@pytest.mark.parametrize("declared", ["klingon", "utf-7", "shift_jis"])
def test_a_wrong_declaration_is_not_believed(tmp_path, declared):
    path = tmp_path / "page.html"
    path.write_bytes(f'<html><meta charset="{declared}"><p>Zażółć gęślą jaźń 🙂</p></html>'.encode())
    assert load_document(path).text == "Zażółć gęślą jaźń 🙂"
