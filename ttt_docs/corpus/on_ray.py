"""A corpus on Ray: actors hold the model, groups of documents are their tasks, memories go straight to the store.

A new actor takes the place of one that dies, and the group that it read is given out again. What it had stored by then
is not read again. An actor has one group at a time, and the driver holds names and outcomes only.
"""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ttt_docs.corpus.batches import AHEAD, Outcome, Settings, read_sources
from ttt_docs.errors import TTTDocsError, UsageError
from ttt_docs.reader import TTTReader
from ttt_docs.store.store import MemoryStore

#: Groups that each worker gets at least, where there are enough documents, so that all end at about the same time.
SHARES = 2
#: Times a group is given out before its documents count as failed: a document that kills whoever reads it must not
#: keep the others from being read. After as many failed starts of actors in a row, reading ends.
TRIES = 3
#: Seconds in which the host of a cluster must answer.
ANSWER = 10


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

    Raises UsageError when Ray is not installed, TTTDocsError when no cluster answers or no actor can be started.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("the engine ray needs Ray: pip install 'ttt-docs[ray]'") from None
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        there = ray.cluster_resources()
        gpus = 1 if there.get("GPU", 0) >= workers else 0
        threads = max(1, int(there.get("CPU", 1)) // workers)  # each would take all cores of its machine
        actor = ray.remote(Worker).options(num_gpus=gpus)

        def start() -> tuple[Any, Any]:
            """An actor, and the promise that it has started."""
            worker: Any = actor.remote(open_reader, store, threads)
            return worker, worker.ready.remote()

        yield from _run(ray, start, workers, sources, settings)
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    """Joins the cluster at `address`, or starts one here. Ray itself tries a host that does not answer for minutes, and
    then ends this process: so the host is asked first."""
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address  # as Ray does
    try:
        if found := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or ""):
            socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=ANSWER).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        raise TTTDocsError(
            f"there is no Ray cluster at {address}: {str(error).rstrip('.')}. Start one there with `ray start --head`, "
            "or leave the address out: then a new one is started on this machine"
        ) from error


def _run(
    ray: Any, start: Callable[[], tuple[Any, Any]], workers: int, sources: Sequence[str], settings: Settings
) -> Iterator[Outcome]:
    share = -(-len(sources) // (workers * SHARES * settings.batch))
    size = max(1, min(AHEAD, share)) * settings.batch  # enough to find documents of similar length in
    waiting = deque((list(sources[first : first + size]), 1) for first in range(0, len(sources), size))
    idle = [start() for _ in range(min(workers, len(waiting)))]
    busy: dict[Any, tuple[tuple[Any, Any], list[str], int]] = {}  # by what Ray promises
    failed_starts = 0
    while waiting or busy:
        while waiting and idle:
            (actor, ready), (group, tries) = idle.pop(), waiting.popleft()
            again = settings if tries == 1 else replace(settings, resume=True)
            busy[actor.read.remote(group, again)] = (actor, ready), group, tries
        (done,), _ = ray.wait(list(busy), num_returns=1)
        (actor, ready), group, tries = busy.pop(done)
        try:
            outcomes = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            try:
                ray.get(ready)
            except ray.exceptions.RayActorError:
                failed_starts += 1
                waiting.appendleft((group, tries))
                if failed_starts == TRIES:
                    raise TTTDocsError(f"no process that reads could be started {TRIES} times: {error}") from None
            else:
                failed_starts = 0
                if tries < TRIES:
                    waiting.append((group, tries + 1))
                elif len(group) > 1:  # one of them kills its reader: which?
                    waiting.extend(([source], TRIES) for source in group)
                else:
                    yield Outcome(group[0], "failed", reason=f"the process that read it died {tries} times ({error})")
            if waiting:
                idle.append(start())
        else:
            failed_starts = 0
            idle.append((actor, ready))
            yield from outcomes
