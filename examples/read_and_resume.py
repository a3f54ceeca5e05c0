"""Read a book in several sittings: Ctrl-C stops between two chunks, and the next run goes on where this one stopped.

    python examples/read_and_resume.py examples/portrait.txt book.ttt

What comes out is bit for bit the memory of a reading that was never interrupted.
"""

import argparse
import signal
from pathlib import Path

from ttt_docs import Memory, ReadingInterrupted, TTTReader

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("book")
parser.add_argument("output", type=Path)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--stop-after", type=int, metavar="CHUNKS", help="press Ctrl-C for me after so many chunks")
arguments = parser.parse_args()


def on_chunk(report):
    print(f"chunk {report.index}: {report.loss:.3f} nats per token")
    if arguments.stop_after and report.index + 1 >= arguments.stop_after:
        signal.raise_signal(signal.SIGINT)


reader = TTTReader.from_pretrained(arguments.model)
memory = Memory.load(arguments.output) if arguments.output.exists() else None
if memory is not None and memory.documents[-1].complete:
    raise SystemExit(f"{arguments.output} holds the whole book already")
try:
    memory = reader.ingest(arguments.book, memory=memory, on_chunk=on_chunk)
    print(f"read: {len(memory.tokens):,} tokens in {memory.chunks} chunks")
except ReadingInterrupted as interruption:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C must not cost what is about to be saved
    memory = interruption.memory
    print(f"stopped after {memory.position:,} tokens; the same command goes on from there")
except KeyboardInterrupt:  # a second Ctrl-C, before the chunk was read
    print("stopped at once: what this run has read is lost")
    raise SystemExit(130) from None
memory.save(arguments.output)
