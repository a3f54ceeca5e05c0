"""HTML and SVG by construction: whatever is not `Markup` already is text, and is escaped."""

from __future__ import annotations

import re
from html import escape

# Characters that HTML does not allow; the rest of what strangers write is harmless once it is escaped.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = {"meta", "br", "hr", "link"}


class Markup(str):
    """Text that is HTML or SVG already."""


def text(value: object) -> Markup:
    """`value` as text, whatever it holds."""
    return value if isinstance(value, Markup) else Markup(escape(_FORBIDDEN.sub("\ufffd", str(value))))


def join(*parts: object) -> Markup:
    return Markup("".join(text(part) for part in parts))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attribute="...">children</name>`; None leaves an attribute out.

    In the names of attributes `_` stands for `-`, and at the end for nothing (`class_`); numbers are shortened.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
