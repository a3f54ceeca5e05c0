"""What the benchmarks share: a stream of tokens, a way to read it, and the facts that belong beside any figure."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from books import books
from record import ROOT, circumstances
from torch import Tensor

from ttt_docs import TTTReader

EXAMPLE = ROOT / "examples" / "portrait.txt"


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--window", type=int, default=2048, help="tokens (default 2048)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--book", type=Path, help="a text file (default: the example book)")
    parser.add_argument("--books", type=Path, metavar="FILE.jsonl.zst", help="a collection, of which --id is read")
    parser.add_argument("--id", help="which book of --books (default: the first)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")


def book_of(options: argparse.Namespace) -> tuple[str, str]:
    """Title and text."""
    if options.books is None:
        path = options.book or EXAMPLE
        return path.stem, path.read_text("utf-8")
    for book in books(options.books):
        if options.id in (None, str(book["id"])):
            return book["title"], book["text"]
    raise SystemExit(f"Error: no book {options.id!r} in {options.books.name}")


def tokens_of(reader: TTTReader, text: str, length: int) -> Tensor:
    """Token ids [1, length + 1]: the text, from its beginning again where it is shorter."""
    ids = reader.tokenizer.encode(text)
    ids *= -(-(length + 1) // len(ids))
    return torch.tensor(ids[: length + 1]).unsqueeze(0)


def facts(options: argparse.Namespace, title: str) -> dict[str, Any]:
    """Under what circumstances the figures were measured. Nothing that names a machine or a folder."""
    return circumstances(("ttt-docs", "torch", "transformers")) | {
        "cpu": {
            "model": _cpu(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "amx": torch.cpu._is_amx_tile_supported(),
        },
        "threads": torch.get_num_threads(),
        "model": options.model,
        "dtype": options.dtype,
        "window": options.window,
        "book": title,
        "arguments": [Path(a).name if "/" in a else a for a in sys.argv[1:]],
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
