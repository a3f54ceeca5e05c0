"""How well questions of other people are answered, in several ways: one table from one run.

    python benchmarks/answers.py ../shared --ways ask passage --count 200 --json answers.json
    python benchmarks/answers.py ../shared --model qwen3-0.6b --sets fairytale covid
    python benchmarks/answers.py --own FOLDER

Each way of answering is a row. `ask` is the reader as it ships. `passage` reads the right passage (or one that does not
answer, where none does), `memory` does so with the fast weights that the document left, and `plain` with the model as
it comes. `full` reads the whole document in one prompt, and skips documents that do not fit. `--model` adds a row for
another model, which is given the same passages. `--answers` adds a row for a file of answers, which `--write` made in
another checkout:

    PYTHONPATH=../old python benchmarks/answers.py ../shared --count 200 --write old.jsonl
    python benchmarks/answers.py ../shared --count 200 --answers old.jsonl

Documents are whole. `--count` questions of each set are drawn, always the same ones. `figures` tells what the columns
are. `--own` asks about documents of your own and prints the answers for a person to read. They get no score.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from answer_sets import SEED, SETS, Question, QuestionSet, own, rows
from record import circumstances
from rouge_score.rouge_scorer import RougeScorer
from tqdm import tqdm

from ttt_docs import Answer, Evidence, Memory, TTTDocsError, TTTReader, UsageError

#: An answer is right from this F1 on, and sure from this confidence on.
RIGHT, SURE = 0.5, 0.8
#: A passage answers where the model is more likely than this to say anything.
HERE = 0.5
#: Words of a brief answer, at most; bins of the calibration error; pieces of evidence that are counted.
BRIEF, BINS, TOPS = 20, 10, (1, 3)
WAYS = ("ask", "plain", "passage", "memory", "full")
ROUGE = RougeScorer(["rougeL"], use_stemmer=True)

#: The answer to a question; None: this way cannot answer it.
Way = Callable[[TTTReader, Memory, Question], "Answer | None"]


def ask(reader: TTTReader, memory: Memory, question: Question) -> Answer:
    if question.history and "history" in inspect.signature(reader.ask).parameters:
        return reader.ask(memory, question.question, history=question.history)
    return reader.ask(memory, question.asked)  # an older release knows no history


def read(passages: Any, text: str | None, question: Question) -> Answer | None:
    """What one text answers, by a `PassageReader`; None for no text, or one that does not fit."""
    from ttt_docs.lookup.confidence import probabilities  # late: an older release has none, and can still `ask`

    if not text:
        return None
    began = time.perf_counter()
    try:
        found = passages.read([text], question.question, question.history)
    except UsageError:
        return None
    seconds, (sure,) = time.perf_counter() - began, probabilities(found, [text])
    return Answer(found[0].text, "lookup", seconds=seconds, confidence=sure, answered=found[0].here >= HERE)


def passage(passages: Any, reader: TTTReader, memory: Memory, question: Question) -> Answer | None:
    return read(passages, question.passage, question)


def full(passages: Any, reader: TTTReader, memory: Memory, question: Question) -> Answer | None:
    return read(passages, memory.text, question)


def with_memory(passages: Any, reader: TTTReader, memory: Memory, question: Question) -> Answer | None:
    from ttt_docs.reading.restoring import state_of

    if not question.passage:
        return None
    state = state_of(passages.model, _read_through(reader, memory.text or ""))
    began = time.perf_counter()
    (found,) = passages.read([question.passage], question.question, question.history, state)
    return Answer(found.text, "lookup", seconds=time.perf_counter() - began, answered=found.here >= HERE)


@lru_cache(maxsize=1)
def _read_through(reader: TTTReader, text: str) -> Memory:
    return reader.ingest(text=text, progress=False)


def reading_ways(reader: TTTReader, skill: Path | None, model: str | None) -> dict[str, Way]:
    """All ways but `ask`, with a skill's file or the package's; another model reads the right passage as it comes."""
    from ttt_docs.lookup.reader import PassageReader
    from ttt_docs.weights.skill import load_skill, shipped_skill

    learned = load_skill(skill) if skill else shipped_skill(reader.name, "answers")
    plain = PassageReader(reader.model, reader.tokenizer, skilled=False)
    taught = after_reading = plain
    if learned:
        taught = PassageReader(learned.applied_to(reader.model), reader.tokenizer, skilled=True)
        # Fast weights were learned with the reader's own norms.
        own_norms = replace(learned, norms={}).applied_to(reader.model)
        after_reading = PassageReader(own_norms, reader.tokenizer, skilled=True)
    ways: dict[str, Way] = {
        "plain": partial(passage, plain),
        "passage": partial(passage, taught),
        "memory": partial(with_memory, after_reading),
        "full": partial(full, taught),
    }
    if model:
        other = TTTReader.from_pretrained(model, adapter=None)
        ways[Path(model).name] = partial(passage, PassageReader(other.model, other.tokenizer, skilled=False))
    return ways


def from_file(path: Path, name: str) -> Way:
    """Answers of one set that were written before: {"set", "id", "text", "evidence": [[start, end], ...]}, and perhaps
    seconds, confidence and answered."""
    found = {row["id"]: row for row in rows(path) if row["set"] == name}

    def given(reader: TTTReader, memory: Memory, question: Question) -> Answer | None:
        if question.id not in found:
            return None
        row, text = found[question.id], memory.text or ""
        evidence = tuple(Evidence(text[start:end], None, start, end, 0.0) for start, end in row["evidence"])
        more = {key: row[key] for key in ("seconds", "confidence", "answered") if key in row}
        return Answer(row["text"], "lookup", evidence, **more)

    return given


def words(text: str) -> list[str]:
    """As SQuAD compares answers: lower case, without punctuation and articles (typographic quotes and dashes count)."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation + "“”‘’«»–—¿¡")
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def f1(answer: str, gold: str) -> float:
    ours, theirs = words(answer), words(gold)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def exact(answer: str, gold: str) -> float:
    return float(words(answer) == words(gold))


