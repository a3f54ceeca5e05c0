"""A corpus on Ray: actors hold the model, groups of documents are their tasks, memories go straight to the store.

An actor that dies is started again and its group given out anew; what it had stored by then is not read again. No actor
has more than `WAITING` groups before it, so the driver holds names and outcomes, never texts or memories.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ttt_docs.corpus.work import AHEAD, Outcome, Settings, read_sources
from ttt_docs.errors import UsageError
from ttt_docs.memory.store import MemoryStore
from ttt_docs.reader import TTTReader

#: Groups given to an actor before it has finished the first of them.
WAITING = 2
#: Times a group is given out before its documents count as failed: a document that kills whoever reads it must not
#: keep the others from being read.
TRIES = 3


class Worker:
    """What runs in an actor's process."""

    def __init__(self, open_reader: Callable[[], TTTReader], store: MemoryStore) -> None:
        self.reader, self.store = open_reader(), store

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
    """As `read_sources`, on `workers` actors. A GPU goes to each where the cluster has one for each.

    Raises UsageError when Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("the engine ray needs Ray: pip install 'ttt-docs[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers else 0
        actor = ray.remote(Worker).options(max_restarts=-1, num_gpus=gpus)
        yield from _run(ray, [actor.remote(open_reader, store) for _ in range(workers)], sources, settings)
    finally:
        if started:
            ray.shutdown()


def _run(ray: Any, actors: Sequence[Any], sources: Sequence[str], settings: Settings) -> Iterator[Outcome]:
    groups = deque((list(group), 1) for group in _groups(sources, len(actors), settings.batch))
    running: dict[Any, tuple[Any, list[str], int]] = {}
    free = deque(actor for _ in range(WAITING) for actor in actors)
    while groups or running:
        while groups and free:
            actor, (group, tries) = free.popleft(), groups.popleft()
            again = settings if tries == 1 else replace(settings, resume=True)
            running[actor.read.remote(group, again)] = actor, group, tries
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor, group, tries = running.pop(done)
        free.append(actor)
        try:
            yield from ray.get(done)
        except ray.exceptions.RayActorError as error:
            if tries < TRIES:
                groups.append((group, tries + 1))
            elif len(group) > 1:  # which of them it was
                groups.extend(([source], TRIES) for source in group)
            else:
                yield Outcome(group[0], "failed", reason=f"the process that read it died {tries} times ({error})")


def _groups(sources: Sequence[str], workers: int, batch: int) -> Iterator[Sequence[str]]:
    """Groups large enough to find documents of similar length in, and small enough that all workers have some."""
    share = -(-len(sources) // (workers * WAITING * batch)) * batch
    size = max(batch, min(AHEAD * batch, share))
    return (sources[first : first + size] for first in range(0, len(sources), size))
