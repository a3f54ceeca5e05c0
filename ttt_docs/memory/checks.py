"""What must hold between the parts of a memory file; used on loading, and before saving."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.inner_step.layout import NAMES as FAST_NAMES
from ttt_docs.memory.header import DTYPES, Header, ReadDocument, Refusal, TensorEntry, shown
from ttt_docs.weights.lowrank import LowRank

WINDOW_NAMES = ("k", "v")
CHANGE_PARTS = tuple(field.name for field in fields(LowRank))
_DIVERGED = "Reading diverged: read the document again with a smaller inner_lr."
_SLICE = 1 << 22  # elements looked at in one go
_MAX_SIZE = 2**31 - 1  # of a matrix or a window

#: What the words of `expected_tensors` stand for: dtypes and sizes.
Sizes = dict[str, Any]


def expected_tensors(header: Header) -> dict[str, str]:
    """Each tensor's dtype and dimensions in words. Equal words stand for equal values; `half_` is half, rounded up."""
    found = {"tokens": "I32 tokens", "nll": "F32 tokens"}
    if header.packed is not None:
        found = {"tokens": "U8 packed_tokens", "nll": "U8 packed_nll"}
    for block in header.fast_blocks:
        for name in FAST_NAMES:
            rows, columns = ("dim", "mlp") if name == "w2" else ("mlp", "dim")
            if header.packed is None:
                found[f"fast/{block}/{name}"] = f"fast {rows} {columns}"
                continue
            change = f"change/{block}/{name}"
            for bits, dtype, half in ((8, "I8", ""), (4, "U8", "half_")):
                terms = f"{change}/terms{bits}"
                found[f"{change}/left{bits}"] = f"{dtype} {terms} {half}{rows}"
                found[f"{change}/right{bits}"] = f"{dtype} {terms} {half}{columns}"
                found[f"{change}/scale{bits}"] = f"F32 {terms}"
    found |= {f"window/{b}/{n}": "window kv_heads keys head_dim" for b in header.window_blocks for n in WINDOW_NAMES}
    return found


def check_layout(header: Header, table: dict[str, TensorEntry], data_bytes: int) -> Sizes:
    """Names, dtypes, shapes and offsets of all tensors, against the header and the bytes that are there.

    Returns what the words of `expected_tensors` stand for.

    Raises:
        Refusal: with the first thing that does not fit.
    """
    expected = expected_tensors(header)
    for name in expected:
        if name not in table:
            raise Refusal(f"the tensor {shown(name)} is missing")
    optional = ("text", "index") if "text" in table and header.packed is None else ("text",)
    expected |= {name: f"U8 {name}" for name in optional if name in table}
    for name in table:
        if name not in expected:
            raise Refusal(f"it holds a tensor {shown(name)} that does not belong into a memory")
    if header.packed is not None and ("text" in table) != (header.packed.text_bytes is not None):
        raise Refusal("its header and its tensors do not agree on whether it holds a text")
    _check_offsets(table, data_bytes)

    sizes: Sizes = {dtype: dtype for dtype in DTYPES}
    sizes["fast"] = "BF16" if header.precision == "bfloat16" else "F32"
    for name, words in expected.items():
        _match(name, table[name], words.split(), sizes)
    for word in ("mlp", "dim", "kv_heads", "head_dim"):
        if not 0 < sizes.get(word, 1) <= _MAX_SIZE:
            raise Refusal(f"its tensors have an impossible shape: {word} is {sizes[word]:,}")
    if sizes.get("window", "F32") not in ("F32", "BF16"):
        raise Refusal(f"its window is {sizes['window']}; it should be F32 or BF16")
    if sizes.get("keys", 0) > header.reading.window + header.reading.sinks:
        raise Refusal(
            f"its window keeps {sizes['keys']:,} keys; window {header.reading.window:,} and {header.reading.sinks:,} "
            "sinks allow fewer"
        )
    for change in {name.rpartition("/")[0] for name in expected if name.startswith("change/")}:
        terms = sum(sizes[f"{change}/terms{bits}"] for bits in (8, 4))
        if terms > min(sizes["mlp"], sizes["dim"]):
            raise Refusal(f"the tensors {change} hold {terms:,} terms, more than such a matrix can have")

    tokens = sizes["tokens"] if header.packed is None else header.packed.tokens
    pending = tokens - header.position
    if pending < 0:
        raise Refusal(f"its position {header.position:,} is past its {tokens:,} tokens")
    if pending > header.reading.chunk:
        raise Refusal(f"{pending:,} tokens are pending: more than a chunk ({header.reading.chunk:,})")
    return sizes


