"""One self-contained page about a memory: no script, nothing loaded, readable on a phone, light and dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from ttt_docs.report.charts import MATRICES, change_bars, loss_curve, strip
from ttt_docs.report.findings import Findings, Passage, Stretch
from ttt_docs.report.markup import Markup, element, join

#: Pixels of the pictures on a screen, a tablet and a phone; `style.css` says from which width on each is shown.
WIDTHS = {"desktop": 900, "tablet": 580, "phone": 320}
#: Nats of a word from which on it is shaded, lightest shade first.
HEAT = (4.0, 7.0, 10.0, 13.0)
_NEEDS_MODEL = (
    "This needs the model that the document was read with, its tokenizer and initial weights: it was not at hand when "
    "the report was made."
)


def html_page(findings: Findings) -> str:
    """The report as one HTML page. All text of documents in it is escaped, and its policy forbids every script."""
    style = files("ttt_docs.report").joinpath("style.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{findings.title} · memory report"),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        _heading(findings),
        element("main", _tiles(findings), _curve(findings), _passages(findings), *_memory_sections(findings)),
        element("footer", "Made by ttt-docs. This page is complete in itself and loads nothing from elsewhere."),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _heading(findings: Findings) -> Markup:
    facts = findings.facts
    names = ", ".join(document.label for document in findings.documents) if len(findings.documents) > 1 else ""
    return element(
        "header",
        element("p", "Memory report", class_="kind"),
        element("h1", element("bdi", findings.title)),
        element("p", element("bdi", names), class_="soft") if names else "",
        element("p", f"Read with {facts['model']}, written {facts['created'][:10]}", class_="soft"),
    )


def _tiles(findings: Findings) -> Markup:
    facts = findings.facts
    first, *_, last = findings.quarters
    tiles = [("Tokens read", f"{facts['tokens']:,}", f"{facts['chunks']:,} chunks of {facts['reading']['chunk']:,}")]
    if findings.mean is not None:
        tiles.append(("Loss", f"{findings.mean:.3f}", "nats per token"))
    if first is not None and last is not None:
        tiles.append(("Last quarter", f"{last:.3f}", f"{last - first:+.3f} against the first"))
    learned = facts["reading"]["learn"]
    updates = facts["chunks"] - facts["skipped"] if learned else 0
    tiles.append(("Updates", f"{updates:,}", f"{facts['skipped']:,} refused" if learned else "read without learning"))
    tiles.append(("File", _size(facts["bytes"]["file"]), f"format {facts['format_version']}, {facts['precision']}"))
    rows = [
        element("div", element("dt", name), element("dd", value, element("small", more))) for name, value, more in tiles
    ]
    return element("dl", *rows, class_="tiles")


def _curve(findings: Findings) -> Markup:
    if not findings.curve:
        return _section("Loss along the document", "Nothing was read yet.")
    lead = (
        "How much each part surprised the model while it read, before it learned from that part: low is expected, high "
        "is news. The thin line is measured, the thick one its trend, the dashed one the mean."
    )
    pictures = _pictures(lambda width, name: loss_curve(findings, width, 260 + width // 12, name))
    quarters = element("p", f"By quarter of the tokens: {_quarters(findings)}", class_="soft")
    return _section("Loss along the document", lead, *pictures, quarters, _stretches("Chapter", findings.chapters))


def _quarters(findings: Findings) -> str:
    return " → ".join("–" if loss is None else f"{loss:.3f}" for loss in findings.quarters)


def _stretches(kind: str, stretches: Sequence[Stretch]) -> Markup:
    if len(stretches) < 2:
        return Markup("")
    rows = [
        (element("bdi", stretch.label), f"{stretch.start:,}", "–" if stretch.loss is None else f"{stretch.loss:.3f}")
        for stretch in stretches
    ]
    table = _table((kind, "from token", "nats per token"), rows)
    return element("details", element("summary", f"{kind} by {kind.lower()}"), table)


def _passages(findings: Findings) -> Markup:
    title = "Most surprising passages"
    if findings.passages is None:
        why = _NEEDS_MODEL if findings.facts["text"] else "The file holds no text."
        return _section(title, why)
    if not findings.passages:
        return _section(title, "The text is too short for any.")
    lead = (
        "The sentences with the greatest loss per token, greatest first; their numbers stand on the curve above. The "
        "stronger a word's shade, the less the model expected it."
    )
    items = [_passage(number, passage) for number, passage in enumerate(findings.passages, start=1)]
    shades = [
        element("li", element("i", class_=f"h{i}"), f"from {nats:g} nats") for i, nats in enumerate(HEAT, start=1)
    ]
    return _section(title, lead, element("ul", *shades, class_="key"), element("ol", *items, class_="passages"))


def _passage(number: int, passage: Passage) -> Markup:
    words = [join(_space(space), _word(word, nats)) for space, word, nats in passage.words]
    about = [f"{passage.loss:.2f} nats per token", passage.place, f"token {passage.token:,}"]
    return element(
        "li",
        element("div", number, class_="number"),
        element(
            "div",
            element("blockquote", element("bdi", *words), dir="auto"),
            element("p", element("bdi", " · ".join(part for part in about if part))),
        ),
        id=f"passage-{number}",
    )


def _space(space: str) -> str | Markup:
    """Lines of a file are broken anywhere; only paragraphs are kept apart."""
    return element("br") if space.count("\n") > 1 else " " if space else ""


def _word(word: str, nats: float) -> str | Markup:
    heat = sum(nats >= threshold for threshold in HEAT)
    return element("mark", word, class_=f"h{heat}") if heat else word


def _memory_sections(findings: Findings) -> list[Markup]:
    return [_window(findings), _changes(findings), _sizes(findings), _provenance(findings)]


def _window(findings: Findings) -> Markup:
    facts = findings.facts
    sinks = min(facts["reading"]["sinks"], findings.keys)
    seen = findings.keys - sinks
    gone = max(facts["position"] - findings.keys, 0)
    parts = [
        ("sinks", f"{sinks:,} first tokens, kept for ever", sinks),
        ("weights", f"{gone:,} tokens that only the fast weights remember", gone),
        ("window", f"{seen:,} tokens in the attention window", seen),
        ("pending", f"{facts['pending']:,} pending: read, not yet learned from", facts["pending"]),
    ]
    lead = "What a question asked now finds: the last tokens word for word in the window, the rest in the fast weights."
    return _section("What is still in view", lead, *_strips(parts, "view", "What is still in view"))


def _changes(findings: Findings) -> Markup:
    title = "What reading changed"
    if not findings.facts["fast"]["blocks"]:
        return _section(title, "Nothing: the document was read with the window alone.")
    if findings.changes is None:
        return _section(title, _NEEDS_MODEL)
    lead = (
        "How far the fast weights are from where they began: the Frobenius norm of the change of each block's three "
        "matrices."
    )
    changes = findings.changes
    pictures = _pictures(lambda width, name: change_bars(changes, width, 240, name))
    shades = element("ul", *(element("li", element("i", class_=name), name) for name in MATRICES), class_="key")
    rows = [
        (change.block, *(f"{change.change[name]:.3f} / {change.initial[name]:.3f}" for name in MATRICES))
        for change in changes
    ]
    table = _table(("Block", *(f"{name}: change / initial" for name in MATRICES)), rows)
    return _section(title, lead, *pictures, shades, element("details", element("summary", "The numbers"), table))


def _sizes(findings: Findings) -> Markup:
    sizes = findings.facts["bytes"]
    told = {
        "fast": "fast weights",
        "window": "window",
        "text": "text",
        "tokens": "tokens",
        "nll": "losses",
        "header": "header",
    }
    parts = [(part, f"{told.get(part, part)} {_size(sizes[part])}", sizes[part]) for part in told if sizes.get(part)]
    return _section("What the file is made of", None, *_strips(parts, "sizes", "Bytes by part"))


def _provenance(findings: Findings) -> Markup:
    facts, reading = findings.facts, findings.facts["reading"]
    rule = f"{reading['inner_rule']}, learning rate {reading['inner_lr']:g}" if reading["learn"] else "none"
    rows: list[tuple[object, object]] = []
    for document in facts["documents"]:
        spans = ", ".join(f"{n:,} {kind}{'s' if n > 1 else ''}" for kind, n in document["spans"].items())
        said = [f"{document['end'] - document['start']:,} characters"] if document["end"] > document["start"] else []
        said += [spans] if spans else []
        said += [] if document["complete"] else ["read in part"]
        digest = [element("br"), "sha256 ", element("code", document["sha256"])] if document["sha256"] else []
        rows.append(("Document", join(element("bdi", document["name"]), element("br"), ", ".join(said), *digest)))
    rows += [
        (
            "Model",
            join(element("bdi", facts["model"]), element("br"), "fingerprint ", element("code", facts["fingerprint"])),
        ),
        ("Reading", f"chunks of {reading['chunk']:,} tokens, window {reading['window']:,}, {reading['sinks']} sinks"),
        ("Updates", rule),
        ("Written", f"{facts['created']} by ttt-docs {facts['package_version']}"),
        *((element("bdi", key), element("bdi", value)) for key, value in facts["extra"].items()),
    ]
    return _section("Where it comes from", None, _facts(rows))


def _section(title: str, lead: str | None, *content: Markup) -> Markup:
    return element("section", element("h2", title), element("p", lead, class_="lead") if lead else "", *content)


def _pictures(draw: Callable[[int, str], Markup]) -> list[Markup]:
    """One picture for each width; the style sheet shows the one that fits."""
    return [element("div", draw(width, name), class_=name) for name, width in WIDTHS.items()]


def _strips(parts: list[tuple[str, str, Any]], key: str, title: str) -> list[Markup]:
    legend = (element("li", element("i", class_=kind), label) for kind, label, amount in parts if amount)
    return [*_pictures(lambda width, _: strip(parts, width, key, title)), element("ul", *legend, class_="key")]


def _facts(rows: Sequence[tuple[object, object]]) -> Markup:
    return element(
        "table", *(element("tr", element("th", name), element("td", value)) for name, value in rows), class_="facts"
    )


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    head = element("tr", *(element("th", name, class_="n" if i else None) for i, name in enumerate(names)))
    body = (
        element("tr", *(element("td", cell, class_="n" if i else None) for i, cell in enumerate(row))) for row in rows
    )
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="columns")


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
