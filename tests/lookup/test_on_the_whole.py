"""Questions on the whole are answered from all parts of a document, unless one place answers them for sure."""

from __future__ import annotations

import pytest

from ttt_docs import Memory, UsageError
from ttt_docs.lookup.reader import PassageAnswer, PassageReader
from ttt_docs.lookup.router.routing import decide
from ttt_docs.reader import DOUBT

YEARS = "\n\n".join(
    f"In year {i} of the lighthouse its keeper Edward Marlow painted the tower and wrote the log. The winter was long, "
    f"and the boat from Leith came {i + 2} times with oil and bread for the people of the rock."
    for i in range(12)
)
TEXT = f"{YEARS}\n\nThe main characters of the rock were the keeper and his dog. They had no other company for years."
WHOLE, PLACE = "What is this book about?", "How often did the boat come?"


@pytest.fixture
def memory(tiny_reader) -> Memory:
    return tiny_reader.ingest(text=TEXT, name="log", learn=False)


def says(monkeypatch, here: float, sure: float) -> None:
    def read(self, passages, *_):
        return [PassageAnswer(i, "the lighthouse", here, sure) for i in range(len(passages))]

    monkeypatch.setattr(PassageReader, "read", read)
    monkeypatch.setattr("ttt_docs.lookup.answer.probabilities", lambda found, texts: [here] * len(found))


def test_all_parts_answer(tiny_reader, memory, monkeypatch):
    says(monkeypatch, 0.5, 0.9)
    answer = tiny_reader.ask(memory, WHOLE)
    assert answer.route == "whole" and "Marlow" in answer.text and answer.evidence
    assert all(found.quote == TEXT[found.start : found.end] for found in answer.evidence)
    assert tiny_reader.ask(memory, WHOLE, route="whole").text == answer.text
    assert tiny_reader.ask(memory, PLACE).route == "lookup"


def test_one_place_answers_for_sure(tiny_reader, memory, monkeypatch):
    says(monkeypatch, 0.9999, 0.9)
    people = "Who are the main characters?"  # the router is less sure of this one
    assert 0 < decide(people).probability < DOUBT
    assert tiny_reader.ask(memory, people).route == "lookup"
    says(monkeypatch, 0.5, 0.9)
    assert tiny_reader.ask(memory, people).route == "whole"


def test_a_reason_stands_at_one_place(tiny_reader, memory, monkeypatch):
    says(monkeypatch, 0.5, 0.9)
    assert tiny_reader.ask(memory, "Why did the author choose a lighthouse as a symbol?").route == "lookup"


def test_only_one_memory_can_be_told_as_a_whole(tiny_reader, memory):
    with pytest.raises(UsageError, match="one by one"):
        tiny_reader.ask([memory, memory], WHOLE, route="whole")
