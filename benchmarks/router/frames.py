"""More training questions, made of frames and word lists (frames.json).

The labelled set says how people ask; the frames say which words may stand where: "How convincing is it?" asks for a
judgement, "How heavy is it?" for a number. They are for training only, and never say what a template says.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

from make_questions import HERE, SEED, templates

FILLS = 12  # questions made of a frame with word lists, at most
BOOKISH = ("book", "book", "report")  # where a frame speaks of a person
DOMAINS = ("book", "book", "contract", "report", "report", "paper", "code", "manual")


def frame_questions() -> list[dict[str, Any]]:
    """Rows with question, label, template (the frame), and `bare`: the text with slots that say nothing."""
    frames = json.loads((HERE / "frames.json").read_text("utf-8"))
    slots = json.loads((HERE / "slots.json").read_text("utf-8"))
    words = {name: text.split("|") for name, text in frames["words"].items()}
    taken = {_plain(template["text"]) for template in templates()}
    rows: list[dict[str, Any]] = []
    for label in ("whole", "lookup"):
        for number, frame in enumerate(frames[label]):
            generator = random.Random(f"{SEED} {frame}")
            for text in _filled(frame, words, generator):
                if _plain(text) in taken:
                    continue
                taken.add(_plain(text))
                domain = generator.choice(BOOKISH if "{person" in frame else DOMAINS)
                question = re.sub(r"\{(\w+)\}", lambda slot: generator.choice(slots[domain][slot[1]]), text)  # noqa: B023
                rows.append(
                    {
                        "question": _as_typed(question, generator),
                        "label": label,
                        "template": f"frame-{label}-{number:03}",
                        "bare": bare(text),
                    }
                )
    return rows


def bare(text: str) -> str:
    """A template or frame with a name that says nothing in place of its slots."""
    text = re.sub(r"\{(?!part)\w+\}", "Xxx", text).replace("{part}", "page 7")
    return "x " + text if text.startswith("Xxx") else text


def _filled(frame: str, words: dict[str, list[str]], generator: random.Random) -> list[str]:
    """The frame with words from its lists; the slots of slots.json stay."""
    lists = {
        name: generator.sample(words[name], len(words[name]))
        for name in re.findall(r"\{(\w+)\}", frame)
        if name in words
    }
    if not lists:
        return [frame]
    count = min(FILLS, max(map(len, lists.values())))
    texts = []
    for i in range(count):
        turn = iter(range(i, i + frame.count("{")))  # a list that occurs twice gives two words
        text = re.sub(
            r"\{(\w+)\}",
            lambda slot: lists[slot[1]][next(turn) % len(lists[slot[1]])] if slot[1] in lists else slot[0],  # noqa: B023
            frame,
        )
        texts.append(re.sub(r"\{a\}(?= [aeiou])", "an", text).replace("{a}", "a"))
    return texts


def _plain(text: str) -> str:
    """What two texts share that say the same with other slots."""
    return re.sub(r"\W+", " ", re.sub(r"\{(?!part)\w+\}", "x", text).lower()).strip()


def _as_typed(question: str, generator: random.Random) -> str:
    way = generator.random()
    question = question.lower() if way < 0.25 else question[0].upper() + question[1:]
    return question.rstrip("?.") if way < 0.1 or way > 0.9 else question
