from __future__ import annotations

from dataclasses import replace

import pytest

from ttt_docs.errors import UsageError
from ttt_docs.generation.extracts import distinct_runs, finished
from ttt_docs.generation.sections import candidates, is_prose, outline, quotes, sections, surprise, written
from ttt_docs.memory.memory import memories_equal
from ttt_docs.text.names import proper_names
from ttt_docs.text.sentences import sentences

PARTS = [
    "The old harbour of Tarvik lies far to the north, and in winter the ice closes it for many long weeks. "
    "Everybody in the town knew that Mr. Olsen kept the keys of the lighthouse in a wooden box.",
    "In the spring Captain Brandt came back to Tarvik with a ship that nobody had ever seen before. "
    "He said little. “Where is the box?” asked Brandt, and nobody in the room answered him at first.",
    "The wife of the merchant told Ingrid Olsen that the box had been empty for years and years. "
    "For a long time Ingrid stood at the window and looked at the ship of Captain Brandt in the bay.",
    "At last the people of Tarvik went up to the lighthouse, where Olsen and Brandt were sitting together. "
    "The light was burning again, and the keys lay on the table between Brandt and old Olsen.",
]
BOOK = "TARVIK\n\nCONTENTS\n\nI. 1\n\nII. 2\n\n\n" + "\n\n".join(f"CHAPTER {i}\n\n{p}" for i, p in enumerate(PARTS * 3))


def full(text: str, limit: int = 9, least: int = 1) -> list[str]:
    return [name.full for name in proper_names(text, limit, least)]


def test_names_are_grouped_and_titles_left_out():
    assert full(BOOK, least=2) == ["Brandt", "Olsen", "Tarvik", "Ingrid"]
    assert full("We saw Moby Dick again. That Moby Dick lives, and where Moby Dick goes nobody knows.") == ["Moby Dick"]


def test_what_begins_sentences_or_is_also_written_small_is_no_name():
    text = "Rain fell. Rain is cold, and the rain of May is warm. On Monday I saw Anna, and Anna’s dog. Chapter 1."
    assert full(text) == ["Anna"]


@pytest.mark.parametrize(
    "text", ["", "x", "no names in here", "SHOUTING ALL DAY", "12 34", "第一章。白い鯨が来た。", "\n\n\n"]
)
def test_texts_without_names(text):
    assert full(text) == []


def test_common_nouns_in_capitals_are_no_names():
    text = "Da ging der Mann in das Haus, und die Frau sah den Hund. Dort traf er Peter. " * 5
    assert full(text, least=2) == ["Peter"]


def test_names_in_other_scripts():
    assert full("Когда пришла Анна, все молчали, и только Анна говорила.") == ["Анна"]


def test_within_means_whole_words():
    (name,) = proper_names("There was Ann, and then Ann again, and so Ann went.", 1)
    assert name.within("so Ann’s turn") and not name.within("Annual reports")


def test_sentences_are_exact_and_know_titles_and_initials():
    text = " Mr. Olsen met J. R. Brandt. “Why?” he asked. It rained…  all day. End"
    assert [text[a:b] for a, b in sentences(text)] == [
        "Mr. Olsen met J. R. Brandt.",
        "“Why?” he asked.",
        "It rained…  all day.",
        "End",
    ]


def test_sentences_know_abbreviations():
    text = "Smith et al. Found it, e.g. Here. See No. 5 and Fig. 2. Is it so? No. Then we left."
    assert [text[a:b] for a, b in sentences(text)] == [
        "Smith et al. Found it, e.g. Here.",
        "See No. 5 and Fig. 2.",
        "Is it so?",
        "No.",
        "Then we left.",
    ]


def test_passages_are_prose_in_order_and_cover_the_document():
    groups = sections(BOOK, proper_names(BOOK, 5), 4)
    assert len(groups) == 4
    best = [group[0] for group in groups]
    assert [p.start for p in best] == sorted(p.start for p in best)
    assert best[0].start < len(BOOK) / 3 and best[-1].end > 2 * len(BOOK) / 3
    for passage in candidates(BOOK, ()):
        assert BOOK[passage.start : passage.end].strip() == BOOK[passage.start : passage.end]
        assert is_prose(BOOK[passage.start : passage.end])
    assert not any("CONTENTS" in BOOK[p.start : p.end] or "CHAPTER" in BOOK[p.start : p.end] for p in best)


@pytest.mark.parametrize(
    "text",
    [
        "Copyright 1910 by the author of this and many other books that are sold everywhere, all rights reserved.",
        "Whale, 12, 14, 19 -- white, 23, 45, 99 -- blue, 44, 123, 133 -- and sharks, 14, 15, 16, 17, 18, 19, 22.",
        "for i in range(10):\n    total += i\n    print(total)\n",
    ],
)
def test_what_is_no_prose(text):
    assert not is_prose(text)


