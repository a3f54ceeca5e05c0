"""Answers that need no model: titles, lengths, chapters, clauses, pages, first sentences, mentions."""

from __future__ import annotations

import io

import pytest

from ttt_docs import Document, Memory
from ttt_docs.documents import load_document
from ttt_docs.lookup.exact import exact_answer, exact_question
from ttt_docs.lookup.parts import key
from ttt_docs.text.spans import Span

CONTRACT = """SERVICE AGREEMENT

between Northwind Ltd and Mara Quill

Contents

1. Definitions .......... 1
2. Services .......... 1
3. Payment .......... 2
4. Termination .......... 2
5. Liability .......... 3

1. Definitions

In this agreement these words have the following meaning:

1. "Client" means Northwind Ltd.
2. "Supplier" means Mara Quill.

2. Services

2.1 The Supplier keeps the pumps of the Client in good order. She visits the site at least once in
4.2 weeks on average, as agreed in
Section 3 of the annex.

2.2 The Supplier reports every leak within two days.

3. Payment

3.1 The Client pays 900 euros a month.

3.2 Late payment bears interest of 4 percent:
(a) from the tenth day after the due date;
(b) on the whole of the sum that is due, unless the parties agree otherwise in writing; and
(c) until the day of payment.

4. Termination

Either party may end this agreement with three months' notice. The notice must be in writing.

5. Liability. The Supplier is liable for wilful damage only. Mara Quill carries an insurance for it.

Schedule 1

Pumps: north basin, south basin.
"""
BOOK = """The Project Gutenberg EBook of The Keeper of Leith, by Edward Marlow

Title: The Keeper of Leith
       A Story of the Sea

Author: Edward Marlow

*** START OF THIS PROJECT GUTENBERG EBOOK THE KEEPER OF LEITH ***

THE KEEPER OF LEITH

BY

EDWARD MARLOW

CONTENTS

Chapter I. The Boat
Chapter II. A Letter
Chapter III

CHAPTER I. The Boat

Stephen came to the lighthouse by boat. He had a dog, and no friends. Nobody on the island
knew why he had left Leith.

“You are late,” said Mr. Brown. Stephen did not answer.

CHAPTER II. A Letter

The letter came in May. It was Brown who had written to Stephen. "The whale is here," it said, and
the whale was.

He read it twice.

CHAPTER III

The Storm

The wind rose at noon, and Whale Rock was under water. Who wrote the letter he never learned.

THE END

*** END OF THIS PROJECT GUTENBERG EBOOK THE KEEPER OF LEITH ***

Please donate to us. The licence is long.
"""
MARKDOWN = """---
title: "Pump Report 2024"
author: Ines Ferro
---
# Pump Report 2024

## Summary

Two pumps failed in March. The north pump was replaced.

## 2. Method

We measured pressure every hour. Sensors were checked twice.

### 2.1 Sensors

All sensors came from Leith.

## 3. Results

Pressure fell by 4 percent. The south pump is next.
"""
PAGES = (
    "The harbour opened in 1911. Its keeper was Edward Marlow.\n\nHe kept a log.\n"
    "\fThe log names gulls. It names ships too.\n\fThe last page is short. Edward Marlow signed it.\n"
)


@pytest.fixture(scope="module")
def memories(tiny_reader) -> dict[str, Memory]:
    sources = {"contract.txt": CONTRACT, "book.txt": BOOK, "report.md": MARKDOWN, "log.txt": PAGES}
    loaded = {name: load_document(io.BytesIO(text.encode()), name=name) for name, text in sources.items()}
    pdf = "The pump failed in May. It was old.\n\nNobody saw it.\n\nA new pump came in June. Mara paid for it."
    first = pdf.index("A new")
    spans = (Span("page", "iv", 0, first), Span("page", "1", first, len(pdf)))
    loaded["pump.pdf"] = Document("pump.pdf", pdf, spans, {"format": "pdf", "pages": "2", "author": "Mara Quill"})
    return {name: tiny_reader.ingest(document, learn=False) for name, document in loaded.items()}


