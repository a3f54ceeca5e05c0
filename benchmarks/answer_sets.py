"""Questions that people made, with the documents they are about: what `answers.py` asks.

Every set is a function of the folder `shared`. Spans are characters of the document's text. This file needs nothing of
the package, so that an older release can be asked the same questions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

SEED = 7
OWN = Path(__file__).parent / "teaching" / "own.jsonl.zst"
#: Words of a passage around an answer, at most.
PASSAGE_WORDS = 400


@dataclass(frozen=True)
class Question:
    """One question; `answers` and `spans` are empty where the document does not say."""

    id: str
    document: str
    question: str
    answers: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()  # where the document answers; each of them is enough
    passage: str = ""  # one that answers, or of an unanswerable question one of the document; "": not known
    kind: str = ""
    evidence: str = ""  # as its author quoted it
    history: tuple[tuple[str, str], ...] = ()  # turns before it: what was asked, what was answered

    @property
    def asked(self) -> str:
        """The question with the conversation before it."""
        return "".join(f"{said} {reply} " for said, reply in self.history) + self.question


class QuestionSet(NamedTuple):
    texts: dict[str, Any]  # by document: its text, or the path of its file
    questions: list[Question]


def opened(path: Path) -> str:
    """Text of a file that may be compressed with zstd."""
    with zstandard.open(path, "rt", encoding="utf-8") if path.suffix == ".zst" else path.open(encoding="utf-8") as file:
        return file.read()


def rows(path: Path) -> list[Any]:
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in opened(path).split("\n") if line.strip()]


def around(text: str, start: int, end: int, chance: random.Random) -> str:
    """About PASSAGE_WORDS words of `text` around characters [start, end), cut between sentences where possible."""
    room = chance.randint(PASSAGE_WORDS // 3, PASSAGE_WORDS) * 6
    left = chance.randint(0, room)
    first, last = max(0, start - left), min(len(text), end + room - left)
    stops = [m.end() for m in re.finditer(r"[.!?]\s+|\n", text[first:start])]
    first += stops[0] if stops and first else 0
    stops = [m.end() for m in re.finditer(r"[.!?]\s|\n", text[end:last])]
    return text[first : end + stops[-1] if stops and last < len(text) else last].strip()


def joined(parts: Iterable[str], start: int = 0) -> tuple[str, list[tuple[int, int]]]:
    """Parts with an empty line between them, and each one's characters, counted from `start`."""
    parts, spans = list(parts), []
    for part in parts:
        spans.append((start, start + len(part)))
        start += len(part) + 2
    return "\n\n".join(parts), spans


def fairytales(shared: Path, as_book: bool = False) -> QuestionSet:
    """Every story a document, or all of them one. An answer's span is its section."""
    texts: dict[str, str] = {}
    questions, start = [], 0
    for story in rows(shared / "questions/fairytale.dev.jsonl.zst"):
        text, spans = joined(story["sections"], start)
        start += len(text) + 2 if as_book else 0
        name = "all stories" if as_book else story["document"]
        texts[name] = f"{texts[name]}\n\n{text}" if name in texts else text
        for i, q in enumerate(story["questions"]):
            inside = sorted(q["sections"])
            passage = "\n\n".join(" ".join(story["sections"][k].split()) for k in inside)
            golds, where = tuple(dict.fromkeys(q["answers"])), tuple(spans[k] for k in inside)
            questions.append(
                Question(f"{story['document']} {i}", name, q["question"], golds, where, passage, q["kind"])
            )
    return QuestionSet(texts, questions)


def located(text: str, answer: str, start: int) -> tuple[int, int]:
    """The answer's characters: the place nearest to `start` that has its words; `start` itself where none has.

    A third of COVID-QA's offsets are some characters off.
    """
    words = r"\s+".join(map(re.escape, answer.split()))
    places = [m.span() for m in re.finditer(words, text)]
    return min(places, key=lambda span: abs(span[0] - start), default=(start, start + len(answer)))


def covid(shared: Path) -> QuestionSet:
    texts, questions = {}, []
    for paper in rows(shared / "questions/covidqa.dev.jsonl.zst"):
        name, text = str(paper["document"]), paper["text"]
        texts[name] = text
        for i, q in enumerate(paper["questions"]):
            spans = tuple(located(text, *pair) for pair in zip(q["answers"], q["start"], strict=True))
            passage = around(text, *spans[0], random.Random(f"{SEED} {name} {i}"))
            questions.append(Question(f"{name} {i}", name, q["question"], tuple(q["answers"]), spans, passage))
    return QuestionSet(texts, questions)


