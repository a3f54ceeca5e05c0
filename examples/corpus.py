"""Read a folder of documents into a store, each only once, then ask all of them at the same time.

    python examples/corpus.py folder/ memories/ "Who is the captain?"

The store may be a folder or any fsspec URL. A document that was read before is not read again, and one whose reading
was cut off goes on where it stopped. `ttt-docs corpus ingest` does the same for many documents at once.
"""

import argparse
from pathlib import Path

from ttt_docs import DocumentError, MemoryStore, TTTReader

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("store")
parser.add_argument("question")
parser.add_argument("--model", default="smollm2-135m")
arguments = parser.parse_args()

reader = TTTReader.from_pretrained(arguments.model)
store = MemoryStore(arguments.store)
memories = []
for path in sorted(path for path in arguments.folder.iterdir() if path.is_file()):
    try:
        memories.append(reader.ingest(path, store=store))
    except DocumentError as error:
        print(f"left out: {error}")

for entry in store.list():
    names = ", ".join(document.name for document in entry.documents)
    print(f"{names}: {entry.tokens:,} tokens, {entry.nbytes / 1e6:.1f} MB")

answer = reader.ask(memories, arguments.question, route="lookup")
print(f"\n{answer}")
for found in answer.evidence:
    print(f"  {found.document}: {' '.join(found.quote.split())}")
