"""Writes questions.jsonl, the router's labelled set, from the templates and the words that fill them.

    python benchmarks/router/make_questions.py

A template belongs to one half, so that the phrasing of the held-out half was never seen in training. Each kind of
question is shared out evenly. About a third of the questions are written as people type: lower case, no question mark,
a slip of the pen.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SEED = 20
FILLS = 2  # questions made of a template with slots, at most
#: Templates of the second round are shared out by themselves, so that those of the first stay in their half.
#: File -> label. The files got their names when questions on the whole went to the memory.
FILES = {"lookup": "lookup", "memory": "whole", "lookup-2": "lookup", "memory-2": "whole"}
DOMAINS = ("book", "contract", "report", "paper", "code", "manual")


def templates() -> list[dict[str, Any]]:
    """All templates, each with label, kind, domains and half ("train" or "test")."""
    found: list[dict[str, Any]] = []
    for file in FILES:
        lines = [line for line in (HERE / f"{file}.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
        for number, line in enumerate(lines):
            kind, domains, text = (part.strip() for part in line.split("|"))
            found.append(
                {
                    "id": f"{file}-{number:03}",
                    "file": file,
                    "label": FILES[file],
                    "kind": kind,
                    "domains": DOMAINS if domains == "any" else tuple(domains.split()),
                    "text": text,
                }
            )
    generator = random.Random(SEED)
    for file, kind in sorted(
        {(t["file"], t["kind"]) for t in found}, key=lambda one: (list(FILES).index(one[0]), one[1])
    ):
        group = [t for t in found if (t["file"], t["kind"]) == (file, kind)]
        generator.shuffle(group)
        for place, template in enumerate(group):
            template["half"] = "train" if place % 2 else "test"
    return found


def questions() -> list[dict[str, str]]:
    slots = json.loads((HERE / "slots.json").read_text("utf-8"))
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for template in templates():
        generator = random.Random(f"{SEED} {template['id']}")
        domains = generator.sample(template["domains"], len(template["domains"]))
        for turn in range(FILLS if "{" in template["text"] else 1):
            domain = domains[turn % len(domains)]
            question = re.sub(r"\{(\w+)\}", lambda slot: generator.choice(slots[domain][slot[1]]), template["text"])  # noqa: B023
            question = as_typed(question[0].upper() + question[1:] if turn == 0 else question, generator)
            if question not in seen:
                seen.add(question)
                rows.append(
                    {
                        "question": question,
                        "label": template["label"],
                        "kind": template["kind"],
                        "domain": domain,
                        "template": template["id"],
                        "half": template["half"],
                    }
                )
    return rows


def as_typed(question: str, generator: random.Random) -> str:
    way = generator.random()
    if way < 0.12:
        return question.lower()
    if way < 0.2:
        return question.rstrip("?.")
    if way < 0.28:
        return question.lower().rstrip("?.")
    if way < 0.34:
        words = [match for match in re.finditer(r"\b[a-z]{6,}\b", question)]
        if words:
            at = generator.choice(words).start() + generator.randint(1, 3)
            return question[:at] + question[at + 1] + question[at] + question[at + 2 :]
    return question


if __name__ == "__main__":
    rows = questions()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / "questions.jsonl").write_text(lines, "utf-8")
    print(f"{len(rows)} questions of {len({row['template'] for row in rows})} templates")
