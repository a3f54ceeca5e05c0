"""Makes the examples that skills are taught with, out of what people made (`../shared`) and our own (`own.jsonl.zst`).

    python benchmarks/teaching/build.py ../shared build/teaching

Writes answers.{train,dev}.jsonl.zst (a question and one passage: a short answer, or none) and
writing.{train,dev}.jsonl.zst (abstracts, focused summaries, merges). Nothing of a dev half or of a validation book
is in a train file. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from answer_sets import around

from ttt_docs.documents.json_lines import json_lines
from ttt_docs.generation.writing import ABSTRACT, MERGE, SENTENCE, writing_prompt
from ttt_docs.lookup.reader import question_prompt

HERE = Path(__file__).parent
NOT_HERE = ""  # the reply ends at once
#: Of the questions with an answer, how many are asked of a passage that does not hold it as well.
ABSENT = 0.35
#: Words of a story's piece that abstracts are made of.
PIECE_WORDS = 550
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]+")
_SENTENCE = re.compile(r"(?<=[.!?][\"'”’ ])\s*(?=[A-Z\"“‘])|(?<=[.!?])\s+(?=[A-Z\"“‘])")


class Row(NamedTuple):
    kind: str
    source: str
    user: str
    assistant: str


def rows(path: Path) -> list[Any]:
    return [row for _, row in json_lines(path)]


def plain_answer(text: str) -> str:
    return " ".join(text.split()).rstrip(" .").strip()


def with_absent(
    chance: random.Random, asked: Sequence[tuple[str, str, str, Sequence[str]]], source: str
) -> Iterator[Row]:
    """Rows of (passage, question, answer, other passages of the document): some also asked where there is no answer."""
    for passage, question, answer, others in asked:
        if answer:
            yield Row("answer", source, question_prompt(passage, question), plain_answer(answer))
        else:
            yield Row("absent", source, question_prompt(passage, question), NOT_HERE)
        fits = [other for other in others if answer and answer.lower() not in other.lower()]
        if fits and chance.random() < ABSENT:
            yield Row("absent", source, question_prompt(chance.choice(fits), question), NOT_HERE)


def fairytales(shared: Path, part: str, chance: random.Random) -> Iterator[Row]:
    for story in rows(shared / f"questions/fairytale.{part}.jsonl.zst"):
        sections = [" ".join(s.split("\n")) for s in story["sections"]]
        passages: dict[tuple[int, ...], str] = {}  # by the sections that an answer needs: questions share them
        for inside in sorted({tuple(sorted(q["sections"])) for q in story["questions"]}):
            taken = set(inside)
            # A passage as it is found: the sections of the answer, often with a neighbour.
            if chance.random() < 0.3 and len(inside) == 1:
                taken |= {chance.choice([max(inside[0] - 1, 0), min(inside[0] + 1, len(sections) - 1)])}
            passages[inside] = "\n\n".join(sections[i] for i in sorted(taken))
        asked = []
        for q in story["questions"]:
            passage = passages[tuple(sorted(q["sections"]))]
            others = [p for inside, p in passages.items() if not set(inside) & set(q["sections"]) and p != passage]
            asked.append((passage, q["question"], chance.choice(q["answers"]), others))
        yield from with_absent(chance, asked, "fairytaleqa")


def covid(shared: Path, part: str, chance: random.Random) -> Iterator[Row]:
    for paper in rows(shared / f"questions/covidqa.{part}.jsonl.zst"):
        text, asked = paper["text"], []
        for q in paper["questions"]:
            answer, start = q["answers"][0], q["start"][0]
            if len(answer.split()) > 40:
                continue
            asked.append((around(text, start, start + len(answer), chance), start, q["question"], answer))
        far = [[p for p, at, *_ in asked if abs(at - start) > 6000] for _, start, *_ in asked]
        found = [(p, question, answer, o) for (p, _, question, answer), o in zip(asked, far, strict=True)]
        yield from with_absent(chance, found, "covid-qa")


def qamr(shared: Path, chance: random.Random, count: int) -> Iterator[Row]:
    """A passage is a few sentences that have nothing to do with one another."""
    documents = rows(shared / "questions/qamr.train.jsonl.zst")
    chance.shuffle(documents)
    groups, asked = [], 0
    while asked < count:
        group, documents = documents[: chance.randint(2, 7)], documents[7:]
        groups.append((" ".join(d["text"] for d in group), [q for d in group for q in d["questions"]]))
        asked += len(groups[-1][1])
    made = []
    for passage, questions in groups:
        for q in questions:
            answer = Counter(a.lower() for a in q["answers"]).most_common(1)[0][0]
            verbatim = next(a for a in q["answers"] if a.lower() == answer)
            other = chance.choice(groups)[0]
            made.append((passage, q["question"], verbatim, [other] if other != passage else []))
    yield from with_absent(chance, made, "qamr")


def sentences_of(text: str) -> list[str]:
    return [s.strip() for s in _SENTENCE.split(" ".join(text.split())) if s and s.strip()]


def pieces_of(text: str, words: int) -> list[str]:
    """The text in pieces of about so many words, cut between paragraphs, or sentences where those are long."""
    pieces: list[str] = [""]
    for paragraph in re.split(r"\n\s*\n", text):
        for part in [paragraph] if len(paragraph.split()) < words // 3 else sentences_of(paragraph):
            joint = " ".join(part.split())
            if len(pieces[-1].split()) + len(joint.split()) > words and pieces[-1]:
                pieces.append("")
            pieces[-1] += ("\n\n" if pieces[-1] and part is paragraph else " " if pieces[-1] else "") + joint
    return [piece for piece in pieces if len(piece.split()) > 80]


def aligned(pieces: Sequence[str], answer: str, least: float) -> dict[int, list[str]]:
    """Sentences of a summary by the piece whose rare words they share, in the story's order (dynamic programming)."""
    bags = [Counter(w.lower() for w in _WORD.findall(piece)) for piece in pieces]
    in_pieces = Counter(w for bag in bags for w in bag)
    sentences = sentences_of(answer)
    scores = []
    for sentence in sentences:
        words = {w.lower() for w in _WORD.findall(sentence)}
        known = [w for w in words if w in in_pieces]
        weight = {w: 1 / in_pieces[w] for w in known}
        total = sum(weight.values()) or 1.0
        scores.append([sum(weight[w] for w in known if w in bag) / (total + 0.5) for bag in bags])
    best = [[0.0] * (len(pieces) + 1) for _ in range(len(sentences) + 1)]
    taken: dict[tuple[int, int], int] = {}
    for i in range(len(sentences)):
        run, at = float("-inf"), 0
        for j in range(len(pieces)):
            if best[i][j] > run:
                run, at = best[i][j], j
            best[i + 1][j] = run + scores[i][j]
            taken[i, j] = at
        best[i + 1][len(pieces)] = float("-inf")
    if not sentences:
        return {}
    j = max(range(len(pieces)), key=lambda j: best[len(sentences)][j])
    found: dict[int, list[str]] = {}
    for i in reversed(range(len(sentences))):
        if scores[i][j] >= least:
            found.setdefault(j, []).insert(0, sentences[i])
        j = taken[i, j]
    return found


