"""TTTReader, the one class most users touch: it joins documents, model, memory and generation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, get_args, overload

import torch

from ttt_docs.documents import Document
from ttt_docs.documents.load import DEFAULT_MAX_BYTES
from ttt_docs.errors import MemoryMismatchError, UsageError
from ttt_docs.generation.chat import Conversation, Reply, answer_from_memory, continue_text, converse
from ttt_docs.generation.results import Answer, Summary
from ttt_docs.generation.sampling import sampling_of
from ttt_docs.generation.scoring import score_texts
from ttt_docs.generation.summary import Length, SummaryStream, stream_summary
from ttt_docs.generation.writing import writer_for
from ttt_docs.lookup.answer import answer_from_text
from ttt_docs.lookup.exact import exact_question
from ttt_docs.lookup.question import asks_why
from ttt_docs.lookup.reader import History, PassageReader
from ttt_docs.lookup.router.routing import AskRoute, chosen_route
from ttt_docs.memory.memory import COMPACT_BYTES, Memory, indexed, mismatch
from ttt_docs.model.config import InnerRule, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.chunks import ChunkReport
from ttt_docs.reading.intake import OnChunk, Source, open_source, read_document, read_in_step, read_or_load, take_text
from ttt_docs.reading.restoring import compact, expand, fits
from ttt_docs.store.store import MemoryStore
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.weights.adapter import SHIPPED
from ttt_docs.weights.pretrained import Base, open_pretrained
from ttt_docs.weights.skill import taught

#: A question that may ask for something at one place, with more probability than this, is not answered on the whole.
DOUBT = 0.1


def reader_for(memory: Memory, open_reader: Callable[..., TTTReader]) -> TTTReader:
    """The reader that a memory belongs to: `open_reader` opens its model, given more of what `from_pretrained` takes.

    The memory's fingerprint tells whether it was read with the adapter of the package, or with a retrofit and how many
    blocks that gave fast weights. Raises MemoryMismatchError for another model's memory.
    """
    sinks = memory.reading.sinks
    reader = open_reader(sinks=sinks)
    if reader.fingerprint != memory.fingerprint:
        blocks = reader.base and reader.base.retrofit_blocks(sinks, memory.fingerprint)
        if blocks:
            reader = open_reader(sinks=sinks, suffix_blocks=blocks, adapter=None)
    reader.check(memory)
    return reader


class TTTReader:
    """Reads documents into memories and answers from them. Make one with `from_pretrained`; it holds no document.

    Every method raises UsageError for an argument of the wrong type or value.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        reading: ReadingConfig,
        *,
        name: str,
        fingerprint: str,
        base: Base | None = None,
    ) -> None:
        self.model, self.tokenizer, self.reading = model, tokenizer, reading
        self.name, self.fingerprint, self.base = name, fingerprint, base

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

        A pre-trained model without fast weights is retrofitted (docs/method.md section 6): its last `suffix_blocks` (8)
        blocks get fast weights, and attention always sees the first `sinks` (4) tokens. `dtype` is that of the products
        (None: bfloat16 where the hardware has it); fast weights are always float32. `window` and `chunk` are in tokens
        (2048 and 1024 for a retrofit, otherwise what the model was trained with). `learn=False` reads with the window
        alone.

        `adapter` is a file that `ttt-docs train` made for this model. Its weights take the place of the retrofit, and
        its reading parameters hold unless others are given. The default model has one in the package
        (docs/model-card.md). It is used unless `suffix_blocks` or `sinks` ask for another retrofit; None switches it
        off. An adapter may also be given as `name`, if its base model is in the registry.

        Raises:
            CheckpointError: weights that cannot be found, downloaded or understood.
            UsageError: parameters that cannot work together.
        """
        chosen = dict(window=window, chunk=chunk, inner_rule=inner_rule, inner_lr=inner_lr, inner_clip=inner_clip)
        opened = open_pretrained(name, adapter, device, dtype, suffix_blocks, sinks=sinks, learn=learn, **chosen)
        return cls(
            opened.model,
            Tokenizer(opened.folder),
            opened.reading,
            name=opened.name,
            fingerprint=opened.fingerprint,
            base=opened.base,
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

        With `memory`, reading goes on where that one stopped, with its own reading parameters. If it was interrupted in
        the middle of this document, it goes on there; otherwise this document follows. The old memory stays valid.
        `progress=None` shows a bar on a terminal. `on_chunk` is called after every chunk.

        With `learn=False` nothing is read, and the memory holds the text alone. That takes moments and is enough to
        look answers up (`ask` with route="lookup"). Later documents must then be added with `learn=False` too.

        With `store`, a document that was read before in the same way is loaded instead. Otherwise its memory is kept:
        unfinished every `MemoryStore.progress_every` chunks, and whole in the end. After a crash the same call goes on
        from the last part, and ends with the same bits. Text from an iterable is taken in whole first.

        Raises:
            DocumentError: a document that cannot be read.
            MemoryMismatchError: `memory` belongs to another model.
            UsageError: `memory` was made with another `learn`; `learn=False` with a store; a list of paths.
            StoreError: the store cannot be used.
            ReadingInterrupted: Ctrl-C; its `memory` holds what was read.
        """
        _expect(str, None, text=text, name=name, password=password)
        _expect(int, max_bytes=max_bytes)
        _expect(MemoryStore, None, store=store)
        _expect(Callable, None, on_chunk=on_chunk)
        history = self._checked(memory)
        incoming = open_source(source, text, name, password, max_bytes)
        if learn and store is not None:
            return read_or_load(self.model, self.tokenizer, history, incoming, store, indexed, progress, on_chunk)
        if learn:
            return indexed(read_document(self.model, self.tokenizer, history, incoming, progress, on_chunk))
        if store is not None:
            raise UsageError("a store keeps what was read: leave out store=, or learn=False")
        return indexed(take_text(history, incoming))

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
        if not isinstance(documents, Sequence) or not all(isinstance(one, Document) for one in documents):
            raise UsageError("documents must be a list of Document: load_document(path) or Document.from_text(...)")
        _expect(Callable, None, on_chunk=on_chunk)
        empty = self._checked(None)
        return list(map(indexed, read_in_step(self.model, self.tokenizer, empty, documents, on_chunk)))

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

    @overload
    def summarize(
        self,
        memory: Memory,
        length: Length = ...,
        focus: str | None = ...,
        *,
        seed: int = ...,
        stream: Literal[False] = ...,
        progress: bool | None = ...,
    ) -> Summary: ...

    @overload
    def summarize(
        self,
        memory: Memory,
        length: Length = ...,
        focus: str | None = ...,
        *,
        seed: int = ...,
        stream: Literal[True],
        progress: bool | None = ...,
    ) -> SummaryStream: ...

    def summarize(
        self,
        memory: Memory,
        length: Length = "paragraph",
        focus: str | None = None,
        *,
        seed: int = 0,
        stream: bool = False,
        progress: bool | None = False,
    ) -> Summary | SummaryStream:
        """A summary of everything the memory has read, in a `sentence`, a `paragraph`, a `page`, or by `chapters`.

        With a `focus` ("What happens to the captain?") it tells what the document says about that. Every sentence
        comes with the places of the text that it stands in. A model that was not taught to write summaries, and a text
        that is no English prose, get a summary of the document's own sentences; `note` says so. With `stream`, iterate
        over the result for sections as they are ready. `seed` is for the texts that are drawn where the likeliest one
        does not stand in the document. `progress=None` shows a bar on a terminal.

        Raises MemoryMismatchError; UsageError for another length, an empty memory, or a focus that is empty, too long,
        or asked of a memory without text.
        """
        self.check(memory)
        _expect(str, length=length)
        _expect(str, None, focus=focus)
        _expect(int, seed=seed)
        writer = writer_for(self.model, self.tokenizer, self.name, memory.reading.window)
        made = stream_summary(self.model, self.tokenizer, memory, length, writer, focus, seed, progress)
        return made if stream else made.summary

    def score(self, memory: Memory | None, texts: Sequence[str]) -> list[float]:
        """Loss of each text as it would follow after the memory, in nats per token; without a memory, after nothing.

        A blank line stands before each text. Many are scored in one batch, and none sees another.

        Raises MemoryMismatchError; UsageError for a text that has no tokens.
        """
        memory = self._checked(memory)
        if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(one, str) for one in texts):
            raise UsageError("texts must be a list of str")
        return score_texts(self.model, self.tokenizer, memory, texts)

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
        history: History = (),
        **sampling: Any,
    ) -> Answer:
        """Answers a question from a memory, or from several; the question does not change them.

        `route="lookup"` finds passages of the text, reads at most `max_context` (2,048) tokens of them with full
        attention, and answers from them; its `evidence` are exact quotes, at most `top_k` (5). `route="whole"` tells
        what the document says as a whole, in sentences that each have their place. `route="memory"` answers from the
        fast weights: a recollection, without evidence. `route="auto"` looks up first, and answers on the whole where
        the question asks for that; several memories are always looked up in. `history` are the (question, answer) pairs
        before this question, which may lean on them. Sampling applies to the memory route alone.

        Raises MemoryMismatchError; UsageError for an empty question, one longer than the window, an unknown route, or
        a memory that cannot answer by that route (without text, or without anything read).
        """
        if not isinstance(memory, Iterable) or isinstance(memory, (str, bytes)):
            memory = [memory]  # a Memory, or what `check` refuses
        memories = list(memory)
        if not memories:
            raise UsageError("there is no memory to ask: give at least one")
        for one in memories:
            self.check(one)
        _expect(str, question=question)
        _expect(int, None, top_k=top_k, max_context=max_context)
        if route not in get_args(AskRoute):
            raise UsageError(f"route={route!r}: use {', '.join(get_args(AskRoute))}")
        chosen = sampling_of(max_new_tokens=max_new_tokens, temperature=temperature, **sampling)
        for turn in history:
            if not isinstance(turn, Sequence) or len(turn) != 2 or not all(isinstance(x, str) for x in turn):
                raise UsageError(f"history is a list of (question, answer), and {turn!r} is not such a pair")
        way, why, exact = chosen_route(memories, question, route)
        if route == "auto" and way == "whole" and (exact > DOUBT or exact_question(question) or asks_why(question)):
            way, why = "lookup", "may ask for what stands at one place"
        if way == "memory":
            answer = answer_from_memory(self.model, self.tokenizer, memories[0], question, chosen)
        elif way == "whole" and route == "whole":
            answer = self._on_the_whole(memories[0])
        else:
            answer = answer_from_text(self.passages, memories, question, top_k, max_context, history)
            # The surer the question is one on the whole, the surer must be what was found at one place.
            if way == "whole" and not (answer.answered and (answer.confidence or 0.0) > 1 - exact):
                answer = self._on_the_whole(memories[0])
        return replace(answer, reason="; ".join(filter(None, (why, answer.reason))))

    def _on_the_whole(self, memory: Memory) -> Answer:
        """What the document says, as a summary does."""
        began = time.perf_counter()
        told = self.summarize(memory)
        evidence = tuple(dict.fromkeys(place for one in told.sentences for place in one.evidence))
        verified = bool(told.sentences) and all(one.supported for one in told.sentences)
        seconds = time.perf_counter() - began
        return Answer(told.text, "whole", evidence, seconds, "told from all parts of the document", verified)

    @cached_property
    def passages(self) -> PassageReader:
        """What reads the passages found for a question: the model with the package's skill for it, if there is one."""
        model = taught(self.model, self.name, "answers")
        return PassageReader(model or self.model, self.tokenizer, skilled=model is not None)

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
        _expect(Sequence, conversation=conversation)
        for message in conversation:
            if not isinstance(message, Sequence) or len(message) != 2 or not all(isinstance(x, str) for x in message):
                raise UsageError(f"a conversation is a list of (role, text), and {message!r} is not such a pair")
        chosen = sampling_of(max_new_tokens=max_new_tokens, temperature=temperature, **sampling)
        return converse(self.model, self.tokenizer, memory, conversation, chosen)

    def check(self, memory: Memory) -> None:
        """Raises MemoryMismatchError unless `memory` was read with this reader's model."""
        if not isinstance(memory, Memory):
            raise UsageError(
                f"a memory is needed, not a {type(memory).__name__}: `ingest` makes one, Memory.load(path) loads one"
            )
        if memory.fingerprint != self.fingerprint:
            raise mismatch("this memory", memory.model, memory.fingerprint, self.name, self.fingerprint)
        if not fits(self.model.config, memory):
            raise MemoryMismatchError(
                f"this memory says that it was read with {self.name}, but its shapes or tokens are not that model's: "
                "read the document again"
            )

    def compact(self, memory: Memory, max_bytes: int = COMPACT_BYTES) -> Memory:
        """A memory for a file of at most `max_bytes`, close to exact: docs/compaction.md says how close.

        It holds the change of the fast weights from the model's initial ones in as many rounded singular vectors as
        fit, losses as float16, and no window: a reader rebuilds that from the last tokens before each use
        (`expand` does it once).

        Raises MemoryMismatchError for another model's memory; UsageError if it does not fit or is compact already.
        """
        self.check(memory)
        _expect(int, max_bytes=max_bytes)
        return compact(self.model, memory, max_bytes)

    def expand(self, memory: Memory) -> Memory:
        """A compact memory made whole, which takes as long as reading its last tokens; any other memory as it is.

        Every use of a compact memory does this by itself, each time. Raises MemoryMismatchError.
        """
        self.check(memory)
        return expand(self.model, memory)

    def _checked(self, memory: Memory | None) -> Memory:
        """`memory`, or an empty one. Raises MemoryMismatchError."""
        if memory is not None:
            self.check(memory)
            return memory
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


def _expect(*kinds: Any, **values: object) -> None:
    """Raises UsageError unless all values are of one of the kinds; None among them allows None. A bool is no number."""
    types = tuple(kind for kind in kinds if kind is not None)
    wanted = " or ".join("None" if kind is None else getattr(kind, "__name__", str(kind)) for kind in kinds)
    for name, value in values.items():
        fits = isinstance(value, types) and not (type(value) is bool and int in types)
        if not fits and (value is not None or None not in kinds):
            raise UsageError(f"{name}={value!r} is a {type(value).__name__}: give {wanted}")
