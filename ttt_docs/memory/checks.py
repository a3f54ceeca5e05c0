"""What must hold between the parts of a memory file; used on loading, and before saving."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from ttt_docs.kernels.inner_step.layout import NAMES as FAST_NAMES
from ttt_docs.memory.header import DTYPES, Header, Refusal, TensorEntry, shown
from ttt_docs.weights.lowrank import LowRank

WINDOW_NAMES = ("k", "v")
CHANGE_PARTS = tuple(field.name for field in fields(LowRank))
_DIVERGED = "Reading diverged: read the document again with a smaller inner_lr."
_SLICE = 1 << 22  # elements looked at in one go


def check_layout(header: Header, table: dict[str, TensorEntry], data_bytes: int) -> None:
    """Names, dtypes, shapes and offsets of all tensors, against the header and the bytes that are there.

    Raises:
        Refusal: with the first thing that does not fit.
    """
    _check_reading(header)
    _check_names(header, table)
    for name, entry in table.items():
        if math.prod(entry.shape) * DTYPES[entry.dtype].itemsize != entry.nbytes:
            raise Refusal(f"the tensor {name} of shape {list(entry.shape)} does not fill its {entry.nbytes:,} bytes")
    _check_offsets(table, data_bytes)
    _check_shapes(header, table)


def _check_reading(header: Header) -> None:
    reading = header.reading
    for name in ("inner_lr", "inner_clip"):
        if not math.isfinite(getattr(reading, name)):
            raise Refusal(f"its reading parameter {name} is not a finite number")
    factors = reading.inner_lr_factors
    count = len(header.fast_blocks)
    if not all(map(math.isfinite, factors)) or (factors and count and len(factors) not in (count, 3 * count)):
        raise Refusal("its reading parameter inner_lr_factors is not one or three finite numbers for each block")
    if header.skipped < 0:
        raise Refusal(f"it counts {shown(header.skipped)} skipped updates")
    if header.position < 0 or header.position % reading.chunk:
        raise Refusal(f"its position {shown(header.position)} is not a multiple of the chunk ({shown(reading.chunk)})")
    for blocks in (header.fast_blocks, header.window_blocks):
        if any(block < 0 for block in blocks) or len(set(blocks)) != len(blocks):
            raise Refusal("its list of blocks has a negative or repeated number")


def _check_names(header: Header, table: dict[str, TensorEntry]) -> None:
    expected = {"tokens", "nll"}
    fast = [f"{block}/{name}" for block in header.fast_blocks for name in FAST_NAMES]
    if header.packed is None:
        expected |= {f"fast/{name}" for name in fast}
    else:
        expected |= {f"change/{name}/{part}" for name in fast for part in CHANGE_PARTS}
        if header.window_blocks:
            raise Refusal("it is compact, and holds a window")
        if ("text" in table) != (header.packed.text_bytes is not None):
            raise Refusal("its header and its tensors do not agree on whether it holds a text")
    expected |= {f"window/{block}/{name}" for block in header.window_blocks for name in WINDOW_NAMES}
    for name in sorted(expected - table.keys()):
        raise Refusal(f"the tensor {shown(name)} is missing")
    optional = {"text", "index"} if "text" in table and header.packed is None else {"text"}
    for name in sorted(table.keys() - expected - optional):
        raise Refusal(f"it holds a tensor {shown(name)} that does not belong into a memory")


def _check_offsets(table: dict[str, TensorEntry], data_bytes: int) -> None:
    reached = 0
    for name, entry in sorted(table.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise Refusal(f"the tensor {name} starts at byte {entry.begin:,} instead of {reached:,}")
        reached = entry.end
    if reached > data_bytes:
        raise Refusal(f"the file is cut short: {reached - data_bytes:,} of its {reached:,} tensor bytes are missing")
    if reached < data_bytes:
        raise Refusal(f"{data_bytes - reached:,} bytes follow after its end")


def _check_shapes(header: Header, table: dict[str, TensorEntry]) -> None:
    def require(name: str, dtypes: Sequence[str], ranks: int) -> tuple[int, ...]:
        entry = table[name]
        if entry.dtype not in dtypes or len(entry.shape) != ranks:
            raise Refusal(
                f"the tensor {name} is {entry.dtype} {list(entry.shape)}; it should be {' or '.join(dtypes)} "
                f"with {ranks} dimension{'s' if ranks > 1 else ''}"
            )
        return entry.shape

    if header.packed is not None:
        require("tokens", ["U8"], 1), require("nll", ["U8"], 1)
        tokens = header.packed.tokens
    else:
        (tokens,), (nll,) = require("tokens", ["I32"], 1), require("nll", ["F32"], 1)
        if tokens != nll:
            raise Refusal(f"it holds {tokens:,} tokens but {nll:,} losses")
    if header.position > tokens:
        raise Refusal(f"its position {shown(header.position)} is past its {tokens:,} tokens")
    if tokens - header.position > header.reading.chunk:
        raise Refusal(f"{tokens - header.position:,} tokens are pending: more than a chunk ({header.reading.chunk:,})")
    if "text" in table:
        require("text", ["U8"], 1)
    if "index" in table:
        require("index", ["U8"], 1)

    if header.packed is not None:
        _check_change(header, require)
        return
    stored = "BF16" if header.precision == "bfloat16" else "F32"
    fast = {f"fast/{b}/{n}": require(f"fast/{b}/{n}", [stored], 2) for b in header.fast_blocks for n in FAST_NAMES}
    for name, shape in fast.items():
        mlp, dim = fast[f"fast/{header.fast_blocks[0]}/w1"]
        if shape != ((dim, mlp) if name.endswith("w2") else (mlp, dim)) or 0 in shape:
            raise Refusal(f"the fast weights {name} are {list(shape)}, which does not fit w1 {[mlp, dim]} of the first")

    window = [f"window/{b}/{n}" for b in header.window_blocks for n in WINDOW_NAMES]
    for name in window:
        shape, first = require(name, ["F32", "BF16"], 3), table[window[0]]
        if shape != first.shape or table[name].dtype != first.dtype:
            raise Refusal(
                f"the window {name} is {table[name].dtype} {list(shape)}, the first {first.dtype} {list(first.shape)}"
            )
        if shape[0] == 0 or shape[2] == 0 or max(shape) >= 2**31:
            raise Refusal(f"the window {name} has the impossible shape {list(shape)}")
        if shape[1] > header.reading.window + header.reading.sinks:
            raise Refusal(
                f"the window {name} keeps {shape[1]:,} keys; window {header.reading.window:,} and "
                f"{header.reading.sinks:,} sinks allow fewer"
            )


def _check_change(header: Header, require: Callable[[str, Sequence[str], int], tuple[int, ...]]) -> None:
    """The parts of a compact memory's matrices fit together, and all matrices of a name are of one shape."""
    first: dict[str, tuple[int, int]] = {}
    for block in header.fast_blocks:
        for name in FAST_NAMES:
            where = f"change/{block}/{name}"
            (wide, rows), (wide2, columns) = (require(f"{where}/{n}", ["I8"], 2) for n in ("left8", "right8"))
            (narrow, rows4), (narrow2, columns4) = (require(f"{where}/{n}", ["U8"], 2) for n in ("left4", "right4"))
            scales = require(f"{where}/scale8", ["F32"], 1) + require(f"{where}/scale4", ["F32"], 1)
            halves = ((rows + 1) // 2, (columns + 1) // 2)
            if (wide2, narrow2, rows4, columns4, scales) != (wide, narrow, *halves, (wide, narrow)):
                raise Refusal(f"the parts of the change of {name} in block {block} do not fit together")
            if not 0 < rows < 2**31 or not 0 < columns < 2**31 or wide + narrow > min(rows, columns):
                raise Refusal(f"the change of {name} in block {block} has the impossible shape {[rows, columns]}")
            if first.setdefault(name, (rows, columns)) != (rows, columns):
                raise Refusal(
                    f"the change of {name} in block {block} is {[rows, columns]}, another shape than the first"
                )


def check_finite(name: str, tensor: Tensor) -> None:
    """No NaN and no infinite value in a float tensor.

    Raises:
        Refusal: with the tensor's name.
    """
    for part in tensor.reshape(-1).split(_SLICE):  # in parts, so that the mask stays small
        if not torch.isfinite(part).all():
            raise Refusal(f"the tensor {name} holds NaN or infinite values", _DIVERGED)


def check_scale(name: str, scale: Tensor) -> None:
    """The terms of a compact memory's change are numbers that its sum can hold.

    Raises:
        Refusal: with the tensor's name.
    """
    if scale.numel() and float(scale.abs().max()) > 1e25:
        raise Refusal(f"the tensor {name} holds values too large for any change of the fast weights")


def check_tokens(tokens: Tensor) -> None:
    """Token ids are not negative (whether they are below a model's vocabulary is for its reader to say)."""
    if tokens.numel() and int(tokens.min()) < 0:
        raise Refusal("it holds negative token ids")


def check_documents(header: Header, characters: int | None) -> None:
    """Documents and their spans lie in order, inside a text of so many `characters` (None: the text was left out).

    Raises:
        Refusal: with the document's name.
    """
    limit = math.inf if characters is None else characters
    reached = 0
    for document in header.documents:
        if not reached <= document.start <= document.end <= limit:
            where = f"characters {shown(document.start)}-{shown(document.end)}"
            raise Refusal(f"the document {shown(document.name)} lies at {where}, out of order or outside the text")
        reached = document.end
        last: dict[str, int] = {}  # pages and chapters are two lists, mixed
        for span in document.spans:
            if not last.get(span.kind, 0) <= span.start <= span.end <= limit:
                where = f"characters {shown(span.start)}-{shown(span.end)}"
                raise Refusal(
                    f"{shown(span.kind)} {shown(span.label)} of the document {shown(document.name)} lies at {where}, "
                    "out of order or outside the text"
                )
            last[span.kind] = span.start
