"""Needles: texts as RULER describes them, and the way through ingest and ask."""

from __future__ import annotations

import re

import pytest

from ttt_docs import UsageError
from ttt_docs.evaluation.needle import TASKS, measure, plot, prose_of, report, sample, score

PROSE = " ".join(f"The ship number {i} left the harbour of the {i * 7}th island before the rain." for i in range(400))
NEEDLE = re.compile(r"One of the special magic (?:number|uuid)s for (\S+) is: (\S+)\.")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_samples(name, depth):
    task, count = TASKS[name], len
    prose = prose_of([PROSE], count, 20_000)
    made = sample(task, 8000, depth, prose, count, seed=3)
    assert made == sample(task, 8000, depth, prose, count, seed=3) != sample(task, 8000, depth, prose, count, seed=4)
    assert 7200 < len(made.text) + len(made.question) <= 8000
    needles = NEEDLE.findall(made.text)
    asked = [value for key, value in needles if key in made.question]
    assert sorted(asked) == sorted(made.expected) and len(asked) == task.values * task.queries
    hidden = task.keys * task.values
    assert len(needles) == hidden if task.haystack != "needles" else len(needles) > 20
    first = made.text.index(made.expected[0]) / len(made.text)
    assert abs(first - depth) < 0.1
    assert ("are all the" in made.question) == (len(made.expected) > 1)


def test_score_counts_what_stands_in_the_answer():
    assert score("AB-1, and 7", ["ab-1", "7"]) == 1 and score("AB-1", ["ab-1", "7"]) == 0.5 and score("", ["7"]) == 0


def test_every_task_is_found_by_looking_up(tiny_reader):
    asked = list(measure(tiny_reader, list(TASKS), [6000], 2, "lookup", [PROSE]))
    assert [one.task for one in asked[::2]] == list(TASKS)
    assert all(one.score == 1 and one.verified and one.taken == "lookup" for one in asked)
    rows = report(asked)
    assert all((row["accuracy"], row["samples"]) == (1, 2) for row in rows["results"])
    assert {(row["task"], row["depth"]) for row in rows["depths"]} == {(task, d) for task in TASKS for d in (0.0, 0.9)}


def test_accuracy_counts_misses(tiny_reader, monkeypatch):
    from ttt_docs.generation.results import Answer

    monkeypatch.setattr(type(tiny_reader), "ask", lambda *_, **__: Answer("1234567", "memory"))
    asked = list(measure(tiny_reader, ["single_1"], [2000], 3, "lookup"))
    assert report(asked)["results"][0]["accuracy"] == 0


def test_prose_and_tasks_must_be_there(tiny_reader):
    with pytest.raises(UsageError, match="--haystack"):
        next(measure(tiny_reader, ["single_2"], [2000], 1, "lookup"))
    with pytest.raises(UsageError, match="single_9"):
        next(measure(tiny_reader, ["single_9"], [2000], 1, "lookup"))


def test_heat_map(tiny_reader, tmp_path):
    pytest.importorskip("matplotlib")
    asked = list(measure(tiny_reader, ["single_1", "multikey_2"], [2000], 2, "lookup"))
    with pytest.raises(UsageError, match="png, svg or pdf"):
        plot(asked, tmp_path / "map.docx")
    plot(asked, tmp_path / "map.svg")
    assert b"<svg" in (tmp_path / "map.svg").read_bytes()
    plot(asked, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
