"""Where an answer should stand: by terms near one another, by related words, by what an answer looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_docs.lookup.proximity import _nearness, hits, related, sentence_scores, surroundings
from ttt_docs.lookup.question import form_of, understand
from ttt_docs.text.index import index_of

FILLER = "\n\n".join(f"On day {i} nothing was seen from the tower but water and a grey sky." for i in range(40))
TEXT = (
    f"The keeper was a quiet man. He had few friends.\n\n{FILLER}\n\n"
    "The keeper had bought a boat from Mr. Harlow of Leith. It was tarred and painted. He gave sixty pounds for it.\n\n"
    f"{FILLER}\n\nThe keeper sold the boat before he died. Nobody knows what became of it."
)


@pytest.mark.parametrize(
    ("question", "name", "yes", "no"),
    [
        ("How old was the keeper?", "age", "he was sixty years old", "he was old"),
        ("How much did it cost?", "money", "it cost £1,200", "it cost 1200 nails"),
        ("How much did the whale weigh?", "weight", "it weighed 90 tons", "it weighed a great deal"),
        ("From how high up did it fall?", "size", "from four hundred feet", "from four hundred men"),
        ("How long did he stay when they came?", "duration", "he stayed two days", "he stayed long"),
        ("How many ships were there?", "number", "thirty ships", "ships"),
        ("At what hour did it begin?", "hour", "at two o'clock", "at two"),
        ("In which year did he die?", "year", "he died in 1729", "he died at 92"),
        ("When did she marry?", "date", "they married on 7 July", "they may marry"),
        ("Where was she when he left?", "place", "she was in the Rue Dauphine", "she was in the house"),
        ("In which town was it printed?", "place", "printed at Leipzig", "Printed there"),
        ("Whose pupil was he?", "name", "he was taught by Parr", "He was taught"),
        ("Which insects have such a coat?", "name", "found in some Diptera", "Found in flies"),
    ],
)
def test_what_an_answer_looks_like(question, name, yes, no):
    form = form_of(question)
    assert form is not None and form.name == name
    assert form.within(yes, (0, len(yes))) and not form.within(no, (0, len(no)))


@pytest.mark.parametrize("question", ["What did he give for it?", "Why?", "", "Wo steht das Haus?"])
def test_no_form(question):
    assert form_of(question) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=30), st.data())
def test_nearness(gaps, data):
    middles = np.cumsum(gaps).astype(float)
    held = np.array(sorted(data.draw(st.lists(st.integers(0, len(gaps) - 1), max_size=8))), dtype=np.int32)
    counts = np.array([data.draw(st.sampled_from([0.25, 1.0])) for _ in held])
    expected = [
        sum(n * max(0.0, 1 - abs(m - middles[j]) / 150) for j, n in zip(held, counts, strict=True)) for m in middles
    ]
    np.testing.assert_allclose(_nearness(middles, held, counts, 150), expected, atol=1e-9)


def test_terms_near_one_another_and_the_form_of_the_answer():
    index = index_of(TEXT)
    query = understand("How much did the keeper pay for the boat?", index.language)
    first, second = hits(index, sentence_scores(index, query, {}), 2, 700)
    assert "sixty pounds" in TEXT[slice(*_span(index, first, 500))]
    assert first.score > second.score > 0 and "sold" in TEXT[slice(*_span(index, second, 500))]


def test_related_words():
    index = index_of(TEXT)
    query = understand("What was purchased by the guardian?", index.language)
    assert not (alone := sentence_scores(index, query, {})).any() and hits(index, alone, 3, 100) == []
    near = {"purchased": {"bought": 0.8, "paid": 0.5}, "guardian": {"keeper": 0.6, "elephant": 0.9}}
    best, *_ = hits(index, sentence_scores(index, query, near), 3, 100)
    assert "bought a boat" in TEXT[slice(*index.sentences[best.sentence])]
    own = understand("What was bought by the keeper?", index.language)
    assert (
        hits(index, sentence_scores(index, own, {}), 1, 100)[0].score > best.score
    )  # the question's own words count for more


def test_places_are_apart():
    index = index_of(TEXT)
    query = understand("What was seen from the tower?", index.language)
    found = hits(index, sentence_scores(index, query, {}), 10, 400)
    assert len(found) == 10
    middles = sorted(index.sentences[place.sentence][0] for place in found)
    assert min(np.diff(middles)) > 150


def test_surroundings_stay_within_size_and_document():
    index = index_of(TEXT)
    for sentence in range(0, len(index.sentences), 7):
        first, last = surroundings(index, sentence, 300)
        assert first <= sentence < last
        assert last == first + 1 or index.sentences[last - 1][1] - index.sentences[first][0] <= 300
    whole = surroundings(index, 5, 10**6)
    assert whole == (0, len(index.sentences))
    start, end = index.sentences[4][0], index.sentences[6][1]
    assert surroundings(index, 5, 10**6, (start, end)) == (4, 7)


class _Tokenizer:
    words = ("the", "ship", "boat", "vessel", "red", "scarlet", "Ship", "ab")
    vocab_size = len(words)

    def decode(self, ids):
        return f" {self.words[ids[0]]}"


def test_related_words_are_near_in_the_embedding():
    model = torch.nn.Module()
    model.embed = torch.nn.Embedding(8, 3)
    at = {"the": (0, 0, 1), "ship": (1, 0, 0), "boat": (1, 0.1, 0), "vessel": (0.9, 0, 0.1), "red": (0, 1, 0)}
    vectors = torch.tensor([at.get(word, (0, 0.95, 0.05)) for word in _Tokenizer.words])
    model.embed.weight.data = 5 + vectors  # what all have in common says nothing
    found = related(model, _Tokenizer(), ["ship", "red", "unknown", "ship"])
    assert set(found) == {"ship", "red"}
    assert list(found["ship"]) == ["boat", "vessel"] and list(found["red"]) == ["scarlet"]
    assert 0.5 <= found["ship"]["vessel"] <= found["ship"]["boat"] <= 1.0
    assert related(model, _Tokenizer(), ["unknown"]) == {}


def _span(index, place, size):
    first, last = surroundings(index, place.sentence, size)
    return index.sentences[first][0], index.sentences[last - 1][1]
