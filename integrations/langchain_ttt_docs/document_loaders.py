"""TTTDocsLoader: PDF, EPUB, HTML, Markdown and text as LangChain's documents."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from ttt_docs.documents import load_document
from ttt_docs.documents.load import DEFAULT_MAX_BYTES

Source = str | os.PathLike[str]


class TTTDocsLoader(BaseLoader):
    """Loads files or URLs, one after the other as they are asked for, whole or by page or chapter.

    A document without such parts comes whole. `metadata` has the source as given, the document's name and sha256, its
    format, title and author where known, and of a part its page or chapter and its characters `start` to `end` in the
    document's text.

        for page in TTTDocsLoader("book.pdf", parts="page").lazy_load():
            ...
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        *,
        parts: Literal["document", "page", "chapter"] = "document",
        password: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        one = isinstance(sources, (str, os.PathLike))
        self.sources: list[Source] = [sources] if one else list(sources)  # type: ignore[list-item, arg-type]
        self.parts, self.password, self.max_bytes = parts, password, max_bytes

    def lazy_load(self) -> Iterator[Document]:
        """Raises DocumentError for a source that cannot be read, when its turn comes."""
        for source in self.sources:
            document = load_document(source, password=self.password, max_bytes=self.max_bytes)
            about = {
                **document.metadata,
                "source": os.fspath(source),
                "name": document.name,
                "sha256": document.sha256,
            }
            spans = [span for span in document.spans if span.kind == self.parts]
            for span in spans:
                where = {span.kind: span.label, "start": span.start, "end": span.end}
                yield Document(document.text[span.start : span.end], metadata=about | where)
            if not spans:
                yield Document(document.text, metadata=about | {"start": 0, "end": len(document.text)})
