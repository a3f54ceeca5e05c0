"""Two books, two memories: which of them expects a passage more?

    python examples/compare_books.py one.txt two.txt

Each book is read but for its last part, which neither memory has seen. Then both memories predict both endings. What a
memory has learned shows in its column: it should expect the ending of its own book better than the other does.
"""

import argparse
from pathlib import Path

from ttt_docs import Document, Memory, TTTReader

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("books", nargs=2, type=Path)
parser.add_argument("--characters", type=int, default=40_000, help="of each book that are read")
parser.add_argument("--ending", type=int, default=4_000, help="characters kept back")
parser.add_argument("--model", default="smollm2-135m")
arguments = parser.parse_args()

reader = TTTReader.from_pretrained(arguments.model)


def loss(memory: Memory, text: str) -> float:
    """Nats per token of `text`, read after what the memory holds; the memory itself does not change."""
    longer = reader.ingest(text=text, memory=memory, progress=False)
    return float(longer.nll[len(memory.tokens) :].mean())


memories, endings = [], []
for path in arguments.books:
    text = path.read_text("utf-8")[: arguments.characters + arguments.ending]
    cut = max(len(text) - arguments.ending, len(text) // 2)
    memories.append(reader.ingest(Document.from_text(text[:cut], name=path.name)))
    endings.append(text[cut:])

print(f"{'nats per token':<24}" + "".join(f"{'after ' + path.name:>24}" for path in arguments.books))
for path, ending in zip(arguments.books, endings, strict=True):
    print(f"{'ending of ' + path.name:<24}" + "".join(f"{loss(memory, ending):>24.3f}" for memory in memories))
