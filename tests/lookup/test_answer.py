"""Answers from the text: quotes are exact, nothing is invented, and what cannot be answered is said plainly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ttt_docs import Document, Memory, UsageError
from ttt_docs.generation.results import Evidence
from ttt_docs.lookup.answer import _filled, extract_around, table_head
from ttt_docs.memory import memories_equal
from ttt_docs.text.spans import Span

TEXT = (
    "The station was opened in May 1911. Its keeper was Edward Marlow, who came from Leith by boat.\n\n"
    "The access code for north-gate is: 4471902. The access code for south-gate is: 9021177.\n\n"
    + "\n\n".join(f"On day {i} the keeper counted {i * 37 % 101} gulls and {i * 53 % 97} ships." for i in range(60))
)


@pytest.fixture(scope="module")
def memory(tiny_reader) -> Memory:
    spans = (Span("page", "1", 0, 120), Span("page", "2", 120, len(TEXT)))
    return tiny_reader.ingest(Document("report", TEXT, spans), learn=False)


def check_quotes(answer, *memories):
    for found in answer.evidence:
        assert found.quote == memories[found.memory].text[found.start : found.end] != ""


def test_a_certain_answer(tiny_reader, memory):
    answer = tiny_reader.ask(memory, "What is the access code for south-gate?", route="lookup")
    assert (answer.text, answer.route, answer.verified) == ("9021177", "lookup", True)
    assert "9021177" in answer.evidence[0].quote and answer.evidence[0].page == "2"
    assert answer.evidence[0].document == "report" and answer.seconds > 0
    check_quotes(answer, memory)


def test_several_keys_in_one_question(tiny_reader, memory):
    answer = tiny_reader.ask(memory, "What are all the access codes for north-gate and south-gate?", route="lookup")
    assert answer.text == "4471902, 9021177" and answer.verified
    check_quotes(answer, memory)


@pytest.mark.parametrize(
    "question",
    ["What is the access code for west-gate?", "Where was Thomas Brandauer born?", 'Who said "never again"?'],
)
def test_what_is_not_there_is_not_answered(tiny_reader, memory, question):
    answer = tiny_reader.ask(memory, question, route="lookup")
    assert answer.text.startswith("The document does not contain") and not answer.verified and not answer.evidence


@pytest.mark.parametrize(
    "question",
    [
        "Who was it that kept the station, and by what boat did he come?",
        "What did the keeper count on the day after the storm?",
        "How many gulls did the keeper see?",
        "Why?",
        "?!",
        "ünïcode 白鯨 \x00 question",
    ],
)
def test_what_is_read_is_copied(tiny_reader, memory, question):
    answer = tiny_reader.ask(memory, question, route="lookup", top_k=3, max_context=200)
    check_quotes(answer, memory)
    assert len(answer.evidence) <= 3 and answer.text
    if answer.evidence:
        assert answer.verified and answer.text in " ".join(memory.text.split())
    else:
        assert answer.text.startswith("The document does not")


def test_paragraphs_show_nothing_twice():
    spans = [(1000, 2000), (1800, 2800), (2050, 3000), (0, 1050), (5000, 6000)]
    paragraphs = [Evidence("", None, start, end, 1.0) for start, end in spans]
    kept = _filled([], paragraphs, len(paragraphs))
    assert [found.start for found in kept] == [1000, 2050, 0, 5000]  # of the second, a fifth was shown before


def test_a_row_comes_with_the_head_of_its_table():
    head, rows = "| Site | Passes |\n|---|---|\n", ["| Kemme | 840 |\n", "| Gradau | 12 |\n"]
    text = "Counted in 2020:\n\n" + head + "".join(rows) + "\nNo more."
    assert table_head(text, text.index("| Gradau")) == table_head(text, text.index("12")) == head
    assert [table_head(text, text.index(some)) for some in ("| Site", "Counted", "No more")] == ["", "", ""]
    assert table_head(head + rows[0], len(head)) == head


def test_an_extract_has_the_answer_in_its_middle():
    words = [f"w{i}," for i in range(60)]
    found = extract_around(" ".join(words), "W30 w31").split()
    assert len(found) == 20 and found[9:11] == ["w30,", "w31,"]
    assert extract_around(" ".join(words), "w1").split() == words[:20]
    assert extract_around(" ".join(words), "w59").split() == words[40:]
    assert extract_around("Solo cinco palabras hay aquí", "nada") == "Solo cinco palabras hay aquí"


def test_mentions(tiny_reader, memory):
    yes = tiny_reader.ask(memory, "Does the report mention Leith?", route="lookup")
    assert yes.text == "Yes." and "Leith" in yes.evidence[0].quote
    no = tiny_reader.ask(memory, "Does the report mention elephants?", route="lookup")
    assert no.text.startswith("The document does not contain") and not no.evidence


def test_several_memories(tiny_reader, memory):
    other = tiny_reader.ingest(text="The access code for west-gate is: 555. Nobody keeps it.", name="b", learn=False)
    for order in ([memory, other], [other, memory]):
        answer = tiny_reader.ask(iter(order), "What is the access code for west-gate?")
        first = answer.evidence[0]
        assert answer.text == "555" and order[first.memory] is other and first.document == "b"
        check_quotes(answer, *order)
    assert tiny_reader.ask([memory, other], "What is the code for east-gate?").text == (
        "None of the documents contains “east-gate”."
    )
    with pytest.raises(UsageError, match="one by one"):
        tiny_reader.ask([memory, other], "Who?", route="memory")
    with pytest.raises(UsageError, match="no memory"):
        tiny_reader.ask([], "Who?")


def test_documents_of_one_memory(tiny_reader, memory):
    both = tiny_reader.ingest(text="The access code for west-gate is: 555.", name="b", memory=memory, learn=False)
    answer = tiny_reader.ask(both, "What is the access code for west-gate?", route="lookup")
    assert answer.text == "555" and (answer.evidence[0].document, answer.evidence[0].page) == ("b", None)
    assert [d.name for d in both.documents] == ["report", "b"] and memory.text == TEXT
    check_quotes(answer, both)


def test_text_without_reading(tiny_reader, memory, tmp_path):
    assert memory.unread and memory.text == TEXT and not len(memory.tokens) and not memory.fast
    loaded = Memory.load(memory.save(tmp_path / "m.ttt"))
    assert loaded.unread and memories_equal(loaded, memory) and loaded.documents == memory.documents
    question = "What is the access code for south-gate?"
    assert tiny_reader.ask(loaded, question).text == "9021177"
    with pytest.raises(UsageError, match="nothing of it was read"):
        tiny_reader.ask(memory, question, route="memory")
    read = tiny_reader.ingest(text="Short.", progress=False)
    assert not read.unread
    with pytest.raises(UsageError, match="ingest its documents again"):
        tiny_reader.ingest(text="More.", memory=memory)
    with pytest.raises(UsageError, match="learn=True"):
        tiny_reader.ingest(text="More.", memory=read, learn=False)


def test_memories_without_text(tiny_reader, memory):
    bare = replace(tiny_reader.ingest(text=TEXT[:200], progress=False), text=None)
    with pytest.raises(UsageError, match="without the text"):
        tiny_reader.ask(bare, "Who was the keeper?", route="lookup")
    answer = tiny_reader.ask(bare, "Who was the keeper?", max_new_tokens=4)
    assert answer.route == "memory" and not answer.evidence and "without its text" in answer.reason
    with pytest.raises(UsageError, match="holds no text"):
        tiny_reader.ask(replace(memory, text="", documents=()), "Who?", route="lookup")


def test_questions_that_cannot_be_asked(tiny_reader, memory):
    for question, options, message in (
        (" \n", {}, "empty"),
        ("why " * 4000, {}, "ask more briefly"),
        ("Who?", {"top_k": 0}, "top_k"),
        ("Who?", {"max_context": -1}, "max_context"),
        ("Who?", {"route": "guess"}, "route"),
    ):
        with pytest.raises(UsageError, match=message):
            tiny_reader.ask(memory, question, **{"route": "lookup"} | options)
