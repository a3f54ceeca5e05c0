"""TTTReader, the one class most users touch: it joins documents, model, memory and generation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from pydantic import ValidationError
from tqdm import tqdm

from ttt_docs.documents import Document
from ttt_docs.documents.load import DEFAULT_MAX_BYTES
from ttt_docs.errors import MemoryMismatchError, ReadingInterrupted, UsageError
from ttt_docs.generation.chat import answer_from_memory, continue_text, converse
from ttt_docs.generation.reply import Conversation, Reply
from ttt_docs.generation.results import Answer, Summary
from ttt_docs.generation.sampling import sampling_of
from ttt_docs.generation.summary import Length, summarize
from ttt_docs.io import Interrupt
from ttt_docs.lookup.answer import answer_from_text
from ttt_docs.lookup.router.routing import AskRoute, chosen_route
from ttt_docs.lookup.stored import indexed
from ttt_docs.memory.memory import Memory
from ttt_docs.model.config import InnerRule, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.chunks import ChunkReport, Track, batch_state, expand, fits, read_batch, read_stream, state_of
from ttt_docs.reading.intake import Source, after, open_source, renamed, unfinished, with_document
from ttt_docs.reading.resume import Keeping
from ttt_docs.store.store import MemoryStore
from ttt_docs.text.segments import segments
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.adapter import SHIPPED, adapted, base_of, chosen_adapter, is_adapter
from ttt_docs.weights.converted import derived_fingerprint, load_checkpoint, reading_of
from ttt_docs.weights.loading import build_decoder, device_of, dtype_of, retrofit
from ttt_docs.weights.registry import advice, full_name, resolve

OnChunk = Callable[[ChunkReport], None]

#: The retrofit's inner loop: of the rules measured in docs/benchmarks.md the best for a model not meta-trained.
RETROFIT = {"inner_rule": "normalized", "inner_lr": 0.3}


def reader_for(memory: Memory, open_reader: Callable[..., TTTReader]) -> TTTReader:
    """The reader that a memory belongs to: `open_reader` opens its model, given more of what `from_pretrained` takes.

    How many blocks a retrofit gave fast weights is for the memory to say, and whether it was read with the adapter of
    the package. Raises MemoryMismatchError for another model's memory.
    """
    same = {"suffix_blocks": len(memory.fast) or None, "sinks": memory.reading.sinks}
    reader = open_reader(**same)
    if reader.fingerprint != memory.fingerprint:
        untrained = open_reader(**same, adapter=None)
        if untrained.fingerprint == memory.fingerprint:
            return untrained
    reader.check(memory)
    return reader


class TTTReader:
    """Reads documents into memories and answers from them. Make one with `from_pretrained`; it holds no document."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, reading: ReadingConfig, *, name: str, fingerprint: str
    ) -> None:
        self.model, self.tokenizer, self.reading = model, tokenizer, reading
        self.name, self.fingerprint = name, fingerprint

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "smollm2-135m",
        *,
        adapter: str | os.PathLike[str] | None = SHIPPED,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        window: int | None = None,
        chunk: int | None = None,
        inner_rule: InnerRule | None = None,
        inner_lr: float | None = None,
        inner_clip: float | None = None,
        suffix_blocks: int | None = None,
        sinks: int | None = None,
        learn: bool = True,
    ) -> TTTReader:
        """A reader for a registry name, a local folder or GGUF file, or a Hugging Face id.

        A pre-trained model that never saw TTT is retrofitted (METHOD section 6): its last `suffix_blocks` (8) blocks
        get fast weights and its first `sinks` (4) tokens are kept. `dtype` (None: bfloat16 where the hardware has it)
        is the products'; fast weights are always float32. `window` and `chunk` are in tokens (2048 and 1024 for a
        retrofit, what it was trained with otherwise). `learn=False` reads with the window alone.

        `adapter` is a file that `ttt-docs train` made for this model: its weights take the place of the retrofit, and
        it reads as it was trained to, unless parameters say otherwise. For the default model one comes with the package
        (docs/model-card.md) and is used unless `suffix_blocks` or `sinks` ask for another retrofit; None switches it
        off. Given as `name`, an adapter opens the model it names as its base, if that is in the registry.

        Raises:
            CheckpointError: weights that cannot be found, downloaded or understood.
            UsageError: parameters that cannot work together.
        """
        where = device_of(device)
        numbers = dtype_of(dtype, where)
        base: str | os.PathLike[str] = name
        if adapter in (None, SHIPPED) and is_adapter(name):
            adapter, base = name, base_of(name)
        checkpoint = load_checkpoint(resolve(Path(base) if isinstance(base, os.PathLike) else base))
        config, state, fingerprint = checkpoint.config, checkpoint.state, checkpoint.fingerprint
        defaults: dict[str, Any] = {"window": config.window or 2048, "chunk": 1024, "sinks": config.sinks}
        defaults |= reading_of(checkpoint)
        trained = chosen_adapter(adapter, str(base), checkpoint, suffix_blocks, sinks)
        if trained is not None:
            state, fingerprint = adapted(checkpoint, trained)
            config, defaults = trained.config, trained.reading.model_dump(exclude={"learn"})
        if not config.suffix_blocks and not config.post_norm and trained is None:  # a baseline stays what it is
            config, state = retrofit(
                config,
                state,
                min(8, config.blocks) if suffix_blocks is None else suffix_blocks,
                4 if sinks is None else sinks,
            )
            fingerprint = derived_fingerprint(fingerprint, config)
            defaults |= RETROFIT | {"sinks": config.sinks}
        elif suffix_blocks not in (None, config.suffix_blocks):
            raise UsageError(
                f"{trained.path if trained else name} was trained with {config.suffix_blocks} suffix blocks: "
                "leave suffix_blocks out"
            )
        chosen = {
            "window": window,
            "chunk": chunk,
            "inner_rule": inner_rule,
            "inner_lr": inner_lr,
            "inner_clip": inner_clip,
            "sinks": sinks,
        }
        if inner_rule == "sgd" and inner_lr is None:
            chosen["inner_lr"] = 1.0
        try:
            reading = ReadingConfig(**defaults | {k: v for k, v in chosen.items() if v is not None}, learn=learn)
        except ValidationError as error:
            raise UsageError(
                "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            ) from error
        model = build_decoder(config, state, where, numbers)
        return cls(
            model,
            Tokenizer(checkpoint.folder),
            reading,
            name=full_name(str(name), checkpoint.manifest),
            fingerprint=fingerprint,
        )

    def ingest(
        self,
        source: Source | None = None,
        *,
        text: str | None = None,
        memory: Memory | None = None,
        name: str | None = None,
        password: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        learn: bool = True,
        store: MemoryStore | None = None,
        progress: bool | None = None,
        on_chunk: OnChunk | None = None,
    ) -> Memory:
        """Reads a document, chunk by chunk, and returns the memory of it.

        With `learn=False` nothing is read: the memory holds the text alone, which takes moments and is enough to look
        answers up (`ask` with route="lookup"). Such a memory can only be gone on with in the same way.

        With `memory`, reading goes on where that one stopped, with its own reading parameters: in the middle of the
        same document if it was interrupted there, else with a new document after it. The old memory stays valid.
        `progress=None` shows a bar on a terminal. `on_chunk` is called after every chunk.

        With `store`, what was read before in the same way is loaded instead, and what is read now is kept: every so
        many chunks (`MemoryStore.progress_every`) what there is so far. After a crash at any moment the same call goes
        on from there, to the same bits. Text from an iterable is then taken in whole first.

        Raises:
            DocumentError: a document that cannot be read.
            MemoryMismatchError: `memory` belongs to another model.
            UsageError: `memory` holds text that was not read, and this one is to be read, or the other way round;
                text that is not to be read, for a store.
            StoreError: the store cannot be used.
            ReadingInterrupted: Ctrl-C; its `memory` holds what was read.
        """
        document, pieces, label = open_source(source, text, name, password, max_bytes)
        if not learn:
            if store is not None:
                raise UsageError("a store keeps what was read: leave out store=, or learn=False")
            return self._unread(document, pieces, label, memory)
        if store is None:
            return self._read(document, pieces, label, memory, progress, on_chunk)
        if document is None:
            document = Document.from_text("".join(pieces), name=label)
        kept = Keeping(store, self._checked(memory), document)
        whole = kept.whole()
        if whole is not None:
            return renamed(whole, document, label)
        part = kept.part(self.model.dtype)
        try:
            read = self._read(document, [document.text], label, part or memory, progress, on_chunk, kept)
        except ReadingInterrupted as interruption:
            kept.keep(interruption.memory)
            raise
        kept.finish(read)
        return read

    def _unread(self, document: Document | None, pieces: Iterable[str], label: str, memory: Memory | None) -> Memory:
        history, pieces, _ = after(self._checked(memory), document, pieces)
        if history.documents and not history.unread:
            raise UsageError("this memory was read: ingest its documents again, or go on with learn=True")
        whole = replace(history, text=(history.text or "") + "".join(pieces))
        return indexed(with_document(whole, document, label, len(history.tokens), history))

    def _read(
        self,
        document: Document | None,
        pieces: Iterable[str],
        label: str,
        memory: Memory | None,
        progress: bool | None,
        on_chunk: OnChunk | None,
        kept: Keeping | None = None,
    ) -> Memory:
        history, pieces, skip = after(self._checked(memory), document, pieces)
        if history.unread:
            raise UsageError(
                "this memory holds only text, nothing of it was read: ingest its documents again, or go on with "
                "learn=False"
            )
        state = state_of(self.model, history) if len(history.tokens) else ReadingState(self.model, history.reading)
        track = Track(history)
        first = len(track.tokens) - skip
        characters = len(document) if document is not None else 0
        disable = None if progress is None else not progress

        def so_far() -> Memory:
            return unfinished(with_document(track.so_far(state), document, label, first, history))

        def between() -> bool:
            if kept is not None and kept.due(state.position):
                kept.keep(so_far())
            return interrupt.requested

        with Interrupt() as interrupt, tqdm(unit="tok", unit_scale=True, disable=disable, desc=label[-40:]) as bar:
            for report in read_stream(state, track, pieces, self.tokenizer, skip, between):
                if characters:  # tokens in all, from the rate so far
                    fed = sum(map(len, track.text))
                    bar.total = (len(track.tokens) - first) * characters // fed
                bar.set_postfix(loss=f"{report.loss:.3f}", refresh=False)
                bar.update(report.tokens - first - bar.n)
                if on_chunk is not None:
                    on_chunk(report)
        if interrupt.requested:
            raise ReadingInterrupted(so_far())
        return indexed(with_document(track.finish(state), document, label, first, history))

    def ingest_batch(
        self,
        documents: Sequence[Document],
        *,
        on_chunk: Callable[[int, ChunkReport], None] | None = None,
    ) -> list[Memory]:
        """Reads several documents in one call, each with fast weights of its own, and returns their memories in order.

        Each gets what it would get alone (to the last bits: products of other shapes round differently). `on_chunk` is
        called with the document's index. Memory grows with the number of documents.

        Raises MemoryMismatchError, UsageError as `ingest` does.
        """
        if not documents:
            return []
        tracks = []
        for document in documents:
            track = Track(self._empty_memory())
            for segment in segments([document.text]):
                track.text.append(segment)
                track.tokens.extend(self.tokenizer.encode(segment))
            tracks.append(track)
        firsts = [len(track.memory.tokens) for track in tracks]
        memories = read_batch(batch_state(self.model, self.reading, len(tracks)), tracks, on_chunk)
        return [
            indexed(with_document(memory, document, document.name, first, track.memory))
            for memory, document, first, track in zip(memories, documents, firsts, tracks, strict=True)
        ]

    @overload
    def continue_text(
        self,
        memory: Memory,
        max_new_tokens: int = ...,
        *,
        stream: Literal[False] = ...,
        learn: bool = ...,
        **sampling: Any,
    ) -> str: ...

    @overload
    def continue_text(
        self, memory: Memory, max_new_tokens: int = ..., *, stream: Literal[True], learn: bool = ..., **sampling: Any
    ) -> Iterator[str]: ...

    def continue_text(
        self, memory: Memory, max_new_tokens: int = 200, *, stream: bool = False, learn: bool = True, **sampling: Any
    ) -> str | Iterator[str]:
        """Continues the document where it ended; with `stream`, in pieces as they come.

        `sampling` takes temperature (0.8), top_p (0.95), top_k, repetition_penalty (1.1), no_repeat_ngram, seed and
        stop (texts before which to end). With `learn`, a chunk's worth of new text makes an update, as in reading;
        `memory` itself never changes.

        Raises MemoryMismatchError; UsageError for bad values.
        """
        self.check(memory)
        chosen = sampling_of(max_new_tokens=max_new_tokens, **sampling)
        pieces = continue_text(self.model, self.tokenizer, memory, chosen, learn)
        return pieces if stream else "".join(pieces)

    def summarize(self, memory: Memory, length: Length = "paragraph", *, seed: int = 0) -> Summary:
        """A summary of everything the memory has read, in a `sentence`, a `paragraph` or a `page`.

        It is written from the fast weights and from salient passages of the document's text, which the summary's
        `outline` shows. Raises MemoryMismatchError; UsageError for another length or an empty memory.
        """
        self.check(memory)
        return summarize(self.model, self.tokenizer, memory, length, seed)

    def ask(
        self,
        memory: Memory | Iterable[Memory],
        question: str,
        route: AskRoute = "auto",
        *,
        top_k: int | None = None,
        max_context: int | None = None,
        max_new_tokens: int = 160,
        temperature: float = 0.0,
        **sampling: Any,
    ) -> Answer:
        """Answers a question from a memory, or from several; the question does not change them.

        `route="memory"` answers from the fast weights. `route="lookup"` finds the `top_k` (5) best passages of the
        text, reads at most `max_context` (2,048) tokens of them with full attention, and copies the answer from them;
        its `evidence` are exact quotes. `route="auto"` decides by the question; several memories are always looked up
        in. Sampling applies to the memory route alone.

        Raises MemoryMismatchError; UsageError for an empty question, one longer than the window, an unknown route, or
        a memory that cannot answer by that route (without text, or without anything read).
        """
        memories = [memory] if isinstance(memory, Memory) else list(memory)
        if not memories:
            raise UsageError("there is no memory to ask: give at least one")
        for one in memories:
            self.check(one)
        if route not in get_args(AskRoute):
            raise UsageError(f"route={route!r}: use {', '.join(get_args(AskRoute))}")
        chosen = sampling_of(max_new_tokens=max_new_tokens, temperature=temperature, **sampling)
        way, why = chosen_route(memories, question, route)
        if way == "lookup":
            answer = answer_from_text(self.model, self.tokenizer, memories, question, top_k, max_context)
        else:
            answer = answer_from_memory(self.model, self.tokenizer, memories[0], question, chosen)
        return replace(answer, reason="; ".join(filter(None, (why, answer.reason))))

    def chat(
        self,
        memory: Memory | None,
        conversation: Conversation,
        *,
        max_new_tokens: int = 160,
        temperature: float = 0.0,
        **sampling: Any,
    ) -> Reply:
        """Goes on with a conversation of (role, text) about the document, which does not change the memory.

        Roles are "system", "user" and "assistant"; the last message is the user's. Iterate over the reply for its
        pieces as they come. Without a memory the model answers from what it knows.

        Raises MemoryMismatchError; UsageError for a conversation that cannot be, or is longer than the window.
        """
        memory = self._checked(memory)
        chosen = sampling_of(max_new_tokens=max_new_tokens, temperature=temperature, **sampling)
        return converse(self.model, self.tokenizer, memory, conversation, chosen)

    def check(self, memory: Memory) -> None:
        """Raises MemoryMismatchError unless `memory` was read with this reader's model."""
        if memory.fingerprint != self.fingerprint:
            raise MemoryMismatchError(
                f"this memory was read with another model ({memory.model}, fingerprint {memory.fingerprint[:12]}) than "
                f"this reader's ({self.name}, {self.fingerprint[:12]}): {advice(memory.model, self.name)}, or read the "
                "document again"
            )
        if not fits(self.model.config, memory):
            raise MemoryMismatchError(
                f"this memory says that it was read with {self.name}, but its shapes or tokens are not that model's: "
                "read the document again"
            )

    def expand(self, memory: Memory) -> Memory:
        """A compact memory made whole, which takes as long as reading its last tokens; any other memory as it is.

        Whatever uses a compact memory does this by itself, each time. Raises MemoryMismatchError.
        """
        self.check(memory)
        return expand(self.model, memory)

    def _checked(self, memory: Memory | None) -> Memory:
        """`memory`, or an empty one. Raises MemoryMismatchError."""
        if memory is None:
            return self._empty_memory()
        self.check(memory)
        return memory

    def _empty_memory(self) -> Memory:
        bos = [self.tokenizer.bos_id] if self.tokenizer.adds_bos else []
        return Memory(
            model=self.name,
            fingerprint=self.fingerprint,
            reading=self.reading,
            fast={},
            window={},
            position=0,
            tokens=torch.tensor(bos, dtype=torch.int32),
            nll=torch.zeros(len(bos)),
            text="",
        )
