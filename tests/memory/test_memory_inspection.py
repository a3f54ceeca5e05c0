"""What a file and a memory tell about themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from memory_files import TEXT, make_memory

from ttt_docs.memory import format as memory_format
from ttt_docs.memory import inspect_memory, memories_equal, summary
from ttt_docs.memory import memory as memory_value


def test_inspect_tells_what_the_header_says(tmp_path):
    memory = make_memory()
    path = memory.save(tmp_path / "book.ttt")
    facts = inspect_memory(path)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["path"] == str(path)
    assert (facts["model"], facts["fingerprint"], facts["skipped"]) == ("tiny", "ab" * 32, 1)
    assert (facts["tokens"], facts["position"], facts["chunks"], facts["pending"]) == (10, 8, 2, 2)
    assert facts["reading"] == memory.reading.model_dump(mode="json")
    assert facts["fast"] == {"blocks": [1, 2], "dtype": "F32", "w1": [3, 2], "w2": [2, 3], "w3": [3, 2]}
    assert facts["window"] == {"blocks": [0, 1, 2], "dtype": "BF16", "shape": [1, 7, 2]}
    assert facts["documents"][0]["spans"] == {"page": 2} and facts["documents"][1]["complete"] is False
    assert facts["extra"] == memory.extra and facts["text"] is True
    sizes = facts["bytes"]
    assert sizes["text"] == len(TEXT.encode())
    assert sizes.pop("file") == path.stat().st_size == sum(sizes.values())
    assert sizes["fast"] + sizes["window"] + sizes["tokens"] + sizes["nll"] == memory.nbytes()


def test_inspect_of_a_memory_without_text_or_blocks(tmp_path):
    facts = inspect_memory(make_memory(fast={}, window={}).save(tmp_path / "m.ttt", text=False))
    assert facts["fast"] == facts["window"] == {"blocks": []}
    assert facts["text"] is False and facts["bytes"]["text"] == 0


def test_inspect_reads_no_tensors(tmp_path, monkeypatch):
    path = make_memory().save(tmp_path / "m.ttt")
    for module in (memory_format, memory_value):
        monkeypatch.setattr(module, "read_tensors", lambda *_: pytest.fail("read the tensors"))
    inspect_memory(path)


def test_summary_leaves_out_the_first_token_that_nothing_predicted():
    nll = torch.tensor([0.0, 4, 4, 3, 3, 2, 2, 1, 1])
    told = summary(make_memory(nll=nll, tokens=torch.arange(9, dtype=torch.int32)))
    assert told["mean_nll"] == 2.5 and told["nll_by_quarter"] == [4, 3, 2, 1]
    assert (told["tokens"], told["chunks"], told["pending"], told["skipped"]) == (9, 2, 1, 1)
    assert json.dumps(told)


def test_summary_keeps_a_first_token_that_was_predicted_and_later_zeros():
    nll = torch.tensor([3.0, 0.0, 0.0, 1.0])
    told = summary(make_memory(nll=nll, position=4, tokens=torch.arange(4, dtype=torch.int32)))
    assert told["mean_nll"] == 1.0 and told["nll_by_quarter"] == [3, 0, 0, 1]


def test_summary_of_an_empty_memory():
    empty = make_memory(fast={}, nll=torch.zeros(0), tokens=torch.zeros(0, dtype=torch.int32), position=0)
    told = summary(empty)
    assert told["mean_nll"] is None and told["nll_by_quarter"] == [None] * 4 and told["fast_norms"] == {}


def test_summary_norms():
    fast = {3: {"w1": torch.full((3, 2), 2.0), "w2": torch.zeros(2, 3), "w3": torch.ones(3, 2)}}
    norms = summary(make_memory(fast=fast))["fast_norms"][3]
    assert norms == pytest.approx({"w1": 24**0.5, "w2": 0.0, "w3": 6**0.5})


def test_equality_is_of_bits():
    memory = make_memory()
    assert memories_equal(memory, make_memory())
    minus, plus = torch.full((10,), -0.0), torch.zeros(10)
    assert not memories_equal(replace(memory, nll=minus), replace(memory, nll=plus))
    assert not memories_equal(replace(memory, nll=plus), replace(memory, nll=plus.reshape(2, 5)))
