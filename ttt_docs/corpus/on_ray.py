"""A corpus on Ray: actors hold the model, groups of documents are their tasks, memories go straight to the store.

A new actor takes the place of one that dies, and its groups are given out again; what it had stored by then is not read
again. No actor has more than `WAITING` groups before it, and the driver holds names and outcomes only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ttt_docs.corpus.work import AHEAD, Outcome, Settings, read_sources
from ttt_docs.errors import TTTDocsError, UsageError
from ttt_docs.reader import TTTReader
from ttt_docs.store.store import MemoryStore

#: Groups given to an actor before it has finished the first of them.
WAITING = 2
#: Times a group is given out before its documents count as failed: a document that kills whoever reads it must not
#: keep the others from being read.
TRIES = 3


class Worker:
    """What runs in an actor's process."""

    def __init__(self, open_reader: Callable[[], TTTReader], store: MemoryStore, threads: int) -> None:
        torch.set_num_threads(threads)
        self.reader, self.store = open_reader(), store

    def ready(self) -> bool:
        return True

    def read(self, sources: Sequence[str], settings: Settings) -> list[Outcome]:
        return list(read_sources(self.reader, self.store, sources, settings))


def read_on_ray(
    sources: Sequence[str],
    store: MemoryStore,
    open_reader: Callable[[], TTTReader],
    workers: int,
    settings: Settings,
    address: str | None,
) -> Iterator[Outcome]:
    """As `read_sources`, on `workers` actors, which share the cluster's cores evenly. A GPU goes to each where the
    cluster has one for each.

    Raises UsageError when Ray is not installed, TTTDocsError when no actor can be started.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("the engine ray needs Ray: pip install 'ttt-docs[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        there = ray.cluster_resources()
        gpus = 1 if there.get("GPU", 0) >= workers else 0
        threads = max(1, int(there.get("CPU", 1)) // workers)  # each would take all cores of its machine
        actor = ray.remote(Worker).options(num_gpus=gpus)
        yield from _run(ray, lambda: actor.remote(open_reader, store, threads), workers, sources, settings)
    finally:
        if started:
            ray.shutdown()


class _Slot:
    """The place of one actor, and the groups given to it, the one it is at first."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self.failed_starts = 0
        self.renew()

    def renew(self) -> None:
        self.actor = self._start()
        self.ready = self.actor.ready.remote()
        self.given: dict[Any, tuple[list[str], int]] = {}  # what Ray promises -> group, and how many times given out

    def started(self, ray: Any) -> bool:
        try:
            return bool(ray.get(self.ready))
        except ray.exceptions.RayActorError:
            return False

    def give(self, group: list[str], tries: int, settings: Settings) -> None:
        again = settings if tries == 1 else replace(settings, resume=True)
        self.given[self.actor.read.remote(group, again)] = group, tries


def _run(
    ray: Any, start: Callable[[], Any], workers: int, sources: Sequence[str], settings: Settings
) -> Iterator[Outcome]:
    groups = deque((list(group), 1) for group in _groups(sources, workers, settings.batch))
    slots = [_Slot(start) for _ in range(min(workers, len(groups)))]
    while groups or any(slot.given for slot in slots):
        for _ in range(WAITING):
            for slot in slots:
                if groups and len(slot.given) < WAITING:
                    slot.give(*groups.popleft(), settings)
        (done,), _ = ray.wait([promise for slot in slots for promise in slot.given], num_returns=1)
        slot = next(slot for slot in slots if done in slot.given)
        try:
            outcomes = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            # Only what the dead process was at may have killed it; what waited behind that is given out as before.
            (group, tries), *waiting = slot.given.values()
            groups.extendleft(reversed(waiting))
            if slot.started(ray):
                slot.failed_starts = 0
                yield from _again(groups, group, tries, str(error))
            else:
                slot.failed_starts += 1
                groups.appendleft((group, tries))
                if slot.failed_starts == TRIES:
                    raise TTTDocsError(f"no process that reads could be started {TRIES} times: {error}") from None
            slot.renew()
        else:
            del slot.given[done]
            yield from outcomes


def _again(groups: deque[tuple[list[str], int]], group: list[str], tries: int, reason: str) -> Iterator[Outcome]:
    """Gives out a group whose reader died once more; one document that it happens with too often has failed."""
    if tries < TRIES:
        groups.append((group, tries + 1))
    elif len(group) > 1:
        groups.extend(([source], TRIES) for source in group)
    else:
        yield Outcome(group[0], "failed", reason=f"the process that read it died {tries} times ({reason})")


def _groups(sources: Sequence[str], workers: int, batch: int) -> Iterator[Sequence[str]]:
    """Groups large enough to find documents of similar length in, and small enough that all workers have some."""
    share = -(-len(sources) // (workers * WAITING * batch)) * batch
    size = max(batch, min(AHEAD * batch, share))
    return (sources[first : first + size] for first in range(0, len(sources), size))
