"""One self-contained page about a memory: no script, nothing loaded, readable on a phone, light and dark."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ttt_docs.io import readable_bytes
from ttt_docs.report.charts import change_bars, count, loss_curve, shares
from ttt_docs.report.findings import Findings

#: Pixels of the pictures on a screen, a tablet and a phone; `style.css` says from which width on each is shown.
WIDTHS = {"desktop": 900, "tablet": 580, "phone": 320}
#: Nats of a word from which on it is shaded, lightest shade first.
HEAT = (4.0, 7.0, 10.0, 13.0)
#: The parts of a file, for people.
PARTS = {
    "fast": "fast weights",
    "window": "window",
    "text": "text",
    "tokens": "tokens",
    "nll": "losses",
    "header": "header",
}
# Characters that HTML does not allow. The rest of what strangers write is harmless once it is escaped.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def html_page(findings: Findings) -> str:
    """The report as one HTML page. All text of documents in it is escaped, and its policy forbids every script."""
    facts, sizes = findings.facts, findings.facts["bytes"]
    sinks = min(facts["reading"]["sinks"], findings.keys)
    seen, gone = findings.keys - sinks, max(facts["position"] - findings.keys, 0)
    return rendered(
        "page.html.jinja",
        found=findings,
        in_view=[
            ("sinks", f"{sinks:,} first tokens, kept for ever", sinks),
            ("weights", f"{gone:,} tokens that only the fast weights remember", gone),
            ("window", f"{seen:,} tokens in the attention window", seen),
            ("pending", f"{facts['pending']:,} pending: read, not yet learned from", facts["pending"]),
        ],
        made_of=[
            (part, f"{name} {readable_bytes(sizes[part])}", sizes[part])
            for part, name in PARTS.items()
            if sizes.get(part)
        ],
    )


def rendered(template: str, **values: object) -> str:
    """A page of a template, with the style sheet and a policy that allows nothing else."""
    style = Path(__file__).with_name("style.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return _templates().get_template(template).render(style=Markup(style), policy=policy, **values)


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )
    templates.filters |= {
        "thousands": "{:,}".format,
        "nats": lambda loss: "–" if loss is None else f"{loss:.3f}",
        "size": readable_bytes,
        "count": count,
    }
    templates.globals |= {
        "widths": WIDTHS,
        "heat": HEAT,
        "loss_curve": loss_curve,
        "change_bars": change_bars,
        "shares": shares,
    }
    return templates


def _shown(value: object) -> object:
    """What a template writes for a value, before it is escaped: pixels are shortened, forbidden characters replaced."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return value if isinstance(value, Markup) else FORBIDDEN.sub("\ufffd", str(value))
