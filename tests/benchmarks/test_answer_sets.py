"""Questions of other people: how sets are read, what the columns count, and a whole run with a tiny model."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_checkpoint import write_model

from ttt_docs import Answer, Evidence

pytest.importorskip("rouge_score")
zstandard = pytest.importorskip("zstandard")
ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
SECTIONS = ["A farmer had\nseven sons.", "The youngest was Assipattle."]


@pytest.fixture
def sets(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("answer_sets")


@pytest.fixture
def answers(sets) -> ModuleType:
    return importlib.import_module("answers")


@pytest.fixture
def shared(tmp_path) -> Path:
    """Small sets of our own, in the form of the real ones."""

    def write(name: str, *lines: object) -> None:
        path = tmp_path / "questions" / name
        path.parent.mkdir(exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path.write_bytes(zstandard.compress(text.encode()))

    question = {"question": "Who had sons?", "answers": ["a farmer", "a farmer"], "sections": [0], "kind": "character"}
    other = {"question": "Who was youngest?", "answers": ["Assipattle"], "sections": [1, 0], "kind": "character"}
    write(
        "fairytale.dev.jsonl.zst",
        {"document": "one", "sections": ["A miller\nslept.", "He snored."], "questions": []},
        {"document": "two", "sections": SECTIONS, "questions": [question, other]},
    )
    spike = {"question": "What binds?", "answers": ["spike protein"], "start": [12]}  # it begins at 20
    write(
        "covidqa.dev.jsonl.zst",
        {"document": 7, "text": "A spike. Later, the spike\nprotein binds.", "questions": [spike]},
    )

    def paragraph(context: str, answer: str) -> dict[str, object]:
        asked = {
            "id": answer,
            "question": "¿Qué?",
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        return {"context": context, "qas": [asked]}

    paragraphs = [paragraph("Hay tres gatos.", "tres"), paragraph("Y dos perros.", "dos perros")]
    write("xquad.es.json.zst", {"data": [{"title": "t", "paragraphs": paragraphs}]})
    write("policyqa.dev.json.zst", {"data": [{"title": t, "paragraphs": paragraphs} for t in ("a.com", "b.com")]})
    return tmp_path


def shown(asked, question) -> list[str]:
    return [asked.texts[question.document][start:end] for start, end in question.spans]


def test_spans_are_characters_of_the_document(sets, shared):
    stories = sets.fairytales(shared)
    assert set(stories.texts) == {"one", "two"} and stories.texts["two"] == "\n\n".join(SECTIONS)
    first, second = stories.questions
    assert shown(stories, first) == SECTIONS[:1] and first.passage == "A farmer had seven sons."
    assert first.answers == ("a farmer",) and shown(stories, second) == SECTIONS
    book = sets.fairytales(shared, as_book=True)
    assert len(book.texts) == 1 and [shown(book, q) for q in book.questions] == [SECTIONS[:1], SECTIONS]
    papers = sets.covid(shared)
    assert shown(papers, papers.questions[0]) == ["spike\nprotein"]
    assert "protein binds" in papers.questions[0].passage


def test_a_question_of_several_paragraphs_has_all_their_answers(sets, shared):
    for asked, documents in ((sets.xquad(shared), 1), (sets.policies(shared), 2)):
        assert len(asked.texts) == len(asked.questions) == documents
        assert asked.questions[0].answers == ("tres", "dos perros")
        assert shown(asked, asked.questions[0]) == ["tres", "dos perros"]


def test_elsewhere_is_another_document_without_the_answer(sets, shared):
    asked = sets.elsewhere(sets.fairytales(shared))
    assert [q.document for q in asked.questions] == ["one", "one"]
    assert not any(q.answers or q.spans for q in asked.questions)
    told = sets.QuestionSet({"one": "The  FARMER slept.", "two": "A farmer woke."}, [])
    farmer = sets.Question("0", "two", "Who woke?", ("the farmer.",))
    assert not sets.elsewhere(told._replace(questions=[farmer])).questions


def test_near_misses_are_those_held_back(sets):
    asked = sets.near_misses()
    assert len(asked.questions) > 15 and not any(q.answers for q in asked.questions)
    assert all(q.passage in asked.texts[q.document] for q in asked.questions)


def test_a_passage_holds_the_answer_and_begins_with_a_sentence(sets):
    text = "".join(f"Day {day} was dull and long and wet. " for day in range(2000))
    start = text.index("Day 900 ")
    passage = sets.around(text, start, start + 7, sets.random.Random(3))
    assert "Day 900 " in passage and passage.startswith("Day ") and passage.endswith("wet.")
    assert len(passage.split()) < 1.5 * sets.PASSAGE_WORDS


def test_measures(answers):
    assert answers.words("The well-to-do “farmer’s” an  Aunt.") == ["welltodo", "farmers", "aunt"]
    assert answers.exact("A farmer!", "the farmer") == 1 and answers.exact("farmers", "farmer") == 0
    assert answers.f1("the old farmer", "a farmer") == pytest.approx(2 / 3)  # 1 of 2 words, 1 of 1
    assert answers.f1("miller", "farmer") == 0
    assert answers.rouge_l("he counted waves", "he counts a wave") == pytest.approx(6 / 7)  # stems, in their order
    assert answers.brief("It was in the year 1914, they say.", "1914") == 1
    assert answers.brief("It was in 19145.", "1914") == 0
    assert answers.brief("1914 " + "word " * 20, "1914") == 0


def test_calibration_error(answers):
    assert answers.calibration_error([(0.75, True), (0.75, True), (0.75, True), (0.75, False)]) == 0
    # Two bins of two: 1.0 against 0.5, and 0.1 against 0.
    assert answers.calibration_error([(1.0, True), (1.0, False), (0.1, False), (0.1, False)]) == pytest.approx(0.3)


def test_columns(answers, sets):
    text = "A farmer had seven sons."
    question = sets.Question("0", "story", "Who?", ("a farmer", "the old farmer"), ((2, 8),))

    def given(start: int, end: int) -> Evidence:
        return Evidence(text[start:end], None, start, end, 1.0)

    right = Answer("farmer", "lookup", (given(8, 12), given(0, 3)), 1.0, confidence=0.9)
    wrong = Answer("seven sons", "lookup", (given(13, 18),), 3.0, confidence=0.8)
    silent = Answer("It does not say: a farmer", "lookup", (), 2.0, confidence=0.3, answered=False)
    line = answers.figures([answers.scored(question, answer) for answer in (right, wrong, silent)])
    third = pytest.approx(1 / 3)
    assert line == {
        "questions": 3,
        "evidence_1": 0,  # what ends where the span begins is beside it
        "evidence_3": third,
        "exact": third,
        "f1": third,
        "rouge_l": pytest.approx(2 / 9),  # articles count: 1 of 1 and 1 of 2 words
        "brief": third,
        "words": 1.5,
        "refused": third,
        "sure_wrong": third,
        "calibration": pytest.approx((0.1 + 0.8) / 2),
        "seconds": 2.0,
    }
    unanswerable = sets.Question("1", "story", "When?")
    line = answers.figures([answers.scored(unanswerable, answer) for answer in (right, silent)])
    assert (line["f1"], line["evidence_1"], line["refused"], line["sure_wrong"]) == (None, None, 0.5, 0.5)


def run(answers: ModuleType, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["answers.py", *map(str, arguments), "--threads", "1"])
    answers.main()


def test_one_table_from_one_run(answers, shared, tmp_path, monkeypatch, capsys):
    tiny = write_model(tmp_path / "tiny", seed=0)
    written, out = tmp_path / "old.jsonl", tmp_path / "out.json"
    some = ["--reader", tiny, "--sets", "fairytale", "covid-elsewhere", "xquad-es"]
    run(answers, monkeypatch, shared, *some, "--write", written)
    capsys.readouterr()
    ways = ["--ways", "ask", "passage", "full", "--model", tiny, "--answers", written]
    run(answers, monkeypatch, shared, *some, *ways, "--json", out)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:5] == ["set", "way", "questions", "evidence 1", "evidence 3"]
    rows = {tuple(line[:2]): line[2:] for line in lines[2:]}
    assert {way for _, way in rows} == {"ask", "passage", "full", "tiny", "old.jsonl"}
    # The last column is seconds. The file has those of its own run.
    assert rows["fairytale", "ask"][:-1] == rows["fairytale", "old.jsonl"][:-1]
    assert rows["fairytale", "passage"][0] == "2" and rows["fairytale", "passage"][1] == "–"
    made = json.loads(out.read_text("utf-8"))
    assert len(made["answers"]) == 5 * (2 + 1) and made["figures"][0]["way"] == "ask"


def test_own_documents_are_read_by_a_person(answers, tmp_path, monkeypatch, capsys):
    (tmp_path / "log.md").write_text("# Log\n\nThe ship left Bergen on 3 May.\n\nThe cook was ill.\n", "utf-8")
    questions = [
        {"document": "log.md", "question": "When did the ship leave?", "answers": ["3 May"], "evidence": "on 3 May"},
        {"document": "log", "question": "Why?", "answers": [], "kind": "missing", "history": [["Who was ill?", "He."]]},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)), "utf-8")
    run(answers, monkeypatch, "--own", tmp_path, "--reader", write_model(tmp_path / "tiny", seed=0))
    printed = capsys.readouterr().out
    assert "[log] When did the ship leave?\n  wanted: 3 May\n    from: on 3 May\n  ask" in printed
    assert "[log, missing] Who was ill? He. Why?\n  wanted: (the document does not say)" in printed
    assert "|" not in printed


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sets are not here")
def test_gold_spans_hold_gold_answers(sets):
    counts = {"fairytale": 1025, "fairytale-book": 1025, "covid": 276, "policies": 2420, "xquad-es": 1185}
    for name, count in counts.items():
        asked = sets.SETS[name](SHARED)
        assert len({q.id for q in asked.questions}) == len(asked.questions) == count
        found = [
            any(" ".join(span.split()) == " ".join(gold.split()) for span in shown(asked, q) for gold in q.answers)
            for q in asked.questions
        ]
        if "fairytale" in name:  # a span is a section: the passage is made of it
            assert all(" ".join(span.split()) in q.passage for q in asked.questions for span in shown(asked, q))
        else:
            assert sum(found) >= 0.97 * count
