"""Summaries that a model writes: what is asked, in which order, and what becomes of what it should not have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import pytest
import torch
from tiny_model import tiny_decoder

from ttt_docs.errors import UsageError
from ttt_docs.generation import merging, writing
from ttt_docs.generation.pieces import PIECE, is_english_prose, parts_of, pieces_of
from ttt_docs.generation.summary import SummaryStream, stream_summary
from ttt_docs.generation.writing import ABSTRACT, MERGE, SENTENCE, Asked, Writer, writer_for, writing_prompt
from ttt_docs.memory.memory import Memory, memories_equal
from ttt_docs.text.index import index_of
from ttt_docs.text.sentences import sentences
from ttt_docs.weights.skill import Skill, matrices

TOWNS = ("Tarvik", "Bodin", "Hamnes", "Sandvik")
#: A sentence of each chapter that nobody else says, and many that say little.
TOLD = [
    f"In the year 18{50 + i} the mayor of {town} built a stone bridge over the river." for i, town in enumerate(TOWNS)
]
FILLED = [
    " ".join(
        f"The people of {town} went to the market on the day number {n} of that year and bought bread and fish there."
        for n in range(3, 23)
    )
    for town in TOWNS
]
TITLES = [f"CHAPTER {i}. {town}" for i, town in enumerate(TOWNS, 1)]
BOOK = "\n\n".join("\n\n".join(lines) for lines in zip(TITLES, TOLD, FILLED, strict=True))


@dataclass
class Scripted:
    """A writer whose words are known. `greedy` and `drawn` make them of what is asked."""

    greedy: object = lambda one: first_sentence(one.text)
    drawn: object = lambda one: first_sentence(one.text)
    room: int = 700
    asked: list[Asked] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def fits(self, text: str) -> bool:
        return len(text.split()) <= self.room

    def write(self, asked: Sequence[Asked], temperature: float, seed: int, may_be_silent: bool = False):
        self.asked += asked
        self.batches += [len(asked)] if asked else []
        yield [(self.drawn if temperature else self.greedy)(one) for one in asked]


def first_sentence(text: str) -> str:
    """The first sentence of the text that tells something; of several lines, those of all."""
    lines = [one for one in text.split("\n") if "mayor" in one]
    return " ".join(line[a:b] for line in lines for a, b in sentences(line)[:1])


@pytest.fixture(scope="module")
def memory(tiny_reader, tmp_path_factory) -> Memory:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(BOOK, "utf-8")
    return tiny_reader.ingest(path, progress=False)


def told(reader, memory, writer, length="chapters", **more) -> SummaryStream:
    return stream_summary(reader.model, reader.tokenizer, memory, length, writer, **more)


def test_chapters_are_told_one_by_one_with_evidence(tiny_reader, memory):
    writer = Scripted()
    stream = told(tiny_reader, memory, writer)
    first = next(iter(stream))
    assert first.title == TITLES[0] and first.text == TOLD[0]
    summary = stream.summary
    assert [section.text for section in summary.sections] == TOLD and summary.note == ""
    assert summary.text == "\n\n".join(TOLD)
    for sentence, line in zip(summary.sentences, TOLD, strict=True):
        (place,) = sentence.evidence
        assert sentence.supported and place.quote == line == BOOK[place.start : place.end]
        assert place.chapter in [section.title for section in summary.sections]
    assert {one.request for one in writer.asked} == {ABSTRACT} and max(one.words for one in writer.asked) <= 110


def test_what_was_said_is_merged_up_to_the_length(tiny_reader, memory, monkeypatch):
    monkeypatch.setattr("ttt_docs.generation.pieces.PIECE", 60)
    monkeypatch.setattr(merging, "TOGETHER", 3)
    longer = Scripted(greedy=lambda one: " ".join(one.text.split("\n")[0].split()[:40]).rstrip(".") + ".")
    told(tiny_reader, memory, longer, "paragraph").summary  # noqa: B018 (it is made now)
    requests = [one.request for one in longer.asked]
    pieces, merges = ({one.text for one in longer.asked if one.request == request} for request in (ABSTRACT, MERGE))
    assert set(requests[: requests.index(MERGE)]) == {ABSTRACT}  # merges come after all that they are made of
    assert ABSTRACT not in requests[requests.index(MERGE) :]
    assert len(pieces) > 16 and len(merges) >= len(pieces) // 3
    assert all("\n" in one.text for one in longer.asked if one.request == MERGE)


def test_a_sentence_is_made_of_the_paragraph(tiny_reader, memory):
    writer = Scripted(lambda one: f"{first_sentence(one.text)} There is a stone bridge over the river.")
    summary = told(tiny_reader, memory, writer, "sentence").summary
    assert writer.asked[-1].request == SENTENCE
    assert len(summary.sentences) == 1 and summary.sentences[0].supported


def test_what_the_document_does_not_say_is_drawn_again(tiny_reader, memory):
    wrong = Scripted(greedy=lambda one: "The king of Denmark burnt the bridge in 1999.")
    summary = told(tiny_reader, memory, wrong).summary
    assert [section.text for section in summary.sections] == TOLD
    assert wrong.batches == [4, 4 * merging.DRAWN]


def test_what_is_never_supported_is_replaced_by_the_document_itself(tiny_reader, memory):
    def lie(one: Asked) -> str:
        return f"{first_sentence(one.text)} The king of Denmark burnt it in 1999."

    summary = told(tiny_reader, memory, Scripted(lie, lie)).summary
    assert len(summary.sections) == 4 and "Denmark" not in summary.text
    assert all(one.supported and one.evidence for one in summary.sentences)
    assert all(line in section.text for section, line in zip(summary.sections, TOLD, strict=True))
    silent = told(tiny_reader, memory, Scripted(lambda one: "", lambda one: "")).summary
    assert all(one.supported and one.text in " ".join(BOOK.split()) for one in silent.sentences)
    assert len(silent.sections) == 4


def test_a_focus_asks_the_pieces_that_speak_of_it(tiny_reader, memory):
    writer, focus = Scripted(), "What about Hamnes?"
    summary = told(tiny_reader, memory, writer, "paragraph", focus=focus).summary
    assert summary.text == TOLD[2] and {one.request for one in writer.asked} == {focus}
    nothing = Scripted(lambda one: "" if one.text.startswith("CHAPTER 3") else first_sentence(one.text))
    assert "Hamnes" not in told(tiny_reader, memory, nothing, "paragraph", focus="bridge").summary.text
    unknown = Scripted()
    summary = told(tiny_reader, memory, unknown, "chapters", focus="Zeppelin").summary
    assert len(unknown.asked) == 4 and "No word of the focus" in summary.note
    mute = told(tiny_reader, memory, Scripted(lambda one: ""), "paragraph", focus="Hamnes").summary
    assert mute.sentences and all("Hamnes" in one.text and one.supported for one in mute.sentences)


@pytest.mark.parametrize(
    ("focus", "said"), [("", "empty"), (" \n", "empty"), ("why " * 400, "ask more briefly"), (7, "str")]
)
def test_bad_focus(tiny_reader, memory, focus, said):
    with pytest.raises(UsageError, match=said):
        tiny_reader.summarize(memory, focus=focus)
    with pytest.raises(UsageError, match="no text"):
        tiny_reader.summarize(memory.with_text(None), focus="What?")


def test_short_texts_get_short_summaries(tiny_reader):
    (one,) = told(tiny_reader, tiny_reader.ingest(text=TOLD[0], progress=False), Scripted(), "page").summary.sentences
    assert one.text == TOLD[0] and one.evidence[0].quote == TOLD[0] and one.supported
    writer = Scripted()
    told(tiny_reader, tiny_reader.ingest(text=" ".join(TOLD), progress=False), writer, "page").summary  # noqa: B018
    assert [one.words for one in writer.asked] == [len(" ".join(TOLD).split()) // 3]


@pytest.mark.parametrize(
    "text",
    [
        "Der alte Kapitän sah am Morgen den weißen Wal, und der Wal sah den Kapitän an. Niemand sprach ein Wort. " * 9,
        "| a | b |\n|---|---|\n| 1 | 2 |\n" * 30,
        "Anna Berg\nJohn Stone\nIvy Hill\nPeter Lund\nMary Wood\n" * 20,
    ],
)
def test_what_is_no_english_prose_is_quoted(tiny_reader, text):
    assert not is_english_prose(text) and is_english_prose(BOOK)
    writer = Scripted()
    summary = told(tiny_reader, tiny_reader.ingest(text=text, progress=False), writer, "paragraph").summary
    assert not writer.asked and "no running English" in summary.note
    assert summary.sentences and all(one.supported and one.evidence for one in summary.sentences)


def test_extracts_of_chapters_and_of_a_focus(tiny_reader, memory):
    by_chapter = tiny_reader.summarize(memory, "chapters")
    assert [section.title for section in by_chapter.sections] == TITLES
    assert "own sentences" in by_chapter.note
    focused = tiny_reader.summarize(memory, "paragraph", "Who built the stone bridge in Sandvik?")
    assert TOLD[3] in focused.text


def test_pieces_cover_a_part_and_are_cut_between_sentences(memory):
    index = index_of(BOOK)
    parts = parts_of(memory)
    assert [part.title for part in parts] == TITLES
    for part in parts:
        spans = pieces_of(index, part.start, part.end, lambda text: len(text.split()) < 150)
        assert "".join(BOOK[a:b] for a, b in spans).split() and spans == sorted(spans)
        assert "".join("".join(BOOK[a:b].split()) for a, b in spans) == "".join(BOOK[part.start : part.end].split())
        assert all(len(BOOK[a:b].split()) < 150 and BOOK[b - 1] == "." for a, b in spans) and len(spans) >= 3
    whole = pieces_of(index, 0, len(BOOK), lambda text: True)
    assert max(len(BOOK[a:b].split()) for a, b in whole) < 1.3 * PIECE
    tiny = pieces_of(index, 0, len(BOOK), lambda text: len(text) < 100)
    assert len(tiny) > 60


def skilled(model) -> Skill:
    chance = torch.Generator().manual_seed(1)
    factors = {
        name: (torch.randn(2, w.shape[1], generator=chance), torch.randn(w.shape[0], 2, generator=chance))
        for name, w in matrices(model)
    }
    return Skill("tiny", "ab" * 32, factors)


@pytest.fixture
def shipped(tiny_reader, monkeypatch):
    """A skill of the package for the tiny model."""
    monkeypatch.setattr("ttt_docs.weights.skill.shipped_skill", lambda name, task: skilled(tiny_reader.model))
    monkeypatch.setattr("ttt_docs.weights.skill._TAUGHT", WeakKeyDictionary())


def test_a_model_with_a_skill_writes(shipped, tiny_reader, tmp_path, monkeypatch):
    asked: list[Asked] = []
    genuine = Writer.write
    monkeypatch.setattr(Writer, "write", lambda self, some, *rest: asked.extend(some) or genuine(self, some, *rest))
    file = tmp_path / "short.txt"
    short = [filled[: filled.index("number 7")].rpartition(". ")[0] + "." for filled in FILLED[:2]]
    file.write_text("\n\n".join("\n\n".join(lines) for lines in zip(TITLES, TOLD, short, strict=False)), "utf-8")
    memory = tiny_reader.ingest(file, progress=False)
    before = replace(memory, tokens=memory.tokens.clone(), nll=memory.nll.clone())
    summary = tiny_reader.summarize(memory, "chapters", seed=3)
    assert asked and summary.note == "" and memories_equal(memory, before)
    assert [section.title for section in summary.sections] == TITLES[:2]
    assert all(one.supported and one.evidence for one in summary.sentences)  # a random model's words are all replaced
    sections = list(tiny_reader.summarize(memory, "chapters", seed=3, stream=True))
    assert tuple(sections) == summary.sections


def test_the_skill_is_in_the_words_that_are_written(shipped, tiny_reader, memory):
    reader = tiny_reader
    with_it = writer_for(reader.model, reader.tokenizer, "tiny", 1024)
    without = Writer(reader.tokenizer, writing.base_state(reader.model), 512, writing.SYSTEM)
    assert isinstance(with_it, Writer) and with_it.state.model is not reader.model
    asked = [Asked(line, ABSTRACT, 10) for line in TOLD[:2]]
    assert list(with_it.write(asked, 0.0, 0)) == list(with_it.write(asked, 0.0, 7))  # nothing is drawn
    assert list(with_it.write(asked, 0.0, 0)) != list(without.write(asked, 0.0, 0))
    drawn = [list(with_it.write(asked, 1.0, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_who_writes(tiny_reader, monkeypatch):
    reader, about = tiny_reader, ("tiny", 1024)
    assert "too small" in writer_for(reader.model, reader.tokenizer, *about)
    monkeypatch.setattr(writing, "PLAIN", 0)
    plain = writer_for(tiny_decoder(), reader.tokenizer, *about)
    assert isinstance(plain, Writer) and plain.system == "" and plain.room == 512
    monkeypatch.setattr(type(reader.tokenizer), "has_chat_template", False)
    assert "chat template" in writer_for(reader.model, reader.tokenizer, *about)


def test_the_prompt_is_the_one_that_skills_were_taught_with():
    assert writing_prompt(" A text.\n", ABSTRACT, 47) == "A text.\n\nTell what this passage says. In about 50 words."
    assert writing_prompt("A text.", SENTENCE, 3).endswith("In about 10 words.")


def test_scores_are_nats_per_token_after_the_memory(tiny_reader, memory):
    texts = ["The mayor built a bridge.", "Rain.", "x" * 40]
    scores = tiny_reader.score(memory, texts)
    alone = [tiny_reader.score(memory, [text])[0] for text in texts]
    assert scores == pytest.approx(alone, abs=1e-4)
    after = tiny_reader.ingest(text="\n\n" + texts[0], memory=memory, progress=False)
    assert tiny_reader.score(None, texts) != pytest.approx(scores, abs=1e-3)
    assert len(after.tokens) > len(memory.tokens)
    for bad in ("one text", [""], [1]):
        with pytest.raises(UsageError):
            tiny_reader.score(memory, bad)
