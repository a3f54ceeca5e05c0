"""Readers for the corpus tests, which the processes of a cluster import too."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_model import byte_tokenizer, tiny_decoder

from ttt_docs import Document, Memory, TTTReader
from ttt_docs.model.config import ReadingConfig

READING = ReadingConfig(chunk=16, window=48, sinks=4, inner_rule="normalized", inner_lr=0.1)


def open_tiny() -> TTTReader:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = byte_tokenizer(Path(folder))
    return TTTReader(tiny_decoder(), tokenizer, READING, name="tiny", fingerprint="ab" * 32)


class Mortal(TTTReader):
    """Logs what it reads, and kills its own process when it meets a document of that name: once, if it can log that."""

    log: Path
    deadly: str

    def ingest_batch(self, documents: Sequence[Document], **options: Any) -> list[Memory]:
        names = [document.name for document in documents]
        memories = super().ingest_batch(documents, **options)
        once = self.log / "killed"
        if self.deadly in names and not once.exists():
            if self.log.exists():
                once.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        for name in names if self.log.exists() else ():
            (self.log / f"{name}-{os.getpid()}").touch()
        return memories


def open_mortal(log: str, deadly: str) -> TTTReader:
    reader = open_tiny()
    mortal = Mortal(reader.model, reader.tokenizer, reader.reading, name=reader.name, fingerprint=reader.fingerprint)
    mortal.log, mortal.deadly = Path(log), deadly
    return mortal
