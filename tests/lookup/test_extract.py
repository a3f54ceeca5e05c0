"""What a question asks for, and answers that the wording of the document leaves no doubt about."""

from __future__ import annotations

import pytest

from ttt_docs.generation.grounding import unsupported
from ttt_docs.lookup.question import candidates, understand
from ttt_docs.lookup.search import extract, occurrences, search
from ttt_docs.text.index import index_of

REPORT = """The station was opened in May 1911. Its keeper was Edward Marlow, who came from Leith.

The access code for north-gate is: 4471902. The access code for south-gate is: 9021177.
The access code for east-gate is: 1112223. Spare keys are kept by the harbour master.

The best thing to do on the island is walk to the old lighthouse at dusk.
Device 7c9e6679-7425-40de-944b-e07fc1f90ae7 belongs to the signal room.
The reserve for pump-12 is 300 litres. The reserve for pump-12 is 450 litres.
"""


def values(question: str, text: str = REPORT) -> list[str]:
    index = index_of(text)
    query = understand(question, index.language)
    return [text[a:b] for _, (a, b) in extract(index, query, search(index, query))]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the access code for south-gate?", ["9021177"]),
        ("Tell me the access code for north-gate mentioned in the text.", ["4471902"]),
        ("What is the best thing to do on the island?", []),  # no kind of thing: it takes reading
        ("When was the station opened?", ["May 1911"]),
        ("What are all the amounts in reserve for pump-12?", ["300", "450"]),
        ("Who was the keeper?", []),
        ("What is the colour of the boat?", []),
    ],
)
def test_values(question, expected):
    assert values(question) == expected


def test_several_values_in_one_sentence_take_reading():
    assert values("How many men came by boat?", "By boat came 30 men, in 4 boats.") == []


def test_the_key_decides_not_the_words_around_it():
    hay = "\n".join(f"The access code for key-{i} is: {i * 7919 + 1000000}." for i in range(1500))
    for i in (0, 611, 1499):
        assert values(f"What is the access code for key-{i}?", hay) == [str(i * 7919 + 1000000)]


@pytest.mark.parametrize(
    ("question", "kind", "many"),
    [
        ("What is the magic uuid for a-b?", "uuid", False),
        ("When did the ship sail?", "date", False),
        ("How many men were lost when the ship sank?", "number", False),
        ("Who wrote the letter?", "span", False),
        ("What are all the numbers for a-b?", "number", True),
        ("Does the report mention pumps?", "mention", False),
        ("What did he say to her?", "span", False),
    ],
)
def test_questions(question, kind, many):
    query = understand(question)
    assert (query.kind, query.many) == (kind, many)


def test_keys_are_strings_to_be_found_as_they_stand():
    assert understand("What is the value for north-gate?").keys == ("north-gate",)
    assert understand('Who said "never again" to the captain?').keys == ("never again",)
    assert understand("What does order A-1179 cost in 1911?").keys == ("A-1179",)
    assert understand("Who was the well-known sailor?").keys == ()
    assert understand("What are the codes for a-b, c-d, and e-f?").keys == ("a-b", "c-d", "e-f")


def test_occurrences_are_whole_words():
    text = "north-gate, north gate and northgate; North-Gates, north-gate-2"
    assert [text[a:b] for a, b in occurrences(text, "north-gate")] == [
        "north-gate",
        "north gate",
        "northgate",
        "north-gate",
    ]
    assert occurrences(text, "gate-3") == [] and occurrences(text, "--") == []


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("number", "about 1,250 ships and 3.5 %", ["1,250", "3.5 %"]),
        ("number", "he had twenty-three or a hundred and five", ["twenty-three", "a hundred and five"]),
        ("date", "on the 3rd of May 1851 at sea", ["3rd of May 1851"]),
        ("email", "write to keeper@light.org.", ["keeper@light.org"]),
        ("span", "anything at all", []),
    ],
)
def test_candidates(kind, text, expected):
    assert [text[a:b] for a, b in candidates(text, kind)] == expected


def test_what_an_answer_says_that_its_quotes_do_not():
    quotes = ["Edward Marlow came in 1911, at 10:45."]
    assert unsupported("Edward Marlow, 1911", quotes) == []
    assert unsupported("It was John Marlow in 1912, he said “never”.", quotes) == ["1912", "never", "John"]
    assert unsupported("Yes, at 10:45", quotes) == [] and unsupported("191", quotes) == ["191"]
    assert unsupported("Leith", quotes, question="Is Leith far?") == []
