"""The index as bytes, to be kept in a memory file beside the text it belongs to.

Little-endian: five uint32 (CRC-32 of the text in UTF-8, sentences, terms, occurrences, bytes of the terms), the
sentences as (start, end) int32, for each term how many sentences hold it int32, those sentences int32, and the terms in
UTF-8, one a line. Passages and their weights follow from these, and are computed again.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from ttt_docs.errors import MemoryFormatError
from ttt_docs.lookup.index import PassageIndex, assembled, build
from ttt_docs.memory.memory import Memory

_HEAD = struct.Struct("<5I")
_NUMBER = np.dtype("<i4")


def indexed(memory: Memory) -> Memory:
    """`memory` with the index over its text, made anew."""
    return replace(memory, index=packed(index_of(memory.text)) if memory.text else None)


@dataclass(frozen=True)
class _Indexed:
    """A text, and what may be its stored index; as a key the text alone counts."""

    text: str
    stored: bytes | None = field(default=None, compare=False)


def index_of(text: str, stored: bytes | None = None) -> PassageIndex:
    """The index of a text, from its stored form if there is one. Of the texts asked about last it is kept.

    Raises MemoryFormatError where `stored` is no index; that of another text is passed over.
    """
    return _index_of(_Indexed(text, stored))


@lru_cache(maxsize=8)
def _index_of(key: _Indexed) -> PassageIndex:  # a text's hash is computed once
    index = unpacked(key.stored, key.text) if key.stored is not None else None
    return index or build(key.text)


def packed(index: PassageIndex) -> bytes:
    terms = "\n".join(index.vocabulary).encode("utf-8")
    counts = np.diff(index.holders_from)
    head = _HEAD.pack(_crc(index.text), len(index.sentences), len(counts), len(index.holders), len(terms))
    arrays = (np.array(index.sentences), counts, index.holders)
    return b"".join((head, *(array.astype(_NUMBER).tobytes() for array in arrays), terms))


def unpacked(data: bytes, text: str) -> PassageIndex | None:
    """What `packed` was given, None for the index of another text.

    Raises MemoryFormatError for anything else: every number is looked at before it is used.
    """

    def refuse(what: str) -> MemoryFormatError:
        return MemoryFormatError(
            f"the index in this memory is damaged: {what}. Ask a memory without it (replace(memory, index=None)), or "
            "read the document again"
        )

    if len(data) < _HEAD.size:
        raise refuse("it is cut short")
    crc, *sizes, letters = _HEAD.unpack_from(data)
    if crc != _crc(text):
        return None
    spans, terms, occurrences = sizes
    if len(data) != _HEAD.size + _NUMBER.itemsize * (2 * spans + terms + occurrences) + letters:
        raise refuse("its parts do not fill it")
    numbers = np.frombuffer(data, _NUMBER, 2 * spans + terms + occurrences, _HEAD.size).astype(np.int32)
    borders, counts, holders = np.split(numbers, [2 * spans, 2 * spans + terms])
    starts, ends = borders[::2], borders[1::2]
    if spans and (starts[0] < 0 or ends[-1] > len(text) or (starts >= ends).any() or (ends[:-1] > starts[1:]).any()):
        raise refuse("its sentences are not spans of the text, one after another")
    if (counts < 1).any() or int(counts.sum(dtype=np.int64)) != occurrences:
        raise refuse("its terms do not add up")
    term_of = np.repeat(np.arange(terms, dtype=np.int32), counts)
    if occurrences and (holders.min() < 0 or holders.max() >= spans):
        raise refuse("it names sentences that are not there")
    if ((np.diff(holders) < 0) & (np.diff(term_of) == 0)).any():
        raise refuse("the sentences of a term are not in order")
    try:
        words = data[len(data) - letters :].decode().split("\n") if terms else []
    except UnicodeDecodeError:
        raise refuse("its terms are no text") from None
    vocabulary = {word: column for column, word in enumerate(words)}
    if len(vocabulary) != terms or len(words) != terms:
        raise refuse("its terms are not what it says")
    order = np.argsort(holders, kind="stable")
    return assembled(
        text, list(zip(starts.tolist(), ends.tolist(), strict=True)), vocabulary, term_of[order], holders[order]
    )


def _crc(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
