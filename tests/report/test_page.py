"""The page is well formed, holds everything, and lets nothing of a document act."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from report_book import HOSTILE

from ttt_docs.report import examine, html_page
from ttt_docs.report.charts import _labels, nice_ticks
from ttt_docs.report.page import _templates

VOID = {"meta", "br"}


class Structure(HTMLParser):
    """Tags, ids and text of a page; any tag that is not closed in order fails."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


@pytest.fixture(scope="module")
def page(findings) -> str:
    return html_page(findings)


def test_hostile_text_stays_text(page):
    structure = Structure(page)
    assert not {"script", "img", "iframe", "link", "object", "base", "form"} & set(structure.tags)
    assert structure.tags.count("style") == 1 and HOSTILE in structure.said
    assert not [name for name, _ in structure.attributes if name.startswith("on") or name == "style"]
    links = [value for name, value in structure.attributes if name in ("href", "src", "action")]
    assert links and all(link.startswith("#passage-") for link in links)
    assert any((value or "").startswith("default-src 'none'") for _, value in structure.attributes)
    assert "http:" not in page and "https:" not in page


def test_the_page_holds_all_that_was_asked_for(page, findings, small_memory):
    said = Structure(page).said
    for title in ("Loss along", "Most surprising", "still in view", "reading changed", "made of", "comes from"):
        assert title in said
    assert f"{len(small_memory.tokens):,}" in said and f"{findings.mean:.3f}" in said
    assert small_memory.fingerprint in said and small_memory.documents[0].sha256 in said
    for passage in findings.passages:
        assert f"{passage.loss:.2f} nats per token" in said


def test_ids_are_unique_and_labels_resolve(page):
    structure = Structure(page)
    ids = [value for name, value in structure.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = [i for name, value in structure.attributes if name == "aria-labelledby" for i in value.split()]
    targets = [value[1:] for name, value in structure.attributes if name == "href"]
    assert named and set(named) | set(targets) <= set(ids)


def test_pages_of_little(findings, small_memory, facts):
    without_model = Structure(html_page(examine(small_memory, facts))).said
    assert without_model.count("was not at hand") == 2
    nothing = replace(findings, curve=(), mean=None, quarters=(None,) * 4, passages=(), chapters=(), documents=())
    assert "Nothing was read yet" in Structure(html_page(nothing)).said
    unlearned = replace(
        findings, facts=facts | {"fast": {"blocks": []}, "reading": facts["reading"] | {"learn": False}}
    )
    assert "window alone" in Structure(html_page(unlearned)).said


def test_values_are_escaped_cleaned_and_shortened():
    render = _templates().from_string('<b title="{{ a }}">{{ b }}</b>').render
    assert render(a='"<', b="<i>&\x00") == '<b title="&#34;&lt;">&lt;i&gt;&amp;\ufffd</b>'
    assert render(a=1.5, b=Markup("<u></u>")) == '<b title="1.5"><u></u></b>'
    assert render(a=1.0, b=2.345) == '<b title="1">2.35</b>'
    assert render(a="\ud800", b=7) == '<b title="\ufffd">7</b>'
    with pytest.raises(UndefinedError):
        render(a=1)


def test_ticks_are_round_and_few():
    assert nice_ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert nice_ticks(2.81, 3.52, 4) == pytest.approx([3.0, 3.2, 3.4])
    assert nice_ticks(1, 1, 4) == [1]


def test_chapter_names_take_the_longest_form_that_fits():
    names = ["Chapter I. Loomings", "Chapter II. The Inn", "Epilogue"]
    assert _labels(names, [200, 200, 200]) == names
    assert _labels(names, [90, 90, 90]) == ["I. Loomings", "II. The Inn", "Epilogue"]
    assert _labels(names, [40, 10, 90]) == ["I", "", "Epilogue"]
    assert _labels([], []) == []
