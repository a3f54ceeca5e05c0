"""Hostile memory files: thousands of mutants of sound ones, made by someone who knows the format.

    python tests/memory/hostile.py --files 10000 --seed 1

Every mutant must load as a sound memory or be refused with a MemoryFormatError, within 2 seconds, and all of them
together may raise this process's peak memory by 100 MB at most. Another process makes the mutants, since lists
multiplied by a thousand twice can become 100 MB before any of it is read.

First come a few headers of 16 MB, filled with what takes most memory once it is parsed: pages, blocks, tensors, lists.
The mutations know the file: the header's JSON and its table (types, shapes, offsets, numbers too large or of another
kind), bytes of header and tensors, cuts and additions; nine of ten get a right checksum, so that the checks behind it
must hold alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from memory_files import make_memory, pack, seal, unpack

from ttt_docs import MemoryFormatError
from ttt_docs.memory import Memory, inspect_memory, memories_equal, summary
from ttt_docs.weights.lowrank import compress

SECONDS, GROWTH_BYTES = 2.0, 100_000_000
HEAVY = 7  # mutants of `heavy`
NUMBERS: list[Any] = [-1, 0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 10**30, 0.5, 1e308, -1e308]
DEEP = "@deep@"  # stands for brackets in brackets, deeper than any parser's stack
VALUES: list[Any] = [None, True, "", "x", "../../etc/passwd", "\ud800", "F64", "U8", "I8", [], {}, [[]], "0" * 64]


def sound_files(folder: Path) -> list[bytes]:
    """An exact file, one in bfloat16 without text, and a compact one."""
    exact = make_memory()
    changes = {block: {n: w[n].clone() for n in ("w1", "w2", "w3")} for block, w in exact.fast.items()}
    compact = make_memory(fast={}, window={}, change=compress(changes, 10_000))
    paths = [
        exact.save(folder / "a.ttt"),
        exact.save(folder / "b.ttt", precision="bfloat16", text=False),
        compact.save(folder / "c.ttt"),
    ]
    return [path.read_bytes() for path in paths]


def heavy(raw: bytes) -> Iterator[bytes]:
    """Large headers under a wrong checksum, each of what is small in a file and large in memory."""
    outer, document, data = unpack(raw)
    span = {"kind": "page", "start": 0, "end": 1}
    first = document["documents"][0]
    for document_changes, table_changes in (
        ({"documents": [first | {"spans": [span | {"label": str(n)} for n in range(200_000)]}]}, {}),
        ({"documents": [first | {"spans": [span | {"label": str(n)} for n in range(240_000)]}]}, {}),
        ({"fast_blocks": list(range(900_000))}, {}),
        ({"later": [[]] * 249_000}, {}),
        ({"later": [f"{n:x}" for n in range(700_000)]}, {}),
        ({}, {f"{n:x}": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]} for n in range(80_000)}),
        ({}, {f"{n:x}": 0 for n in range(1_200_000)}),
    ):
        text = json.dumps(document | document_changes, separators=(",", ":"))
        yield pack(outer | table_changes, text, data)[:-1]


def mutants(files: list[bytes], seed: int, count: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    yield from heavy(files[0])
    for _ in range(count - HEAVY):
        raw = chance.choice(files)
        outer, document, data = unpack(raw)
        body = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            kind = chance.randrange(10)
            if kind < 3:
                _edit(chance, document)
            elif kind < 6:
                _edit_table(chance, outer)
            elif kind < 8 and body:
                for _ in range(chance.randint(1, 8)):
                    body[chance.randrange(len(body))] = chance.randrange(256)
            elif kind == 8:
                _resize(chance, outer, body)
            else:
                del body[chance.randint(0, len(body)) :]
        text = _deepened(json.dumps(document))
        outer["__metadata__"] = {"ttt_docs": text, "crc32": "00000000"}
        header = bytearray(_deepened(json.dumps(outer, separators=(",", ":"))).encode())
        if chance.random() < 0.1:  # bytes of the header itself
            header[chance.randrange(len(header))] = chance.choice(b'0123456789[]{}",:-e\\\x00\xff')
        mutant = bytearray(seal(bytes(header), bytes(body)))
        if chance.random() < 0.1:  # whatever the checksum says
            mutant[chance.randrange(len(mutant))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.05:
            mutant[:8] = chance.choice([0, 1, 7, 2**24, 2**24 + 1, 2**40, 2**64 - 1]).to_bytes(8, "little")
        if chance.random() < 0.05:
            del mutant[chance.randrange(len(mutant)) :]
        yield bytes(mutant)


def _deepened(text: str) -> str:
    return text.replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder and key in a JSON value."""
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def _edit(chance: random.Random, value: dict[str, Any]) -> None:
    """One value replaced, removed, doubled or nested deep."""
    places = list(_places(value))
    if not places:
        return
    holder, key = chance.choice(places)
    kind = chance.randrange(6)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1:
        holder[key] = chance.choice([DEEP, [holder[key]], {"x": holder[key]}])
    elif kind == 2 and isinstance(holder, list):
        holder.extend(copy.deepcopy(holder[:1]) * chance.choice([1, 3, 1000]))
    else:
        holder[key] = copy.deepcopy(chance.choice(NUMBERS + VALUES))  # a list put in twice could come to hold itself