def squad(articles: Iterable[Any], name_of: Callable[[Any], str]) -> QuestionSet:
    """Paragraphs in SQuAD's form, joined to documents. A question that several paragraphs of a document answer is
    one question with all their answers."""
    parts: dict[str, list[str]] = {}
    questions: dict[tuple[str, str], Question] = {}
    for article in articles:
        name = name_of(article)
        for paragraph in article["paragraphs"]:
            so_far = parts.setdefault(name, [])
            start = sum(len(part) + 2 for part in so_far)
            so_far.append(paragraph["context"])
            for q in paragraph["qas"]:
                new = Question(str(q["id"]), name, q["question"], passage=paragraph["context"])
                old = questions.get((name, q["question"]), new)
                golds = [(a["text"], start + a["answer_start"]) for a in q["answers"]]
                answers = tuple(dict.fromkeys([*old.answers, *(text for text, _ in golds)]))
                spans = (*old.spans, *((at, at + len(text)) for text, at in golds))
                questions[name, q["question"]] = replace(old, answers=answers, spans=spans)
    return QuestionSet({name: joined(some)[0] for name, some in parts.items()}, list(questions.values()))


def policies(shared: Path) -> QuestionSet:
    return squad(json.loads(opened(shared / "questions/policyqa.dev.json.zst"))["data"], lambda policy: policy["title"])


def xquad(shared: Path) -> QuestionSet:
    return squad(json.loads(opened(shared / "questions/xquad.es.json.zst"))["data"], lambda article: "all paragraphs")


def elsewhere(asked: QuestionSet) -> QuestionSet:
    """Every question asked of another document, one that has none of the answers' words in a row."""
    plain = {name: " ".join(text.lower().split()) for name, text in asked.texts.items()}

    def moved() -> Iterator[Question]:
        for q in asked.questions:
            chance = random.Random(f"{SEED} {q.id}")
            golds = [" ".join(answer.lower().split()).strip(" .") for answer in q.answers]
            fits = [n for n in plain if n != q.document and not any(gold in plain[n] for gold in golds)]
            if fits:
                name = chance.choice(fits)
                at = chance.randrange(len(asked.texts[name]))
                passage = around(asked.texts[name], at, at, chance)
                yield replace(q, document=name, answers=(), spans=(), passage=passage)

    return QuestionSet(asked.texts, sorted(moved(), key=lambda q: q.document))


def near_misses() -> QuestionSet:
    """Our own: the topic is the document's, the fact is not given. Of the documents that build.py holds back."""
    texts, questions = {}, []
    for document in rows(OWN)[::20]:
        passages = {p["id"]: p["text"] for p in document["passages"]}
        texts[document["id"]] = joined(passages.values())[0]
        for i, q in enumerate(document["questions"]):
            if q["kind"] == "missing":
                passage = passages[q["passage"]]
                questions.append(
                    Question(f"{document['id']} {i}", document["id"], q["q"], passage=passage, kind="missing")
                )
    return QuestionSet(texts, questions)


def own(folder: Path, shared: Path | None = None) -> QuestionSet:
    """Documents NAME.md, and `questions.jsonl` with document, question, answers, kind, evidence and history. A document
    that is not there is the validation book of that name in `shared`; without `shared` its questions are left out."""
    books = {book["id"]: book["text"] for book in rows(shared / "books/valid.jsonl.zst")} if shared else {}
    texts, questions = {}, []
    for i, row in enumerate(rows(folder / "questions.jsonl")):
        name, evidence = row["document"].removesuffix(".md"), row.get("evidence") or ""
        file = folder / f"{name}.md"
        if not file.is_file() and name not in books:
            continue
        texts.setdefault(name, file if file.is_file() else books[name])
        questions.append(
            Question(
                str(i),
                name,
                row["question"],
                tuple(row["answers"]),
                kind=row.get("kind", ""),
                evidence=evidence if isinstance(evidence, str) else " … ".join(evidence),
                history=tuple((said, reply) for said, reply in row.get("history") or ()),
            )
        )
    return QuestionSet(texts, questions)


#: PolicyQA has no `elsewhere`: other policies answer most of its questions too.
SETS: dict[str, Callable[[Path], QuestionSet]] = {
    "fairytale": fairytales,
    "fairytale-book": lambda shared: fairytales(shared, as_book=True),
    "covid": covid,
    "policies": policies,
    "xquad-es": xquad,
    "fairytale-elsewhere": lambda shared: elsewhere(fairytales(shared)),
    "covid-elsewhere": lambda shared: elsewhere(covid(shared)),
    "near-misses": lambda shared: near_misses(),
}