def squality(shared: Path, part: str, chance: random.Random) -> Iterator[Row]:
    for story in rows(shared / f"summaries/squality/{part}.jsonl.zst"):
        pieces = pieces_of(story["document"], PIECE_WORDS)
        for question in story["questions"]:
            plot = question["question_number"] == 1
            for response in question["responses"]:
                for index, sentences in aligned(pieces, response["response_text"], 0.3 if plot else 0.35).items():
                    text = " ".join(sentences)
                    words = len(text.split())
                    if not 12 <= words <= 120:
                        continue
                    request = ABSTRACT if plot else question["question_text"]
                    yield Row(
                        "abstract" if plot else "focus", "squality", writing_prompt(pieces[index], request, words), text
                    )


def qmsum(shared: Path, part: str) -> Iterator[Row]:
    for meeting in rows(shared / f"summaries/qmsum.{part}.jsonl.zst"):
        turns = [f"{who}: {re.sub(r'{[a-z]+}', '', said)}" for who, said in meeting["turns"]]
        for q in meeting["specific"]:
            lines = [line for first, last in q["spans"] for line in turns[int(first) : int(last) + 1]]
            text, answer = "\n".join(lines), " ".join(q["answer"].split())
            if 60 < len(text.split()) < 800:
                yield Row("focus", "qmsum", writing_prompt(text, q["query"], len(answer.split())), answer)