def _edit_table(chance: random.Random, outer: dict[str, Any]) -> None:
    """A lie about one tensor: its type, its shape, its place, its name."""
    names = [name for name, entry in outer.items() if name != "__metadata__" and isinstance(entry, dict)]
    if not names:
        return
    name = chance.choice(names)
    entry = outer[name]
    kind = chance.randrange(6)
    if kind == 0:
        entry["dtype"] = chance.choice(["F32", "BF16", "I32", "I8", "U8", "F64", "BOOL", "", None, 5])
    elif kind == 1:
        entry["shape"] = [chance.choice(NUMBERS[:14]) for _ in range(chance.randint(0, 4))]
    elif kind == 2:
        entry["data_offsets"] = [chance.choice(NUMBERS) for _ in range(chance.choice([0, 1, 2, 2, 2, 3]))]
    elif kind == 3:
        outer[chance.choice(["text", "fast/9/w1", "window/0/k", "../x", "", name + "/k"])] = outer.pop(name)
    elif kind == 4:
        outer[name + chance.choice(["x", "0", "/"])] = copy.deepcopy(entry)
    else:
        del outer[name]


def _resize(chance: random.Random, outer: dict[str, Any], body: bytearray) -> None:
    """A tensor of another length whose bytes are there: everything after it moves."""
    entries = [e for name, e in outer.items() if name != "__metadata__" and _has_place(e)]
    if not entries:
        return
    entry = chance.choice(entries)
    begin, end = entry["data_offsets"]
    more = chance.choice([-8, -4, -1, 1, 4, 8, 4096, 1 << 16])
    more = max(more, begin - end)
    body[end:end] = bytes(max(more, 0))
    del body[end + min(more, 0) : end]
    for other in entries:
        if other is entry or other["data_offsets"][0] >= end:
            other["data_offsets"] = [x + (more if x >= end else 0) for x in other["data_offsets"]]
    if chance.random() < 0.7 and entry["shape"] and isinstance(entry["shape"][0], int):
        width = {"F32": 4, "I32": 4, "BF16": 2}.get(entry["dtype"], 1)
        entry["shape"] = [(end - begin + more) // width] if len(entry["shape"]) == 1 else entry["shape"]


def _has_place(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(x) is int and 0 <= x < 10**6 for x in offsets)
        and isinstance(entry.get("shape"), list)
        and isinstance(entry.get("dtype"), str)
    )


def attack(files: int, seed: int) -> dict[str, Any]:
    """Loads that many mutants; raises on the first that does anything but load soundly or be refused."""
    with tempfile.TemporaryDirectory() as folder:
        sound = sound_files(Path(folder))
        target = Path(folder) / "mutant.ttt"
        for content in sound:
            target.write_bytes(content)
            _look(target)
        before, longest, loaded = _peak(), 0.0, 0
        for number, target in enumerate(_made_elsewhere(Path(folder), sound, seed, files)):
            began = time.process_time()
            try:
                loaded += _look(target)
            except Exception as error:
                raise AssertionError(f"mutant {number} of seed {seed}: {type(error).__name__}: {error}") from error
            longest = max(longest, time.process_time() - began)
        return {
            "files": files,
            "seed": seed,
            "loaded": loaded,
            "refused": files - loaded,
            "longest_seconds": round(longest, 4),
            "growth_bytes": _peak() - before,
        }


def _made_elsewhere(folder: Path, sound: list[bytes], seed: int, count: int) -> Iterator[Path]:
    """The mutants as files, each there until the next is asked for."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    maker = context.Process(target=_make, args=(there, folder, sound, seed, count), daemon=True)
    maker.start()
    there.close()
    try:
        for number in range(count):
            name = here.recv()
            here.send(number)  # the next may be made while this one is read
            yield folder / name
            os.unlink(folder / name)
        maker.join()
    finally:
        here.close()
        maker.terminate()


def _make(pipe: Connection, folder: Path, sound: list[bytes], seed: int, count: int) -> None:
    for number, mutant in enumerate(mutants(sound, seed, count)):
        (folder / f"{number}.ttt").write_bytes(mutant)
        pipe.send(f"{number}.ttt")
        pipe.recv()


def _look(path: Path) -> bool:
    """Whether the file is accepted; if so, what it holds can be described, saved and loaded again."""
    try:
        inspect_memory(path)
        memory: Memory = Memory.load(path)
    except MemoryFormatError as error:
        assert str(error).isprintable()
        return False
    json.dumps(summary(memory))
    memory.save(path)
    assert memories_equal(Memory.load(path), memory)
    return True


def _peak() -> int:
    """Peak resident bytes. Linux says it for this program alone; `getrusage` begins with what its starter had used."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = attack(options.files, options.seed)
    print(json.dumps(result))
    if result["longest_seconds"] > SECONDS or result["growth_bytes"] > GROWTH_BYTES:
        raise SystemExit("a file took too long or too much memory")


if __name__ == "__main__":
    main()
