"""ttt-docs in LangChain: a book in a chain, its passages for another model, and its memory as a tool.

    pip install 'ttt-docs[langchain]'
    python examples/langchain_chain.py examples/portrait.txt "Who is the hero of this book?"

The other model here only repeats its prompt: put any chat model of LangChain's in its place.
"""

import argparse
from operator import itemgetter

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_ttt_docs import ChatTTTDocs, TTTDocsIngest, TTTDocsRetriever, memory_tool

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("book")
parser.add_argument("question")
parser.add_argument("--store", default="memories", help="where memories are kept: read once, asked often")
parser.add_argument("--model", default="smollm2-135m")
arguments = parser.parse_args()

# 1. A chain from a file and a question to an answer. The book is read at the first call only.
ingest = TTTDocsIngest(model=arguments.model, store=arguments.store)
chat = ChatTTTDocs(model=arguments.model)
answer = RunnablePassthrough.assign(where=itemgetter("book") | ingest) | RunnableLambda(
    lambda given: chat.invoke(given["question"], **given["where"])
)
message = answer.invoke({"book": arguments.book, "question": arguments.question})
print(f"The book says ({message.response_metadata['route']}): {message.text}")

# 2. Its passages as context for another model.
where = ingest.invoke(arguments.book)
retriever = TTTDocsRetriever(**where, k=2)
prompt = ChatPromptTemplate.from_template("Answer from these passages.\n\n{passages}\n\nQuestion: {question}")
other_model = RunnableLambda(lambda value: value.to_messages()[0])
with_passages = (
    {
        "passages": retriever | (lambda found: "\n\n".join(f"[{p.metadata['start']}] {p.page_content}" for p in found)),
        "question": RunnablePassthrough(),
    }
    | prompt
    | other_model
    | StrOutputParser()
)
print(f"\nAnother model is told:\n{with_passages.invoke(arguments.question)}")

# 3. A tool for an agent, which may ask the book what it wants to know.
tool = memory_tool(ChatTTTDocs(model=arguments.model, **where), description="Answers questions about the book.")
print(f"\nThe tool {tool.name} answers: {tool.invoke({'question': arguments.question})}")