def scitldr(shared: Path, part: str, chance: random.Random) -> Iterator[Row]:
    for paper in rows(shared / f"summaries/scitldr.{part}.jsonl.zst"):
        summary = chance.choice(paper["summaries"])
        yield Row("abstract", "scitldr", writing_prompt(paper["text"], SENTENCE, len(summary.split())), summary)


def own_answers(own: Sequence[Any], chance: random.Random) -> Iterator[Row]:
    for document in own:
        passages = {p["id"]: p["text"] for p in document["passages"]}
        asked = []
        for q in document["questions"]:
            before = "".join(f"{said} {reply} " for said, reply in q.get("history", []))
            others = [text for key, text in passages.items() if key != q["passage"]]
            asked.append((passages[q["passage"]], before + q["q"], q["a"], others))
        yield from with_absent(chance, asked, "own")


def own_writing(own: Sequence[Any]) -> Iterator[Row]:
    for document in own:
        passages = {p["id"]: p["text"] for p in document["passages"]}
        abstracts = document["abstracts"]
        for key, text in abstracts.items():
            yield Row("abstract", "own", writing_prompt(passages[key], ABSTRACT, len(text.split())), text)
        if document.get("merge"):
            joined, merge = "\n".join(abstracts.values()), document["merge"]
            yield Row("merge", "own", writing_prompt(joined, MERGE, len(merge.split())), merge)
        for focus in document["focus"]:
            text = focus["text"]
            yield Row(
                "focus", "own", writing_prompt(passages[focus["passage"]], focus["request"], len(text.split())), text
            )


def write(path: Path, made: list[Row], chance: random.Random) -> None:
    chance.shuffle(made)
    lines = "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in made)
    path.write_bytes(zstandard.ZstdCompressor(level=10).compress(lines.encode()))
    counts = Counter((row.source, row.kind) for row in made)
    print(path.name, len(made), ", ".join(f"{s} {k} {n}" for (s, k), n in sorted(counts.items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--own", type=Path, default=HERE / "own.jsonl.zst")
    parser.add_argument("--qamr", type=int, default=6000, help="questions taken of QAMR's 37,678")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    chance, shared = random.Random(7), options.shared
    own = rows(options.own) if options.own.is_file() else []
    held = [document for i, document in enumerate(own) if i % 20 == 0]
    taught = [document for i, document in enumerate(own) if i % 20]
    answers = [
        *fairytales(shared, "train", chance),
        *covid(shared, "train", chance),
        *qamr(shared, chance, options.qamr),
    ]
    write(options.folder / "answers.train.jsonl.zst", answers + list(own_answers(taught, chance)), chance)
    dev = [*fairytales(shared, "dev", chance), *covid(shared, "dev", chance)]
    write(options.folder / "answers.dev.jsonl.zst", chance.sample(dev, 300) + list(own_answers(held, chance)), chance)
    writing = [*squality(shared, "train", chance), *qmsum(shared, "train"), *scitldr(shared, "train", chance)]
    write(options.folder / "writing.train.jsonl.zst", writing + list(own_writing(taught)), chance)
    dev = [*squality(shared, "dev", chance), *qmsum(shared, "dev"), *scitldr(shared, "dev", chance)]
    write(options.folder / "writing.dev.jsonl.zst", chance.sample(dev, 120) + list(own_writing(held)), chance)


if __name__ == "__main__":
    main()