def _check_offsets(table: dict[str, TensorEntry], data_bytes: int) -> None:
    reached = 0
    for name, entry in sorted(table.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin != reached:
            raise Refusal(f"the tensor {name} starts at byte {begin:,} instead of {reached:,}")
        if math.prod(entry.shape) * DTYPES[entry.dtype].itemsize != entry.nbytes:
            raise Refusal(f"the tensor {name} of shape {list(entry.shape)} does not fill its {entry.nbytes:,} bytes")
        reached = end
    if reached > data_bytes:
        raise Refusal(f"the file is cut short: {reached - data_bytes:,} of its {reached:,} tensor bytes are missing")
    if reached < data_bytes:
        raise Refusal(f"{data_bytes - reached:,} bytes follow after its end")


def _match(name: str, entry: TensorEntry, words: list[str], sizes: Sizes) -> None:
    """Compares an entry with what its words stand for; a word that is new gets its meaning from this entry."""
    found = (entry.dtype, *entry.shape)
    for word in words:
        if word.startswith("half_") and word.removeprefix("half_") in sizes:
            sizes[word] = (sizes[word.removeprefix("half_")] + 1) // 2
    if len(found) != len(words) or any(sizes.get(word, x) != x for word, x in zip(words, found, strict=True)):
        dtype, *shape = (str(sizes.get(word, word)) for word in words)
        raise Refusal(
            f"the tensor {name} is {entry.dtype} {list(entry.shape)}; it should be {dtype} [{', '.join(shape)}]"
        )
    sizes.update(zip(words, found, strict=True))


def check_values(name: str, tensor: Tensor) -> None:
    """No NaN and no infinite value, no scale that its sum cannot hold, and no negative token.

    Whether tokens are below a model's vocabulary is for its reader to say.

    Raises:
        Refusal: with the tensor's name.
    """
    if tensor.is_floating_point():
        for part in tensor.reshape(-1).split(_SLICE):  # in parts, so that the mask stays small
            if not torch.isfinite(part).all():
                raise Refusal(f"the tensor {name} holds NaN or infinite values", _DIVERGED)
    if name.endswith(("/scale8", "/scale4")) and tensor.numel() and float(tensor.abs().max()) > 1e25:
        raise Refusal(f"the tensor {name} holds values too large for any change of the fast weights")
    if name == "tokens" and tensor.numel() and int(tensor.min()) < 0:
        raise Refusal("it holds negative token ids")


def check_documents(documents: tuple[ReadDocument, ...], characters: int | None) -> None:
    """Documents and their spans lie in order, inside a text of so many `characters` (None: the text was left out).

    Raises:
        Refusal: with the document's name.
    """
    limit = math.inf if characters is None else characters

    def misplaced(what: str, start: int, end: int) -> Refusal:
        return Refusal(f"{what} lies at characters {shown(start)}-{shown(end)}, out of order or outside the text")

    reached = 0
    for document in documents:
        if not reached <= document.start <= document.end <= limit:
            raise misplaced(f"the document {shown(document.name)}", document.start, document.end)
        reached = document.end
        last: dict[str, int] = {}  # pages and chapters are two lists, mixed
        for span in document.spans:
            if not last.get(span.kind, 0) <= span.start <= span.end <= limit:
                what = f"{shown(span.kind)} {shown(span.label)} of the document {shown(document.name)}"
                raise misplaced(what, span.start, span.end)
            last[span.kind] = span.start
