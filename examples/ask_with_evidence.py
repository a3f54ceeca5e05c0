"""Ask a book a question, and see which sentences of it the answer stands in.

    python examples/ask_with_evidence.py examples/portrait.pdf "Who wrote this book?"

Questions for something exact are looked up in the text, and the answer's evidence are quotes with their pages;
questions about the whole are answered from the memory. `--route` decides it by hand.
"""

import argparse

from ttt_docs import TTTReader

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("book")
parser.add_argument("question")
parser.add_argument("--route", choices=["auto", "memory", "lookup"], default="auto")
parser.add_argument("--model", default="smollm2-135m")
arguments = parser.parse_args()

reader = TTTReader.from_pretrained(arguments.model)
# Looking up needs the text alone, so nothing has to be read for it.
memory = reader.ingest(arguments.book, learn=arguments.route != "lookup")
answer = reader.ask(memory, arguments.question, route=arguments.route)

print(f"{answer}\n({answer.route}: {answer.reason}; {answer.seconds:.1f} s)")
for found in answer.evidence:
    assert found.quote == memory.text[found.start : found.end]
    print(f"\n  page {found.page or '?'}, score {found.score:.2f}: {' '.join(found.quote.split())}")
