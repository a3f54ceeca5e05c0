"""A conversation after a memory: its messages, its reply in pieces, and how that ends."""

from __future__ import annotations

import pytest

from ttt_docs.errors import UsageError
from ttt_docs.generation.chat import _in_order, _stripped

STORY = "The ship lay still, and the captain counted the waves. Nobody spoke to him before the evening came. " * 3


@pytest.fixture(scope="module")
def memory(tiny_reader):
    return tiny_reader.ingest(text=STORY, progress=False)


def test_one_question_is_answered_as_ask_does(tiny_reader, memory):
    reply = tiny_reader.chat(memory, [("user", "What did he count?")], max_new_tokens=20)
    pieces = list(reply)
    answer = tiny_reader.ask(memory, "What did he count?", route="memory", max_new_tokens=20)
    assert "".join(pieces) == answer.text and 1 <= len(pieces) <= reply.tokens
    assert 0 < reply.tokens <= 20 and reply.ending == ("length" if reply.tokens == 20 else "stop")


def test_earlier_turns_change_the_reply(tiny_reader, memory):
    turns = [("user", "Hello"), ("assistant", "Good evening."), ("user", "What did he count?")]
    longer, alone = tiny_reader.chat(memory, turns), tiny_reader.chat(memory, turns[-1:])
    assert longer.prompt_tokens > alone.prompt_tokens
    again = tiny_reader.chat(memory, turns, max_new_tokens=20)
    assert "".join(again) == "".join(tiny_reader.chat(memory, turns, max_new_tokens=20))


def test_without_a_memory_the_conversation_stands_alone(tiny_reader):
    reply = tiny_reader.chat(None, [("user", "Hello")], max_new_tokens=5)
    assert reply.prompt_tokens == len(tiny_reader.tokenizer.encode_chat([("user", "Hello")]))
    assert len(list(reply)) <= 5


def test_messages_are_put_in_order():
    given = [("user", "a"), ("system", "s"), ("user", "b"), ("assistant", "c"), ("user", " "), ("user", "d")]
    assert _in_order(given) == [("system", "s"), ("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]
    for wrong in ([], [("user", " ")], [("user", "a"), ("assistant", "b")], [("system", "s")]):
        with pytest.raises(UsageError, match="end with a message of the user"):
            _in_order(wrong)
    with pytest.raises(UsageError, match="'tool'"):
        _in_order([("tool", "x"), ("user", "y")])


def test_a_conversation_must_fit_the_window(tiny_reader, memory):
    with pytest.raises(UsageError, match="window"):
        tiny_reader.chat(memory, [("user", "x" * 1100)])


@pytest.mark.parametrize(
    ("pieces", "given"),
    [
        (["  a", " ", "b ", "  "], ["a", " b"]),
        ([" ", "\n", "a"], ["a"]),
        (["", " "], []),
        (["a\n", "\nb"], ["a", "\n\nb"]),
    ],
)
def test_white_space_around_a_reply_is_left_out(pieces, given):
    assert list(_stripped(pieces)) == given
