"""The chat model and the LLM: the same answers as the reader's own, from files and stores, streamed and not."""

from __future__ import annotations

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_ttt_docs import ChatTTTDocs, TTTDocsLLM
from langchain_ttt_docs.chat_models import conversation_of

from ttt_docs.errors import MemoryFormatError, MemoryMismatchError, UsageError

QUESTION = "What did the captain count?"


class Heard(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token, **_):
        self.tokens.append(token)


@pytest.fixture
def chat(settings) -> ChatTTTDocs:
    return ChatTTTDocs(**settings, route="memory")


@pytest.fixture
def llm(settings) -> TTTDocsLLM:
    return TTTDocsLLM(**settings, route="memory")


def test_one_question_gets_the_readers_answer(chat, llm, reader, memory):
    answer = reader.ask(memory, QUESTION, route="memory", max_new_tokens=24).text
    assert answer and chat.invoke(QUESTION).text == answer == llm.invoke(QUESTION)
    assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == answer == "".join(llm.stream(QUESTION))


async def test_coroutines(chat, llm):
    answer = chat.invoke(QUESTION).text
    assert (await chat.ainvoke(QUESTION)).text == answer == await llm.ainvoke(QUESTION)
    assert "".join([chunk.text async for chunk in chat.astream(QUESTION)]) == answer
    assert "".join([piece async for piece in llm.astream(QUESTION)]) == answer


def test_streams_come_in_pieces_and_callbacks_hear_them(chat, llm):
    heard = Heard()
    pieces = [chunk.text for chunk in chat.stream(QUESTION, config={"callbacks": [heard]})]
    assert len(pieces) > 2 and [t for t in heard.tokens if t] == [p for p in pieces if p]
    heard = Heard()
    assert [p for p in llm.stream(QUESTION, config={"callbacks": [heard]}) if p] == heard.tokens


def test_metadata(chat, llm, reader, settings):
    message = chat.invoke(QUESTION)
    usage, about = message.usage_metadata, message.response_metadata
    assert 0 < usage["output_tokens"] <= 24 and usage["input_tokens"] > len(reader.tokenizer.encode(QUESTION))
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert about["model_name"] == settings["model"] and about["documents"] == ["log.txt"] and about["route"] == "memory"
    assert about["finish_reason"] == ("length" if usage["output_tokens"] == 24 else "stop")
    assert chat.invoke(QUESTION, max_tokens=2).response_metadata["finish_reason"] == "length"
    result = llm.generate([QUESTION, QUESTION])
    assert result.llm_output["token_usage"]["output_tokens"] == 2 * usage["output_tokens"]


def test_looked_up_answers_have_evidence(settings, memory):
    message = ChatTTTDocs(**settings, route="lookup").invoke("How many waves were counted on day 37?")
    evidence = message.response_metadata["evidence"]
    assert message.response_metadata["route"] == "lookup" and evidence
    for found in evidence:
        assert found["quote"] == memory.text[found["start"] : found["end"]] and found["page"] in ("1", "2")
    streamed = list(ChatTTTDocs(**settings, route="lookup").stream("How many waves were counted on day 37?"))
    assert "".join(chunk.text for chunk in streamed) == message.text


def test_a_store_and_a_document_in_each_call(settings, library):
    chat = ChatTTTDocs(model=library.model, dtype="float32", store=library.store, max_tokens=24, route="memory")
    assert chat.invoke(QUESTION, document="log.txt").response_metadata["documents"] == ["log.txt"]
    assert chat.bind(document="farm.txt").invoke(QUESTION).response_metadata["documents"] == ["farm.txt"]
    from_file = ChatTTTDocs(**settings, route="memory")
    same = from_file.invoke(QUESTION, store=library.store, document="log.txt")
    assert same.text == from_file.invoke(QUESTION).text


def test_without_a_memory_the_model_answers(library):
    about = ChatTTTDocs(model=library.model, dtype="float32", max_tokens=8).invoke("Hello").response_metadata
    assert about["documents"] == [] and about["route"] == "memory"


def test_stop_words_and_seeds(chat):
    whole = chat.invoke(QUESTION).text
    stop = whole[3:6]
    assert chat.invoke(QUESTION, stop=[stop]).text == whole[: whole.index(stop)].strip()
    warm = [chat.invoke(QUESTION, temperature=1.5, seed=seed).text for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


def test_a_conversation_takes_every_turn(chat, reader):
    messages = [SystemMessage("Be brief."), HumanMessage("Hello"), AIMessage("Yes?"), HumanMessage(QUESTION)]
    longer, alone = chat.invoke(messages), chat.invoke(QUESTION)
    assert longer.usage_metadata["input_tokens"] != alone.usage_metadata["input_tokens"]
    assert conversation_of([*messages, ChatMessage("x", role="user")])[-1] == ("user", "x")
    blocks = [HumanMessage([{"type": "text", "text": QUESTION}])]
    assert chat.invoke(blocks).text == alone.text


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([ToolMessage("4", tool_call_id="1")], "calls no tools"),
        ([HumanMessage([{"type": "image", "url": "http://example.org/a.png"}])], "reads text alone"),
        ([HumanMessage(" ")], "not empty"),
        ([HumanMessage("a"), AIMessage("b")], "end with a message of the user"),
    ],
)
def test_messages_that_cannot_be(chat, messages, said):
    with pytest.raises(UsageError, match=said):
        chat.invoke(messages)


def test_calls_that_cannot_be(chat, library, settings, tmp_path):
    with pytest.raises(UsageError, match="temprature"):
        chat.invoke(QUESTION, temprature=1)
    with pytest.raises(UsageError, match="temperature"):
        chat.invoke(QUESTION, temperature=-1)
    with pytest.raises(UsageError, match="not both"):
        ChatTTTDocs(**settings, store=library.store).invoke(QUESTION)
    with pytest.raises(UsageError, match="go together"):
        ChatTTTDocs(model=library.model, store=library.store).invoke(QUESTION)
    with pytest.raises(UsageError, match="no memory of"):
        chat.invoke(QUESTION, store=library.store, document="nothing.txt")
    with pytest.raises(MemoryFormatError, match="does not exist"):
        chat.invoke(QUESTION, memory=str(tmp_path / "none.ttt"))
    with pytest.raises(UsageError, match="window"):
        chat.invoke(QUESTION, max_tokens=4000)


def test_another_models_memory_is_refused(library, other_model):
    with pytest.raises(MemoryMismatchError):
        ChatTTTDocs(model=str(other_model), dtype="float32", memory=library.memory).invoke(QUESTION)


def test_tokens_are_counted_by_the_models_tokenizer(chat, llm, reader):
    assert chat.get_num_tokens("the captain") == len(reader.tokenizer.encode("the captain"))
    assert llm.get_token_ids("the captain") == reader.tokenizer.encode("the captain")
