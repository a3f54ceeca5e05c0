"""The reader's answers compete, are shown where they stand, and may be that the document does not say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ttt_docs import Memory, UsageError
from ttt_docs.lookup import confidence
from ttt_docs.lookup.answer import answer_from_text
from ttt_docs.lookup.confidence import FEATURES, features, probabilities
from ttt_docs.lookup.reader import LONGEST, PassageAnswer, PassageReader, question_prompt
from ttt_docs.lookup.spans import PassageSpans

TEXT = (
    "The lighthouse was kept by Edward Marlow. He came from Leith by boat and stayed for nine years.\n\n"
    + "\n\n".join(f"On day {i} somebody counted {i * 37 % 101} gulls and {i * 53 % 97} ships." for i in range(60))
    + "\n\nThe lighthouse was closed in 1920. Its last keeper was Ann Reid, who had come from Oban.\n\n"
    + "\n\n".join(f"In week {i} somebody painted {i} walls of the house with white colour." for i in range(60))
)


@dataclass(frozen=True)
class Scripted(PassageReader):
    """Says of each passage what a pattern finds in it, and how sure it is of that."""

    script: tuple[tuple[str, float], ...] = ()
    asked: list[Any] = field(default_factory=list)

    def read(self, passages: Sequence[str], question: str, history: Any = (), *_: Any) -> list[PassageAnswer]:
        self.asked.append((question, history))
        found = []
        for i, passage in enumerate(passages):
            said = [(m.group(1), here) for pattern, here in self.script if (m := re.search(pattern, passage))]
            found.append(PassageAnswer(i, *(said[0] if said else ("nobody", 0.01)), 0.9))
        return found


@pytest.fixture
def scripted(tiny_reader):
    def make(*script: tuple[str, float]) -> Scripted:
        return Scripted(tiny_reader.model, tiny_reader.tokenizer, True, script)

    return make


@pytest.fixture(scope="module")
def memory(tiny_reader) -> Memory:
    return tiny_reader.ingest(text=TEXT, name="station", learn=False)


def test_the_likeliest_answer_wins_and_is_shown(scripted, memory):
    reader = scripted((r"kept by (\w+ \w+)", 0.6), (r"keeper was (\w+ \w+)", 0.99))
    answer = answer_from_text(reader, [memory], "Who was the last to keep the lighthouse?")
    assert answer.text == "Ann Reid" and answer.answered and answer.verified and answer.route == "lookup"
    assert answer.evidence[0].quote == "Its last keeper was Ann Reid, who had come from Oban."
    other = answer_from_text(scripted((r"kept by (\w+ \w+)", 0.99), (r"keeper was (\w+ \w+)", 0.6)), [memory], "Who?")
    assert not other.answered or other.text == "Edward Marlow"
    assert 0 < answer.confidence < 1 and len(answer.evidence) <= 5
    assert all(found.quote == memory.text[found.start : found.end] for found in answer.evidence)


def test_a_document_that_does_not_say(scripted, memory):
    answer = answer_from_text(scripted(), [memory], "What did the lighthouse cost?")
    assert not answer.answered and answer.text == "The document does not say." and not answer.verified
    assert answer.evidence and "lighthouse" in answer.evidence[0].quote and answer.confidence > 0.5


def test_an_answer_with_a_name_that_no_quote_has_is_not_verified(scripted, memory):
    answer = answer_from_text(scripted((r"(The lighthouse) was kept", 0.99)), [memory], "Who kept the lighthouse?")
    assert answer.verified
    reader = scripted()
    object.__setattr__(reader, "read", lambda texts, *_: [PassageAnswer(0, "Captain Ahab", 0.99, 0.9)])
    answer = answer_from_text(reader, [memory], "Who kept the lighthouse?", max_context=60)
    assert answer.answered and answer.text == "Captain Ahab" and not answer.verified


def test_of_several_documents_those_with_the_names_asked_about_are_read(scripted, memory, tiny_reader):
    other = tiny_reader.ingest(text="The lighthouse of Cape Wrath was kept by Tom Hay. " * 3, name="b", learn=False)
    reader = scripted((r"kept by (\w+ \w+)", 0.9))
    answer = answer_from_text(reader, [other, memory], "Was it the lighthouse that Marlow kept?")
    assert answer.text == "Edward Marlow" and {found.memory for found in answer.evidence} == {1}


def test_follow_ups_are_looked_for_with_what_was_said(scripted, memory):
    history = [("Who was the last keeper of the lighthouse?", "Ann Reid")]
    reader = scripted((r"come from (\w+)", 0.9))
    answer = answer_from_text(reader, [memory], "And where did she come from?", history=history)
    assert answer.text == "Oban" and reader.asked == [("And where did she come from?", history)]
    assert question_prompt("A.", "Where?", history) == (
        "A.\n\nQuestion: Who was the last keeper of the lighthouse? Ann Reid Where?"
    )


def test_a_taught_reader_says_something_of_every_passage(tiny_reader):
    reader = PassageReader(tiny_reader.model, tiny_reader.tokenizer, skilled=True)
    found = reader.read(["The keeper was Ann Reid.", "Nine years."], "Who?")
    assert [answer.passage for answer in found] == [0, 1]
    assert all(0 < answer.here <= 1 and 0 < answer.sure <= 1 for answer in found)
    alone = reader.read(["Nine years."], "Who?")[0]
    assert alone.text == found[1].text and math.isclose(alone.sure, found[1].sure, rel_tol=1e-4)
    with pytest.raises(UsageError, match="window"):
        reader.read(["x" * 70_000], "Who?")


def test_within_a_passage_nothing_else_is_said(tiny_reader, monkeypatch):
    monkeypatch.setattr("ttt_docs.lookup.reader.SPAN", 0.0)
    reader = PassageReader(tiny_reader.model, tiny_reader.tokenizer, skilled=True)
    passages = ["The keeper was Ann Reid, of Oban.", "“Nine years,” he said (twice)."]
    for answer, passage in zip(reader.read(passages, "Who?"), passages, strict=True):
        assert answer.text and answer.text in passage and answer.text[0].isalnum() and len(answer.text) <= LONGEST
    monkeypatch.setattr("ttt_docs.lookup.reader.SPAN", 1e9)
    assert not any(
        answer.text in passage for answer, passage in zip(reader.read(passages, "Who?"), passages, strict=True)
    )


def test_runs_of_words(tiny_tokenizer):
    spans = PassageSpans("“Ann Reid,” he said.", tiny_tokenizer)
    start, may_end = spans.after([])
    assert not may_end and {tiny_tokenizer.decode([t]) for t in start} == {"A", "R", "h", "s"}
    said = tiny_tokenizer.encode("Reid")
    assert [spans.after(said[:n])[1] for n in range(1, 5)] == [False, False, False, True]
    assert {tiny_tokenizer.decode([t]) for t in spans.after(said)[0]} == {","}


def test_signs_of_a_right_answer():
    answers = [
        PassageAnswer(0, "Ann Reid", 0.9, 0.8),
        PassageAnswer(1, "ann reid.", 0.8, 0.5),
        PassageAnswer(2, "Oban", 0.2, 0.5),
    ]
    found = features(answers, ["Ann Reid came.", "Nobody.", "From Oban."])
    named = [dict(zip(FEATURES, row, strict=True)) for row in found.tolist()]
    assert [row["verbatim"] for row in named] == [1, 0, 1] and [row["agrees"] for row in named] == [1, 1, 0]
    assert named[2]["rival"] == pytest.approx(math.log(9), abs=1e-4) and named[0]["rival"] < 0
    assert named[0]["here"] == named[2]["rival"] and [row["rank"] for row in named] == [0, 0.5, 1]
    sure = probabilities(answers, ["Ann Reid came.", "Nobody.", "From Oban."])
    assert sure[0] > sure[2] and all(0 < p < 1 for p in sure)
    assert np.isfinite(confidence._weights()[0]).all()