@pytest.mark.parametrize(
    ("name", "question", "expected"),
    [
        ("contract.txt", "What is the title of this document?", "SERVICE AGREEMENT"),
        ("contract.txt", "What kind of document is this?", "SERVICE AGREEMENT"),
        ("contract.txt", "How many clauses does the contract have?", "5 clauses"),
        (
            "contract.txt",
            "List the sections.",
            "5 sections:\n1. Definitions\n2. Services\n3. Payment\n4. Termination\n5. Liability",
        ),
        ("contract.txt", "What is clause 4 called?", "Termination"),
        (
            "contract.txt",
            "What does section 4 say?",
            "4. Termination\n\nEither party may end this agreement with three months' notice. "
            "The notice must be in writing.",
        ),
        ("contract.txt", "Please read me clause 3.1.", "3.1 The Client pays 900 euros a month."),
        (
            "contract.txt",
            "clause 3.2(b)",
            "(b) on the whole of the sum that is due, unless the parties agree otherwise in writing; and",
        ),
        ("contract.txt", "What does § 3.2 (c) say?", "(c) until the day of payment."),
        ("contract.txt", "schedule 1", "Schedule 1\n\nPumps: north basin, south basin."),
        (
            "contract.txt",
            "Quote the first sentence of clause 4",
            "Either party may end this agreement with three months' notice.",
        ),
        ("contract.txt", "In which section is insurance mentioned?", "5. Liability (once)"),
        ("contract.txt", 'How many times is "Mara Quill" mentioned in the contract?', "3 times"),
        ("book.txt", "Who wrote this book?", "Edward Marlow"),
        ("book.txt", "What is the title?", "The Keeper of Leith A Story of the Sea"),
        ("book.txt", "How many chapters are there?", "3 chapters"),
        (
            "book.txt",
            "Show me the table of contents, please.",
            "3 chapters:\nCHAPTER I. The Boat\nCHAPTER II. A Letter\nCHAPTER III: The Storm",
        ),
        ("book.txt", "What is chapter three called?", "The Storm"),
        ("book.txt", "What is the title of the last chapter?", "The Storm"),
        ("book.txt", "How does the book begin?", "Stephen came to the lighthouse by boat."),
        ("book.txt", "What is the second sentence of chapter 1?", "He had a dog, and no friends."),
        ("book.txt", "What is the last sentence of the book?", "Who wrote the letter he never learned."),
        ("book.txt", "last sentence of chapter 2", "He read it twice."),
        ("book.txt", "How often is Stephen named?", "3 times"),
        ("book.txt", "How often is the whale mentioned?", "3 times"),
        ("book.txt", "How many times are Stephen and Brown mentioned?", "“Stephen”: 3 times; “Brown”: 2 times"),
        ("book.txt", "How often is Ahab mentioned?", "0 times"),
        ("book.txt", "Where is Brown first mentioned?", "CHAPTER I. The Boat: “You are late,” said Mr. Brown."),
        ("report.md", "Who is the author?", "Ines Ferro"),
        ("report.md", "What are the sections?", "4 sections:\nSummary\n2. Method\n2.1 Sensors\n3. Results"),
        ("report.md", "What does section 2.1 say?", "2.1 Sensors\n\nAll sensors came from Leith."),
        ("report.md", "Where is Leith mentioned?", "2.1 Sensors (once)"),
        ("log.txt", "How many pages does it have?", "3 pages"),
        ("log.txt", "What is on page 2?", "The log names gulls. It names ships too."),
        ("log.txt", "What is the last sentence of page 3?", "Edward Marlow signed it."),
        ("log.txt", "On which pages is Edward Marlow mentioned?", "Pages 1, 3 (2 times)"),
        ("log.txt", "Where is Edward Marlow last mentioned?", "Page 3: Edward Marlow signed it."),
        ("pump.pdf", "How long is this?", "2 pages, 21 words"),
        ("pump.pdf", "page 1", "A new pump came in June. Mara paid for it."),
        ("pump.pdf", "What is the first sentence of page iv?", "The pump failed in May."),
        ("pump.pdf", "Who is the author of this document?", "Mara Quill"),
    ],
)
def test_answers(memories, name, question, expected):
    answer = exact_answer([memories[name]], question)
    assert answer is not None and (answer.text, answer.route) == (expected, "lookup")
    assert answer.answered and answer.verified and answer.reason
    for found in answer.evidence:
        assert found.quote == memories[name].text[found.start : found.end] and found.document == name


@pytest.mark.parametrize(
    ("name", "question", "expected"),
    [
        ("log.txt", "What is on page 900?", "There is no page 900: the document has pages 1 to 3."),
        ("contract.txt", "clause 9", "There is no clause 9: the document has clauses 1 to 5."),
        ("contract.txt", "page 3", "There is no page 3: the document has no page numbers; it has 5 sections."),
        ("book.txt", "What is chapter 7 called?", "There is no chapter 7: the document has chapters I, II, III."),
        ("log.txt", "List the chapters", "The document has no chapter headings."),
        ("log.txt", "What is the title?", "The document gives no title. The name of its file is “log.txt”."),
        ("contract.txt", "Who wrote this contract?", "The document does not name its author."),
        ("book.txt", "Where is Ahab mentioned?", "The document does not contain “Ahab”."),
        ("pump.pdf", "What is the ninth sentence of page 1?", "There are only 2 sentences there."),
    ],
)
def test_what_is_not_there(memories, name, question, expected):
    answer = exact_answer([memories[name]], question)
    assert answer is not None and answer.text == expected
    assert not answer.answered and not answer.verified


