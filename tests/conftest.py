"""A tiny random model with its tokenizer, in a real TTTReader."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from tiny_model import byte_tokenizer, tiny_decoder

import ttt_docs.reading.chunks
from ttt_docs.model.config import ReadingConfig
from ttt_docs.reader import TTTReader
from ttt_docs.text.tokenizer import Tokenizer

# Triton decides when it is imported, by whichever test comes first, whether it interprets its kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_reader(tiny_tokenizer) -> TTTReader:
    """Reads with chunks of 16 tokens, a window of 1,024 and 4 sinks, in float32."""
    reading = ReadingConfig(chunk=16, window=1024, sinks=4, inner_rule="normalized", inner_lr=0.3, guard=None)
    return TTTReader(tiny_decoder(), tiny_tokenizer, reading, name="tiny", fingerprint="ab" * 32)


@pytest.fixture
def interrupt(monkeypatch):
    """Sends SIGINT while the chunk number `after` is reported, once."""

    def interrupt(after: int) -> None:
        genuine, left = ttt_docs.reading.chunks.report, [after]

        def report(*arguments):
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGINT)
            return genuine(*arguments)

        monkeypatch.setattr(ttt_docs.reading.chunks, "report", report)

    return interrupt
