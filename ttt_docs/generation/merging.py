"""Telling what a document says, from the bottom up: pieces, then merges of what was said about them.

Whatever is written is held against its source (`grounding`). Where a text does not stand there whole, others are
drawn, and the best is taken. A sentence that still does not is replaced: in a merge by one of those that it was made
of, and in what was said about a piece by a sentence of the piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from ttt_docs.generation.extracts import best_quotes, distinct_runs, extract, finished
from ttt_docs.generation.grounding import Grounds, grounds
from ttt_docs.generation.pieces import is_english_prose
from ttt_docs.generation.results import SummarySentence, quote
from ttt_docs.generation.writing import ABSTRACT, MERGE, SENTENCE, Asked, Writer
from ttt_docs.memory.memory import Memory
from ttt_docs.text.index import PassageIndex, terms
from ttt_docs.text.names import Name
from ttt_docs.text.sentences import Span, sentences

#: Texts that are drawn where the likeliest one does not stand in its source, and their temperature.
DRAWN, TEMPERATURE = 3, 0.5
#: Texts that one merge is made of, and words of a merge that is merged again.
TOGETHER, BETWEEN = 7, 60
#: Words of what is said about a piece, at least and at most, and at most with a focus. It has at most one word for so
#: many of the piece.
LEAST, MOST, FOCUSED, SHORTER = 30, 110, 60, 3
#: What was said is merged where it has more than this many times the words that are wanted.
TOO_LONG = 1.3


@dataclass(frozen=True)
class Told:
    """What was said about text[start:end]."""

    span: Span
    sentences: tuple[SummarySentence, ...]

    @property
    def text(self) -> str:
        return " ".join(one.text for one in self.sentences)

    @property
    def words(self) -> int:
        return len(self.text.split())


@dataclass(frozen=True)
class Unit:
    """Pieces of a document that get a text of so many words, or one sentence."""

    pieces: tuple[Span, ...]
    words: int
    sentence: bool = False

    @property
    def merged_words(self) -> int:
        """Words of its last merge; a sentence is made of a longer text."""
        return max(self.words, BETWEEN) if self.sentence else self.words


class Task(NamedTuple):
    """Something to write, the source it must stand in, and what takes the place of a sentence that does not."""

    source: Span
    asked: Asked
    spare: Callable[[], Sequence[SummarySentence]]
    merge: bool = True  # of what was said, so that lines of the source may help


class Draft(NamedTuple):
    lines: list[tuple[str, Grounds]]

    @property
    def share(self) -> float:
        """Share of its sentences that stand in their source; 0 of none."""
        return sum(found.supported for _, found in self.lines) / max(len(self.lines), 1)


@dataclass(frozen=True)
class Teller:
    """A writer, and the memory it writes about. `planned` and `done` are told how many texts are and were written."""

    writer: Writer
    memory: Memory
    index: PassageIndex
    names: Sequence[Name]
    focus: str
    weights: dict[str, float]  # of the focus' terms
    seed: int
    planned: Callable[[int], object]
    done: Callable[[int], object]

    def tell(self, units: Sequence[Unit]) -> list[Told]:
        """What there is to say about each unit. Whatever does not wait for something else is written together."""
        tasks = [self._of_piece(span, unit) for unit in units for span in unit.pieces]
        told = iter(self._written(tasks))
        held = {i: [next(told) for _ in unit.pieces] for i, unit in enumerate(units)}
        while groups := {i: found for i, unit in enumerate(units) if (found := self._groups(held[i], unit))}:
            asked = [
                (some, units[i].merged_words if len(found) == 1 else BETWEEN)
                for i, found in groups.items()
                for some in found
            ]
            told = iter(self._written([_merge(some, MERGE, words) for some, words in asked]))
            held |= {i: [next(told) for _ in found] for i, found in groups.items()}
        whole = [_joined(some) for some in held.values()]
        last = [i for i, unit in enumerate(units) if unit.sentence and len(whole[i].sentences) > 1]
        tasks = [_merge([whole[i]], SENTENCE, units[i].words) for i in last]
        for i, one in zip(last, self._written(tasks), strict=True):
            whole[i] = replace(one, sentences=one.sentences[:1])
        return whole

    def _groups(self, told: Sequence[Told], unit: Unit) -> list[Sequence[Told]]:
        """Runs of what was said, of much the same size, to be merged; none where it is short enough, or cannot be."""
        told = [one for one in told if one.sentences]
        if len(told) < 2 or sum(one.words for one in told) <= TOO_LONG * unit.merged_words:
            return []
        for count in range(ceil(len(told) / TOGETHER), len(told)):
            runs: list[Sequence[Told]] = [
                told[len(told) * i // count : len(told) * (i + 1) // count] for i in range(count)
            ]
            if all(len(run) == 1 or self.writer.fits(_lines(run)) for run in runs):
                return runs
        return []

    def _of_piece(self, span: Span, unit: Unit) -> Task:
        text = self.index.text[slice(*span)]
        most = max(len(text.split()) // SHORTER, 10)
        words = min(max(ceil(unit.words / len(unit.pieces)), LEAST), FOCUSED if self.focus else MOST, most)
        request = self.focus or (SENTENCE if unit.sentence and len(unit.pieces) == 1 else ABSTRACT)

        def spare() -> list[SummarySentence]:
            return [extract(self.memory, one) for one in best_quotes(self.index, span, self.names, self.weights)]

        return Task(span, Asked(text, request, words), spare, merge=False)

    def _written(self, tasks: Sequence[Task]) -> list[Told]:
        """Each task done: its likeliest text, or the best of several where that does not stand in the source.

        A table or a list is not told: what stands there speaks for itself.
        """
        asked = [i for i, task in enumerate(tasks) if task.merge or is_english_prose(task.asked.text)]
        drafts = {i: [Draft([])] for i in range(len(tasks))}
        for i, draft in zip(asked, self._drafts([tasks[i] for i in asked], 0.0), strict=True):
            drafts[i] = [draft]
        again = [i for i in asked if drafts[i][0].share < 1 and not (self.focus and not drafts[i][0].lines)]
        drawn = self._drafts([self._helped(tasks[i], drafts[i][0]) for i in again for _ in range(DRAWN)], TEMPERATURE)
        for number, draft in enumerate(drawn):
            drafts[again[number // DRAWN]].append(draft)
        best = [max(drafts[i], key=lambda draft: draft.share) for i in range(len(tasks))]
        return [self._whole(task, draft) for task, draft in zip(tasks, best, strict=True)]

    def _drafts(self, tasks: Sequence[Task], temperature: float) -> Iterator[Draft]:
        self.planned(len(tasks))
        left = iter(tasks)
        for texts in self.writer.write([task.asked for task in tasks], temperature, self.seed, bool(self.focus)):
            self.done(len(texts))
            for text in texts:
                source, whole = next(left).source, " ".join(finished(text).split())
                lines = [whole[a:b] for a, b in sentences(whole)] if distinct_runs(whole) >= 0.9 else []
                yield Draft([(line, grounds(self.index, line, source)) for line in lines])

    def _helped(self, task: Task, draft: Draft) -> Task:
        """A merge with the places of the source that its doubtful sentences come nearest to, as far as they fit."""
        if not task.merge:
            return task
        places = {span: None for _, found in draft.lines if not found.supported for span in found.spans}
        lines = [task.asked.text, *(" ".join(self.index.text[slice(*span)].split()) for span in places)]
        while len(lines) > 1 and not self.writer.fits("\n".join(lines)):
            lines.pop()
        return task._replace(asked=task.asked._replace(text="\n".join(lines)))

    def _nearest(self, line: str, spare: Sequence[SummarySentence]) -> SummarySentence | None:
        """The one that shares the most words with a line; the first of several."""
        wanted = set(terms(line, self.index.language))
        return max(spare, key=lambda one: len(wanted & set(terms(one.text, self.index.language))), default=None)

    def _whole(self, task: Task, draft: Draft) -> Told:
        """The draft's sentences with their evidence, and others where they have none."""
        made: list[SummarySentence] = []
        spare: list[SummarySentence] | None = None
        room = max(task.asked.words, LEAST) * TOO_LONG
        for line, found in draft.lines:
            if found.supported:
                evidence = tuple(quote(self.memory, *span, found.share) for span in found.spans)
                made.append(SummarySentence(line, evidence, True))
                continue
            spare = list(task.spare()) if spare is None else spare
            near = self._nearest(line, spare)
            if near is not None:
                spare.remove(near)
                made += [near] if near not in made else []
        if not made and not (self.focus and not draft.lines):
            for one in task.spare():
                if not made or sum(len(other.text.split()) for other in (*made, one)) <= room:
                    made.append(one)
            made.sort(key=lambda one: one.evidence[0].start if one.evidence else 0)
        return Told(task.source, tuple(made))


def _joined(told: Sequence[Told]) -> Told:
    """All that was said; what was said before is left out."""
    said = dict.fromkeys(sentence for one in told for sentence in one.sentences)
    return Told((told[0].span[0], told[-1].span[1]), tuple(said))


def _merge(told: Sequence[Told], request: str, words: int) -> Task:
    whole = _joined(told)
    firsts = [one.sentences[0] for one in told if one.sentences]
    others = [sentence for sentence in whole.sentences if sentence not in firsts]
    return Task(whole.span, Asked(_lines(told), request, words), lambda: [*firsts, *others])


def _lines(told: Sequence[Told]) -> str:
    return "\n".join(one.text for one in told if one.sentences)
