"""The way of a document through the model: text -> tokens -> chunks -> memory; one document, or several in step."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttt_docs.memory.memory import Memory
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.restoring import snapshot
from ttt_docs.text.segments import segments
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ChunkResult, ReadingState


@dataclass(frozen=True)
class ChunkReport:
    """What reading one chunk showed."""

    index: int  # of the chunk, from 0
    tokens: int  # read so far, this chunk included
    loss: float  # nats per token, before the update made from this chunk
    grad_norm: float  # of the fast weights' gradient, before clipping
    clip: float  # factor the gradient was multiplied with
    skipped: bool  # the guard refused the update
    seconds: float


class Track:
    """Tokens and losses of one document being read. Tokens that the model has not read yet are the last of `tokens`."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.tokens = array("i", memory.tokens.tolist())
        self.nll = array("f", memory.nll.tolist())
        self.text: list[str] = []
        self.skipped = memory.skipped

    def waiting(self, position: int) -> int:
        return len(self.tokens) - position

    def piece(self, position: int, count: int) -> Tensor:
        """Token ids [1, count] from `position`."""
        return torch.tensor(self.tokens[position : position + count], dtype=torch.int64).unsqueeze(0)

    def note(self, position: int, nll: Tensor) -> None:
        """Losses [n] of the tokens after `position`; provisional ones are replaced when their chunk is complete."""
        values = array("f", nll.tolist())
        del self.nll[position + 1 :]
        self.nll.extend([0.0] * (position + 1 - len(self.nll)))
        self.nll.extend(values)

    def finish(self, state: ReadingState, row: int = 0) -> Memory:
        """The memory of everything read; the last part of a chunk is scored and stays pending."""
        pending = self.waiting(state.position)
        if pending > 1:
            own = state if state.batch == 1 else state.select([row])
            self.note(state.position, own.score(self.piece(state.position, pending).to(_device(state)))[0])
        return self._memory(state, row, len(self.tokens))

    def so_far(self, state: ReadingState) -> Memory:
        """The memory of the whole chunks read, between two pieces of them; reading can go on."""
        return self._memory(state, 0, min(state.position + 1, len(self.tokens)))

    def _memory(self, state: ReadingState, row: int, tokens: int) -> Memory:
        nll = self.nll[:tokens]
        nll.extend([0.0] * (tokens - len(nll)))
        fast, window = snapshot(state, row)
        text = None if self.memory.text is None else self.memory.text + "".join(self.text)
        return replace(
            self.memory,
            fast=fast,
            window=window,
            position=state.position,
            tokens=torch.tensor(self.tokens[:tokens], dtype=torch.int32),
            nll=torch.tensor(nll, dtype=torch.float32),
            text=text,
            skipped=self.skipped,
            change=None,
            index=None,
        )


def _device(state: ReadingState) -> torch.device:
    return state.model.embed.weight.device


def read_stream(
    state: ReadingState,
    track: Track,
    pieces: Iterable[str],
    tokenizer: Tokenizer,
    skip: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[ChunkReport]:
    """Reads text that comes in pieces, chunk by chunk. Only the tokens and the text are kept in memory.

    The first `skip` tokens were read before. `stop()` is called between two pieces of chunks, where the state can be
    kept; reading ends if it returns true.
    """
    chunk = state.reading.chunk
    for segment in segments(pieces):
        track.text.append(segment)
        ids = tokenizer.encode(segment)
        ids, skip = ids[skip:], max(0, skip - len(ids))
        track.tokens.extend(ids)
        while track.waiting(state.position) > state.slots_left * chunk:
            yield from (told for _, told in _read_chunks(state, [track], state.slots_left))
            if stop():
                return
    rest = (track.waiting(state.position) - 1) // chunk
    if rest > 0:
        yield from (told for _, told in _read_chunks(state, [track], rest))


def _read_chunks(state: ReadingState, tracks: Sequence[Track], count: int) -> Iterator[tuple[int, ChunkReport]]:
    """Reads `count` chunks of every track, each in its row of `state`; yields row and report of every chunk."""
    start, chunk = state.position, state.reading.chunk
    tokens = torch.cat([track.piece(start, count * chunk + 1) for track in tracks]).to(_device(state))
    for i, result in enumerate(state.read(tokens)):
        for row, track in enumerate(tracks):
            track.note(start + i * chunk, result.nll[row])
            track.skipped += int(result.skipped[row])
            yield row, report(result, chunk, row)


def report(result: ChunkResult, chunk: int, row: int) -> ChunkReport:
    return ChunkReport(
        index=result.index,
        tokens=(result.index + 1) * chunk,
        loss=float(result.loss[row]),
        grad_norm=float(result.grad_norm[row]),
        clip=float(result.clip[row]),
        skipped=bool(result.skipped[row]),
        seconds=result.seconds,
    )


def batch_state(model: Decoder, reading: ReadingConfig, count: int) -> ReadingState:
    """A state for reading `count` documents in step.

    On a CPU the prefix of several documents runs one chunk ahead, not a piece: that many rows keep it busy, and short
    documents need no padding.
    """
    state = ReadingState(model, reading, count)
    if count > 1 and not state.kernels.asynchronous:
        state.piece = 1
    return state


def read_batch(
    state: ReadingState, tracks: list[Track], on_chunk: Callable[[int, ChunkReport], None] | None = None
) -> list[Memory]:
    """Reads several documents, whose tokens are all in their tracks, in step: each with fast weights of its own.

    A document that has no whole chunk left gets its memory and leaves the batch. Returns memories in the given order.
    """
    chunk = state.reading.chunk
    memories: dict[int, Memory] = {}
    rows = list(range(len(tracks)))  # which document each row of the state reads
    while rows:
        chunks_left = {d: (tracks[d].waiting(state.position) - 1) // chunk for d in rows}
        done = [d for d in rows if chunks_left[d] <= 0]
        for d in done:
            memories[d] = tracks[d].finish(state, rows.index(d))
        if done:
            keep = [i for i, d in enumerate(rows) if d not in done]
            rows = [rows[i] for i in keep]
            if not rows:
                break
            state = state.select(keep)
        count = min([state.slots_left, *(chunks_left[d] for d in rows)])
        for row, told in _read_chunks(state, [tracks[d] for d in rows], count):
            if on_chunk is not None:
                on_chunk(rows[row], told)
    return [memories[d] for d in range(len(tracks))]
