"""Needle tests, run as a user would: ingest the text, then ask."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from ttt_docs.errors import UsageError
from ttt_docs.evaluation.haystack import TASKS, prose_of, sample, score
from ttt_docs.figures import new_figure, save_figure

if TYPE_CHECKING:
    from ttt_docs.lookup.router.routing import AskRoute
    from ttt_docs.reader import TTTReader

#: Bands of depth in tables and pictures.
BANDS = 10


class Asked(BaseModel):
    """One question of a needle test and how it went."""

    task: str
    length: int  # tokens of text and question, at most
    route: Literal["auto", "memory", "lookup"]
    depth: float  # of the needle: 0 at the start of the text, 1 at its end
    taken: str  # the route that was taken
    score: float  # share of the expected values that stand in the answer
    verified: bool
    ingest_seconds: float
    seconds: float  # of `ask`, the index included


def measure(
    reader: TTTReader,
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: int,
    route: AskRoute,
    haystack: Iterable[str] = (),
    seed: int = 0,
) -> Iterator[Asked]:
    """Asks `samples` questions for each task and length, with needles at depths spread evenly from start to end.

    `haystack` are texts for the tasks in prose. The text is read into fast weights for the route `memory` only, else
    `ingest(learn=False)` takes it.

    Raises UsageError for an unknown task, or one in prose without `haystack`.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise UsageError(f"there is no task {', '.join(unknown)}: choose from {', '.join(TASKS)}")

    def count(text: str) -> int:
        return len(reader.tokenizer.encode(text))

    prose, in_prose = None, [task for task in tasks if TASKS[task].haystack == "prose"]
    if in_prose:
        prose = prose_of(list(haystack), count, 2 * max(lengths))
        if not prose:
            raise UsageError(
                f"{', '.join(in_prose)} hide needles in prose: give texts to hide them in (--haystack FILE)"
            )
    for length in lengths:
        for task in tasks:
            depths = [0.5] if samples == 1 else [i / (samples - 1) for i in range(samples)]
            for i, depth in enumerate(depths):
                # Each sample has a seed of its own: it is the same whatever else is measured with it.
                own_seed = random.Random(f"{seed} {task} {length} {i}").getrandbits(62)
                hidden = sample(TASKS[task], length, depth, prose, count, own_seed)
                began = time.perf_counter()
                memory = reader.ingest(text=hidden.text, learn=route == "memory", progress=False)
                ingested = time.perf_counter()
                answer = reader.ask(memory, hidden.question, route=route)
                seconds = time.perf_counter() - ingested
                yield Asked(
                    task=task,
                    length=length,
                    route=route,
                    depth=depth,
                    taken=answer.route,
                    score=score(answer.text, hidden.expected),
                    verified=answer.verified,
                    ingest_seconds=ingested - began,
                    seconds=seconds,
                )


def report(asked: Sequence[Asked]) -> dict[str, Any]:
    """`results`, one row for each task, length and route; `depths`, the same in bands of depth."""
    groups: dict[tuple[str, int, str], list[Asked]] = {}
    for one in asked:
        groups.setdefault((one.task, one.length, one.route), []).append(one)
    results, depths = [], []
    for (task, length, route), group in groups.items():
        named = {"task": task, "length": length, "route": route}
        row = {
            "samples": len(group),
            "accuracy": fmean(one.score for one in group),
            "seconds_per_question": fmean(one.seconds for one in group),
            "slowest_seconds": max(one.seconds for one in group),
            "ingest_seconds": fmean(one.ingest_seconds for one in group),
            "verified": fmean(one.verified for one in group),
        }
        results.append(named | row)
        for band in range(BANDS):
            inside = [one.score for one in group if min(int(one.depth * BANDS), BANDS - 1) == band]
            if inside:
                depths.append(named | {"depth": band / BANDS, "samples": len(inside), "accuracy": fmean(inside)})
    return {"results": results, "depths": depths}


def plot(asked: Sequence[Asked], path: Path) -> None:
    """A heat map for each task: accuracy by length (across) and depth (down). Raises UsageError without matplotlib."""
    rows = report(asked)["depths"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    figure = new_figure((1.2 + 1.1 * len(tasks) * max(1.0, len(lengths) / 2), 3.6))
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for panel, task in zip(panels, tasks, strict=True):
        grid = [[float("nan")] * len(lengths) for _ in range(BANDS)]
        for row in rows:
            if row["task"] == task:
                grid[round(row["depth"] * BANDS)][lengths.index(row["length"])] = row["accuracy"]
        image = panel.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        panel.set_title(task, fontsize=9)
        panel.set_xticks(range(len(lengths)), [f"{length // 1024}K" for length in lengths], fontsize=8)
        panel.set_yticks(range(BANDS), [f"{100 * band // BANDS}%" for band in range(BANDS)], fontsize=8)
    panels[0].set_ylabel("depth of the needle")
    figure.supxlabel("tokens", fontsize=9)
    figure.colorbar(image, ax=list(panels), label="accuracy")
    save_figure(figure, path)
