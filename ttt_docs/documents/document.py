"""A document: its text, and spans that tell the page or chapter of any character."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ttt_docs.errors import DocumentError
from ttt_docs.text.spans import Span, span_at

#: Half a surrogate pair: cannot be written as UTF-8, so no tokenizer takes it.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """What was read from one file: `text`, and `spans` inside it. Those of one kind are in order and do not overlap.

    Raises DocumentError when the text is empty or only whitespace, or when the spans break that rule.
    """

    name: str
    text: str
    spans: tuple[Span, ...] = ()
    metadata: dict[str, str] = field(
        default_factory=dict, hash=False
    )  # "format", and "title", "author", ... where known

    def __post_init__(self) -> None:
        if not self.text or self.text.isspace():
            what = "holds only whitespace" if self.text else "is empty"
            raise DocumentError(f"{self.name}: the document {what}. Give a file that has text in it.")
        before: dict[str, int] = {}
        for span in self.spans:
            if not before.get(span.kind, 0) <= span.start < span.end <= len(self.text):
                raise DocumentError(
                    f"{self.name}: span {span.label!r} [{span.start}, {span.end}) is empty, out of order or outside "
                    f"the text of {len(self.text)} characters. Give spans in order that do not overlap."
                )
            before[span.kind] = span.end

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        name: str = "text",
        spans: Sequence[Span] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Document:
        """A document of `text` as it stands; only lone surrogates become U+FFFD, so that offsets stay valid.

        Raises DocumentError when the text is empty or only whitespace.
        """
        return cls(name, LONE_SURROGATE.sub("\ufffd", text), tuple(spans), {"format": "text", **(metadata or {})})

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8, 64 hexadecimal digits."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    def span_at(self, offset: int, kind: str | None = None) -> Span | None:
        """The page or chapter of character `offset`, or None. Say which `kind` where there are both."""
        return span_at(self.spans, offset, kind)

    def __len__(self) -> int:
        """Characters of the text."""
        return len(self.text)