@pytest.mark.parametrize(
    "question",
    [
        "Who wrote the letter to Stephen?",
        "What did he say on page 46 about the king?",
        "Who wrote the letter?",
        "Who wrote the song that the sailors sing?",
        "What is the title of the song?",
        "What is the title of the man who came to dinner?",
        "Who is the author of the threatening note?",
        "How long is the river?",
        "How long is the contract?",
        "How long is it until Christmas?",
        "How long did the trial last?",
        "How many pages did he write?",
        "How many words did she say?",
        "How many chapters had she read by noon?",
        "What are the chapters about?",
        "What is chapter 3 about?",
        "What happens in chapter 3?",
        "What does chapter 3 say about whales?",
        "Summarize chapter 3.",
        "What is in chapter 2?",
        "How does the story end?",
        "How does the book end?",
        "What was his first sentence?",
        "What was the last word of the dying king?",
        "How often does the committee meet?",
        "How often is he mentioned?",
        "How often is the king mentioned by Stephen?",
        "How many times does the wolf appear?",
        "How often was the house searched?",
        "Where is the treasure?",
        "Where does the ghost first appear?",
        "Where did Brown first meet Stephen?",
        "When was the harbour first built?",
        "On which page did he sign?",
        "Which chapter does she like best?",
        "What does the first clause mean?",
        "Does clause 9 allow subletting?",
        "What does section 4 require of the tenant?",
        "What is scheduled?",
        "Who called chapter 3 a failure?",
        "What did the author say?",
        "What kind of document did he forge?",
        "Is Leith mentioned?",
        "Why?",
        "?!",
        "¿Quién escribió este libro?",
    ],
)
def test_other_questions_are_left_alone(memories, question):
    assert exact_question(question) is None
    assert exact_answer(list(memories.values()), question) is None


def test_several_documents(memories):
    asked = [memories["contract.txt"], memories["log.txt"], memories["pump.pdf"]]
    answer = exact_answer(asked, "How many pages are there?")
    assert answer is not None and answer.text == "log.txt: 3 pages\npump.pdf: 2 pages" and answer.answered
    answer = exact_answer(asked, "page 900")
    assert answer is not None and not answer.answered and answer.text.count("There is no page 900") == 3
    answer = exact_answer(asked, "On which page is Edward Marlow last mentioned?")
    assert answer is not None and answer.text == "log.txt: Page 3: Edward Marlow signed it."
    assert [found.memory for found in answer.evidence] == [1]


def test_documents_of_one_memory(tiny_reader, memories):
    both = tiny_reader.ingest(Document("b", "A pump is a pump. It leaks."), memory=memories["log.txt"], learn=False)
    answer = exact_answer([both], "How often is the pump mentioned?")
    assert answer is not None and answer.text == "log.txt: 0 times\nb: 2 times"


def test_a_long_part_is_cut_at_a_sentence(tiny_reader):
    text = "1. Duties\n\n" + "The keeper lights the lamp at dusk. " * 100 + "\n\n2. Rights\n\nHe may sleep at noon."
    answer = exact_answer([tiny_reader.ingest(text=text, name="d", learn=False)], "section 1")
    assert answer is not None and answer.text.endswith("lamp at dusk.\n[…] (233 of 702 words)")
    assert answer.evidence[0].quote.endswith("lamp at dusk.") and len(answer.evidence[0].quote) <= 1200


def test_numbers_of_chapters_that_begin_anew(tiny_reader):
    headings = ["BOOK I, CHAPTER I", "CHAPTER II", "BOOK II, CHAPTER I", "CHAPTER II"]
    text, spans = "", []
    for label, words in zip(headings, ("One.", "Two.", "Three.", "Four."), strict=True):
        spans.append(Span("chapter", label, len(text), len(text) + len(label) + len(words) + 4))
        text += f"{label}\n\n{words}\n\n"
    memory = tiny_reader.ingest(Document("b", text, tuple(spans)), learn=False)
    answer = exact_answer([memory], "Read chapter 2")
    assert answer is not None and answer.text == "CHAPTER II\n\nTwo.\n\nCHAPTER II\n\nFour."
    answer = exact_answer([memory], "last sentence of book 1")
    assert answer is not None and answer.text == "Two."


def test_ask_answers_before_anything_is_read(tiny_reader, memories):
    answer = tiny_reader.ask(memories["book.txt"], "Who wrote this book?")
    assert answer.text == "Edward Marlow" and answer.route == "lookup" and answer.evidence[0].quote


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("IX", "9"),
        ("nine", "9"),
        ("third", "3"),
        ("twenty-one", "21"),
        ("12.3 (b)", "12.3.b"),
        ("4.2.", "4.2"),
        ("A", "a"),
    ],
)
def test_numbers(written, expected):
    assert key(written) == expected


def test_a_long_heading_is_a_title(tiny_reader, tmp_path):
    title = (
        "Street lighting and the use of hedgerows by bats: a crossover experiment in the lowland farmland of the west"
    )
    file = tmp_path / "bats.md"
    file.write_text(
        f"# {title}\n\nAnnika Reuter and Siân Prydderch\n\n## Abstract\n\nLight at night is bad for bats.\n", "utf-8"
    )
    answer = tiny_reader.ask(tiny_reader.ingest(file, learn=False), "What is the full title of this paper?")
    assert answer.text == title and answer.answered
