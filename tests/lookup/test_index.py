"""Passages are exact spans of the text, and the index finds words in any form and rare strings as they stand."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_docs.text.index import SIZE, index_of, language_of, passages, terms
from ttt_docs.text.sentences import LONGEST, short_sentences

PROSE = "The harbour lay still. Mr. Brown counted the ships, one by one. Nobody came!\n\nThe next day it rained."


def test_sentences_of_prose():
    found = [PROSE[a:b] for a, b in short_sentences(PROSE)]
    assert found == [
        "The harbour lay still.",
        "Mr. Brown counted the ships, one by one.",
        "Nobody came!",
        "The next day it rained.",
    ]


def test_lines_of_a_table_are_sentences():
    table = "name, amount\nnorth gate, 4471\nsouth gate, 9021"
    assert [table[a:b] for a, b in short_sentences(table)] == table.split("\n")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab .!?\n\t1-é白", max_size=2000))
def test_spans_are_in_order_and_leave_out_only_white_space(text):
    spans = short_sentences(text)
    covered = np.zeros(len(text), dtype=bool)
    reached = 0
    for start, end in spans:
        assert reached <= start < end <= len(text) and end - start <= LONGEST
        covered[start:end] = True
        reached = end
    assert "".join(c for c, inside in zip(text, covered, strict=True) if not inside).strip() == ""
    firsts, lasts = passages(spans)
    assert (firsts < lasts).all() and (np.diff(firsts) > 0).all()
    if spans:
        assert firsts[0] == 0 and lasts[-1] == len(spans) and (firsts[1:] <= lasts[:-1]).all()
    for first, last in zip(firsts, lasts, strict=True):
        assert last == first + 1 or spans[last - 1][1] - spans[first][0] <= SIZE


def test_passages_overlap():
    text = " ".join(f"Sentence number {i} stands here." for i in range(200))
    firsts, lasts = passages(short_sentences(text))
    assert len(firsts) > 5 and (firsts[1:] < lasts[:-1]).all()


def test_joined_strings_are_kept_whole_and_in_words():
    found = terms("the north-gate key 4f1c-99e0 of user@host.org, 1,250 at 10:45", "english")
    for whole in ("north-gate", "4f1c-99e0", "user@host.org", "1,250", "10:45"):
        assert whole in found
    assert "north" in found and "gate" in found and "the" not in found


def test_words_in_any_form():
    assert terms("whales", "english") == terms("Whale's", "english") == terms("WHALE", "english")
    assert terms("Häuser", "german") == terms("hauser", "german")
    assert terms("東京都", "english") == ["東京", "京都"]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("english", "It was the best of times, and it was the worst of times, as they said to us."),
        ("german", "Es war einmal ein König, der hatte eine Tochter und die wollte nicht in den Wald gehen."),
        ("french", "Il était une fois un roi qui avait une fille, et elle ne voulait pas aller dans la forêt."),
        ("english", "x = 3; y = 4\nprint(x + y)"),
    ],
)
def test_language(language, text):
    assert language_of(text) == language


def test_search_finds_the_one_passage_with_a_rare_string():
    lines = [f"The code of gate {i} is {i * 7919 % 10000:04d}-{i % 7}." for i in range(2000)]
    index = index_of("\n".join(lines))
    for number in (0, 777, 1999):
        code = lines[number].split()[-1].rstrip(".")
        best = int(index.scores({code: 1.0}).argmax())
        start, end = index.span(best)
        assert lines[number] in index.text[start:end]


@pytest.mark.parametrize("text", ["", "...", " \n ", "—?!", "the of and"])
def test_texts_without_words(text):
    index = index_of(text)
    assert not index.scores({"word": 1.0}).any()


def test_scores_are_bm25s():
    bm25s = pytest.importorskip("bm25s")
    text = " ".join(f"Alpha beta gamma {i % 5}. Delta epsilon {i}." for i in range(300))
    index = index_of(text)
    documents = [index.terms(*index.span(p)) for p in range(len(index))]
    retriever = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    retriever.index(documents, show_progress=False)
    query = terms("gamma 17 delta", "english")
    np.testing.assert_allclose(index.scores(dict.fromkeys(query, 1.0)), retriever.get_scores(query), rtol=1e-5)


def test_scores_have_the_same_bits_in_every_process():
    program = """if True:
        import random
        from ttt_docs.generation.sections import candidates
        from ttt_docs.text.index import index_of
        from ttt_docs.lookup.question import understand
        from ttt_docs.lookup.search import search
        chance, letters = random.Random(0), "bdfgklmnprt"
        words = ["".join(chance.choices(letters + "aeiou", k=7)) for _ in range(400)]
        lines = [" ".join(w for k, w in enumerate(words) if chance.random() < 6 / (k + 10)) for _ in range(900)]
        text = "\\n\\n".join(f"Of the {line} they spoke in the old town for many long days." for line in lines)
        found = search(index_of(text), understand(" ".join(words)))
        print([s.score for s in found.sentences], [p.score for p in candidates(text, ())])
    """
    command, seen = [sys.executable, "-c", program], set()
    for seed in "123":
        environment = os.environ | {"PYTHONHASHSEED": seed}
        seen.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(seen) == 1 and len(*seen) > 100


def test_a_sentence_without_an_end_is_cut_between_words():
    text = "word " * 300
    pieces = [text[a:b] for a, b in short_sentences(text)]
    assert " ".join(pieces) == text.strip() and len(pieces) >= 3
    assert max(map(len, pieces)) <= LONGEST and min(map(len, pieces[:-1])) > LONGEST // 2
    assert [b - a for a, b in short_sentences("x" * 1200)] == [LONGEST, LONGEST, 200]