def test_sentences_that_lean_on_others_are_not_quoted():
    passage = candidates(BOOK, ())[1]
    lines = [q.written for q in quotes(BOOK, passage, ())]
    assert lines == ["In the spring Captain Brandt came back to Tarvik with a ship that nobody had ever seen before."]
    assert written("But, and now the sea\n_rose_ --slowly.") == "The sea rose —slowly."


def test_surprise_counts_what_was_read(tiny_reader):
    memory = tiny_reader.ingest(text=BOOK, progress=False)
    losses = surprise(memory, tiny_reader.tokenizer)
    assert losses is not None and losses.shape == (len(BOOK) + 1, 2)
    assert losses[-1, 1] == len(memory.tokens)
    assert losses[-1, 0] == pytest.approx(float(memory.nll.sum()), rel=1e-4)
    longer = memory.with_text(BOOK + "\n\nMore that was not read.")
    losses = surprise(longer, tiny_reader.tokenizer)
    assert losses[-1, 1] == losses[len(BOOK), 1] == len(memory.tokens)
    assert surprise(memory.with_text(None), tiny_reader.tokenizer) is None


def test_surprise_counts_every_document(tiny_reader):
    memory = tiny_reader.ingest(text=PARTS[0], progress=False)
    memory = tiny_reader.ingest(text=PARTS[1], memory=memory, progress=False)
    assert surprise(memory, tiny_reader.tokenizer)[-1, 1] == len(memory.tokens)


def test_outlines_name_what_is_frequent_and_quote_every_part(tiny_reader):
    memory = tiny_reader.ingest(text=BOOK, progress=False)
    text = outline(memory, tiny_reader.tokenizer, 4)
    assert "Brandt" in text.split(".")[0]
    assert sum(" ".join(written(BOOK[a:b]).split()) in text for a, b in sentences(BOOK)) >= 3
    assert outline(memory.with_text(None), tiny_reader.tokenizer, 4) == ""
    assert tiny_reader.ask(memory, "Who?", route="memory", max_new_tokens=4).text is not None


@pytest.mark.parametrize("length", ["sentence", "paragraph", "page"])
def test_summaries_quote_the_document_in_order(tiny_reader, length):
    memory = tiny_reader.ingest(text=BOOK, progress=False)
    before = replace(memory, tokens=memory.tokens.clone(), nll=memory.nll.clone())
    summary = tiny_reader.summarize(memory, length)
    assert memories_equal(memory, before)
    assert str(summary) == summary.text and summary.route == "memory" and summary.tokens > 0
    assert "own sentences" in summary.note and all(one.supported for one in summary.sentences)
    places = [place for one in summary.sentences for place in one.evidence]
    assert places and all(place.quote == BOOK[place.start : place.end] for place in places)
    quoted = [one for one in summary.sentences if not one.text.startswith("The document is mostly")]
    assert [one.evidence[0].start for one in quoted] == sorted(one.evidence[0].start for one in quoted)
    assert all(written(one.evidence[0].quote) == one.text for one in quoted)
    assert distinct_runs(summary.text) >= 0.9 and finished(summary.text) == summary.text
    assert summary == tiny_reader.summarize(memory, length)
    assert (len(summary.sentences) == 1) == (length == "sentence")


@pytest.mark.parametrize(
    "text",
    [
        "One.",
        PARTS[0],
        "a = 1\nb = 2\nprint(a + b)\n" * 40,
        "| a | b |\n|---|---|\n| 1 | 2 |\n" * 30,
        "第一章。白い鯨が来た。船長は海を見ていた。" * 30,
        "Как-то раз старый капитан увидел белого кита, и кит посмотрел на капитана.\n\n" * 12,
    ],
)
def test_any_document_gets_some_summary(tiny_reader, text):
    for length in ("sentence", "paragraph"):
        assert tiny_reader.summarize(tiny_reader.ingest(text=text, progress=False), length).text


def test_memories_without_text_are_summarized_by_the_model(tiny_reader):
    memory = tiny_reader.ingest(text=BOOK, progress=False).with_text(None)
    summary = tiny_reader.summarize(memory, seed=4)
    assert not any(one.supported or one.evidence for one in summary.sentences) and "no text" in summary.note
    assert summary == tiny_reader.summarize(memory, seed=4)


def test_unknown_lengths_and_empty_memories(tiny_reader):
    memory = tiny_reader.ingest(text=BOOK, progress=False)
    with pytest.raises(UsageError, match="paragraph"):
        tiny_reader.summarize(memory, "novel")
    with pytest.raises(UsageError, match="read a document"):
        tiny_reader.summarize(replace(memory, tokens=memory.tokens[:0], nll=memory.nll[:0], position=0, text=""))


def test_finished_cuts_what_is_not_a_sentence():
    assert finished("One. Two and then") == "One."
    assert finished("nothing whole") == ""
    assert distinct_runs("a b c d " * 10) < 0.2