def brief(answer: str, gold: str) -> float:
    """Whether the gold answer's words stand in a row in an answer of at most BRIEF words."""
    inside = f" {' '.join(words(gold))} " in f" {' '.join(words(answer))} "
    return float(inside and len(answer.split()) <= BRIEF)


def rouge_l(answer: str, gold: str) -> float:
    return ROUGE.score(gold, answer)["rougeL"].fmeasure


MEASURES = {"exact": exact, "f1": f1, "rouge_l": rouge_l, "brief": brief}


def overlap(evidence: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> bool:
    return any(start < last and first < end for start, end in evidence for first, last in spans)


def scored(question: Question, answer: Answer) -> dict[str, Any]:
    """The answer with its scores: best of the gold answers, 0 where it was refused; None where nothing answers."""
    # An older release's answers have neither. They have no evidence where the document does not say.
    row = {"confidence": None, "answered": bool(answer.evidence)} | asdict(answer)
    row["evidence"] = [[found.start, found.end] for found in answer.evidence]
    about = {"id": question.id, "document": question.document, "kind": question.kind, "question": question.asked}
    kept = {name: row[name] for name in ("text", "answered", "confidence", "evidence", "seconds")}
    scores: dict[str, Any] = dict.fromkeys(MEASURES)
    if question.answers:
        scores = {
            name: row["answered"] * max(measure(answer.text, gold) for gold in question.answers)
            for name, measure in MEASURES.items()
        }
    for top in TOPS:
        scores[f"evidence_{top}"] = overlap(row["evidence"][:top], question.spans) if question.spans else None
    return about | {"answers": question.answers} | kept | scores


def calibration_error(pairs: Sequence[tuple[float, bool]]) -> float:
    """Expected calibration error of (confidence, whether right): how far both are apart in a bin, by its size."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in pairs:
        bins.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, right))
    return sum(abs(sum(right - sure for sure, right in some)) for some in bins.values()) / len(pairs)


def figures(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table; None where there is nothing to measure.

    `evidence_1`, `evidence_3`: the first, or one of the first three pieces of evidence overlaps a gold span. exact, f1
    and rouge_l are means, best of the gold answers, refusals 0. `brief`: the gold answer stands in at most 20 words.
    `words` and `seconds` are medians. `refused`: the answer says that the document does not say. `sure_wrong`: share of
    questions answered with a confidence of SURE and an F1 below RIGHT. `calibration`: expected error of the confidence
    of what was not refused. Nothing is right where the document does not say.
    """
    evidence = any(row["evidence"] for row in found)
    made = [row for row in found if row["answered"]]
    known = [(row["confidence"], (row["f1"] or 0.0) >= RIGHT) for row in made if row["confidence"] is not None]

    def share(name: str) -> float | None:
        values = [row[name] for row in found if row[name] is not None]
        return float(mean(values)) if values else None

    return {
        "questions": len(found),
        **{f"evidence_{top}": share(f"evidence_{top}") if evidence else None for top in TOPS},
        **{name: share(name) for name in MEASURES},
        "words": median(len(row["text"].split()) for row in made) if made else None,
        "refused": 1 - len(made) / len(found) if found else None,
        "sure_wrong": sum(sure >= SURE and not right for sure, right in known) / len(found) if known else None,
        "calibration": calibration_error(known) if known else None,
        "seconds": median(row["seconds"] for row in found) or None if found else None,
    }


def table_line(cells: Iterable[Any]) -> str:
    def written(cell: Any) -> str:
        if isinstance(cell, float):
            return f"{cell:.3f}" if cell < 10 else f"{cell:.1f}"
        return "–" if cell is None else str(cell).replace("_", " ")

    return f"| {' | '.join(map(written, cells))} |"


def drawn(asked: QuestionSet, count: int | None) -> list[Question]:
    """`count` questions, always the same, in the set's order."""
    every = range(len(asked.questions))
    kept = every if count is None else sorted(random.Random(SEED).sample(every, min(count, len(every))))
    return [asked.questions[i] for i in kept]


def taken_in(reader: TTTReader, asked: QuestionSet, document: str) -> Memory:
    source = asked.texts[document]
    if isinstance(source, Path):
        return reader.ingest(source, learn=False)
    return reader.ingest(text=source, name=document, learn=False)


def answered(
    reader: TTTReader, asked: QuestionSet, questions: Sequence[Question], ways: dict[str, Way], name: str
) -> list[dict[str, Any]]:
    """Every answer of every way, with its scores, question by question."""
    found = []
    with tqdm(total=len(questions), desc=name, disable=None) as bar:
        for document, group in groupby(questions, key=lambda question: question.document):
            memory = taken_in(reader, asked, document)
            for question in group:
                for way, answer_by in ways.items():
                    answer = answer_by(reader, memory, question)
                    if answer is not None:
                        found.append({"set": name, "way": way, **scored(question, answer)})
                bar.update()
    return found


def show(reader: TTTReader, asked: QuestionSet, found: Sequence[dict[str, Any]]) -> None:
    """Questions and answers for a person to read."""
    by_id, name, text = {question.id: question for question in asked.questions}, "", ""
    for key, group in groupby(found, key=lambda row: row["id"]):
        question = by_id[key]
        if question.document != name:
            name, text = question.document, taken_in(reader, asked, question.document).text or ""
        print(f"\n[{question.document}{', ' * bool(question.kind)}{question.kind}] {question.asked}")
        print(f"  wanted: {' / '.join(question.answers) or '(the document does not say)'}")
        if question.evidence:
            print(f"    from: {question.evidence}")
        for row in group:
            sure = "" if row["confidence"] is None else f" ({row['confidence']:.2f})"
            print(f"  {row['way']}{sure}{'' if row['answered'] else ', refused'}: {row['text']}")
            for start, end in row["evidence"][: TOPS[-1]]:
                print(f"    from: {' '.join(text[start:end].split())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, nargs="?", help="the folder with questions/")
    parser.add_argument("--sets", nargs="*", choices=SETS, metavar="SET", help=f"of {', '.join(SETS)} (default: all)")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=["ask"], metavar="WAY")
    parser.add_argument("--reader", default="smollm2-135m", metavar="NAME", help="the model that reads and answers")
    parser.add_argument("--skill", type=Path, metavar="FILE", help="what `passage` and `full` answer with")
    parser.add_argument("--model", metavar="NAME", help="another model: a registry name, folder or GGUF file")
    parser.add_argument("--answers", type=Path, action="append", default=[], metavar="FILE", help="another checkout's")
    parser.add_argument("--own", type=Path, metavar="FOLDER", help="documents NAME.md beside questions.jsonl")
    parser.add_argument("--count", type=int, help="questions of each set (default: all)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--write", type=Path, metavar="FILE", help="the answers of the first way, for --answers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, questions and answers")
    options = parser.parse_args()
    if options.shared is None and options.own is None:
        parser.error("give the folder that has questions/, or --own FOLDER")
    if options.write and not options.ways:
        parser.error("--write writes the answers of the first of --ways: name one")
    torch.set_num_threads(options.threads)
    reader = TTTReader.from_pretrained(options.reader)
    ways: dict[str, Way] = {"ask": ask}
    if options.model or set(options.ways) - {"ask"}:
        ways |= reading_ways(reader, options.skill, options.model)
    ways = {name: way for name, way in ways.items() if name in options.ways or name == Path(options.model or "").name}
    wanted = options.sets if options.sets is not None else [] if options.own else list(SETS)
    every_set = {name: SETS[name](options.shared) for name in wanted}
    if options.own:
        every_set["own"] = own(options.own, options.shared)
    lines, found = [], []
    for name, asked in every_set.items():
        here = ways | {path.name: from_file(path, name) for path in options.answers}
        new = answered(reader, asked, drawn(asked, options.count), here, name)
        found += new
        if name == "own":
            show(reader, asked, new)
            continue
        for way in here:
            line = {"set": name, "way": way, **figures([row for row in new if row["way"] == way])}
            if not lines:
                print(f"{table_line(line)}\n{table_line(['---'] * len(line))}")
            print(table_line(line.values()), flush=True)
            lines.append(line)
    if options.write:
        kept = ("set", "id", "text", "evidence", "seconds", "confidence", "answered")
        first = [{name: row[name] for name in kept} for row in found if row["way"] == options.ways[0]]
        options.write.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in first), "utf-8")
    if options.json:
        result = circumstances(("ttt-docs", "torch")) | {
            "arguments": [Path(a).name if "/" in a else a for a in sys.argv[1:]],
            "limits": {"right": RIGHT, "sure": SURE, "here": HERE, "brief": BRIEF, "bins": BINS},
            "figures": lines,
            "answers": found,
        }
        options.json.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    try:
        main()
    except (TTTDocsError, OSError) as error:
        raise SystemExit(f"Error: {error}") from None
