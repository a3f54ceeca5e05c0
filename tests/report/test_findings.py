"""What the report says is what the memory holds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from report_book import SECOND, TEXT, small_book

from ttt_docs.errors import MemoryMismatchError
from ttt_docs.memory import inspect_memory
from ttt_docs.report import examine
from ttt_docs.report.findings import LONGEST, PASSAGES, POINTS


def test_the_curve_covers_every_predicted_token_once(findings, small_memory):
    points = findings.curve
    assert points[0].start == 1 and points[-1].end == len(small_memory.tokens)
    assert all(a.end == b.start for a, b in pairwise(points)) and len(points) <= POINTS
    for point in points:
        assert point.loss == pytest.approx(float(small_memory.nll[point.start : point.end].mean()), rel=1e-5)
    assert findings.mean == pytest.approx(float(small_memory.nll[1:].mean()), rel=1e-5)
    flat = {round(p.trend, 3) for p in points}
    assert max(p.trend for p in points) <= max(p.loss for p in points) + 1e-9 and len(flat) > 1


def test_chapters_begin_at_their_tokens(findings, small_memory, tiny_reader):
    first, second = findings.chapters
    before = len(tiny_reader.tokenizer.encode(TEXT[:SECOND]))  # one token per byte
    assert (first.start, first.end) == (0, before) and (second.start, second.end) == (before, len(small_memory.tokens))
    assert second.loss == pytest.approx(float(small_memory.nll[before:].mean()), rel=1e-5)


def test_without_the_model_chapters_are_placed_by_characters(small_memory, facts):
    found = examine(small_memory, facts)
    assert found.passages is None and found.changes is None
    assert found.chapters[1].start == pytest.approx(len(small_memory.tokens) * SECOND / len(TEXT), abs=2)


def test_passages_are_of_the_text_and_the_greatest_loss_comes_first(findings, small_memory):
    passages = findings.passages
    assert 2 <= len(passages) <= PASSAGES
    assert [p.loss for p in passages] == sorted((p.loss for p in passages), reverse=True)
    for passage in passages:
        start = TEXT.index(passage.text)
        assert len(passage.text) <= LONGEST and abs(start - passage.token) <= 1  # one token per byte
        losses = small_memory.nll[passage.token : passage.token + passage.tokens]
        assert sum(nats for *_, nats in passage.words) == pytest.approx(float(losses.sum()), rel=1e-4)
        assert passage.loss == pytest.approx(float(losses.mean()), rel=1e-4)
        assert passage.place.startswith("Chapter II") == (start >= SECOND)


def test_change_is_from_the_models_own_weights(findings, small_memory, tiny_reader, facts):
    assert [change.block for change in findings.changes] == list(small_memory.fast)
    initial = tiny_reader.model.fast_layout.views(tiny_reader.model.initial_fast_weights())
    for change, weights in zip(findings.changes, initial, strict=True):
        moved = small_memory.fast[change.block]["w2"] - weights.w2[0]
        assert change.change["w2"] == pytest.approx(float(moved.norm()), rel=1e-5) and change.change["w2"] > 0
    blocks = tiny_reader.model.config.suffix
    untouched = {
        block: {name: w[0].clone() for name, w in zip(("w1", "w2", "w3"), weights.matrices, strict=True)}
        for block, weights in zip(blocks, initial, strict=True)
    }
    found = examine(replace(small_memory, fast=untouched), facts, tiny_reader)
    assert all(value == 0 for change in found.changes for value in change.change.values())


def test_two_documents_have_two_stretches_and_names_in_their_passages(tiny_reader, tmp_path):
    memory = tiny_reader.ingest(small_book("one.txt"), progress=False)
    memory = tiny_reader.ingest(small_book("two.txt"), memory=memory, progress=False)
    found = examine(memory, inspect_memory(memory.save(tmp_path / "two.ttt")), tiny_reader)
    one, two = found.documents
    assert one.start == 0 and one.end == two.start == memory.documents[1].first_token and two.end == len(memory.tokens)
    assert found.title == "2 documents" and len(found.chapters) == 4
    assert {p.place.split(",")[0] for p in found.passages} <= {"one.txt", "two.txt"}
    assert found.chapters[2].start >= two.start


def test_a_memory_of_nothing(tiny_reader, tmp_path):
    memory = replace(
        tiny_reader.ingest(text="x", progress=False),
        tokens=torch.zeros(0, dtype=torch.int32),
        nll=torch.zeros(0),
        text="",
        documents=(),
    )
    found = examine(memory, inspect_memory(memory.save(tmp_path / "none.ttt")), tiny_reader)
    assert found.curve == () and found.mean is None and found.passages == () and found.quarters == (None,) * 4


def test_another_models_reader_is_refused(small_memory, facts, tiny_reader):
    with pytest.raises(MemoryMismatchError):
        examine(replace(small_memory, fingerprint="cd" * 32), facts, tiny_reader)
