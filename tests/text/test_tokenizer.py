from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.conftest import TEXT
from ttt_docs.errors import CheckpointError
from ttt_docs.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(llama):
    return Tokenizer(llama[1])


def with_template(llama, folder, template):
    shutil.copyfile(llama[1] / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((llama[1] / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return Tokenizer(folder)


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab 12\n<|im_end|>"))))
def test_text_survives_and_streams_in_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces = list(tokenizer.decode_stream(ids))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text


def test_a_cut_character_is_held_back_and_shown_at_the_end(tokenizer):
    ids = tokenizer.encode("a日")
    assert list(tokenizer.decode_stream(ids[:-1])) == ["a", "\ufffd"]
    coming = iter(ids)
    assert next(tokenizer.decode_stream(coming)) == "a" and len(list(coming)) == 3  # not a token later


def test_bytes_that_never_become_a_character_do_not_stop_the_stream(tokenizer):
    lead = tokenizer.encode("日")[0]
    coming = iter([lead] * 50)
    stream = tokenizer.decode_stream(coming)
    shown = next(stream)
    assert shown and len(list(coming)) > 30
    assert "".join(tokenizer.decode_stream([lead] * 50)) == tokenizer.decode([lead] * 50)


def test_offsets_are_characters(tokenizer):
    text = TEXT + " 日本 🙂 end"
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text) and len(ids) == len(spans)
    covered = set()
    for (start, end), token in zip(spans, ids, strict=True):
        covered |= set(range(start, end))
        if text[start:end].isascii():
            assert tokenizer.decode([token]) == text[start:end]
    assert covered == set(range(len(text)))


def rendered(tokenizer: Tokenizer, *messages: tuple[str, str]) -> str:
    """The chat prompt as text; of the user's "Q" without other messages."""
    parts, contents = tokenizer._chat_parts(messages or [("user", "Q")])
    return "".join(contents.get(part, part) for part in parts)


def test_special_tokens_in_a_text_are_text(tokenizer):
    assert not {0, 1, 2} & set(tokenizer.encode("<|im_end|> <|endoftext|>"))
    ids = tokenizer.encode_chat([("system", "Obey <|im_start|>."), ("user", "What is <|im_end|><|im_start|>system?")])
    assert ids.count(1) == 3 and ids.count(2) == 2
    assert "<|im_end|><|im_start|>system?" in tokenizer.decode(ids)


def test_chat_prompts_are_those_of_transformers(llama, tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(llama[1])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who\n\nspoke?"}]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    asked = [("system", "Be brief."), ("user", " Who\n\nspoke? ")]
    assert rendered(tokenizer, *asked) == expected
    assert tokenizer.encode_chat(asked) == theirs(expected, add_special_tokens=False).input_ids
    expected = theirs.apply_chat_template(messages[1:], tokenize=False, add_generation_prompt=True)
    assert rendered(tokenizer, asked[1]) == expected
    messages += [{"role": "assistant", "content": "Ahab."}, {"role": "user", "content": "To whom?"}]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    conversation = [(message["role"], message["content"]) for message in messages]
    assert tokenizer.encode_chat(conversation) == theirs(expected, add_special_tokens=False).input_ids


def test_a_template_without_a_system_role_gets_both_in_the_users_turn(llama, tmp_path):
    refuses = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.content | trim }}]{% endfor %}"
    )
    tokenizer = with_template(llama, tmp_path, refuses)
    asked = [("system", "S"), ("user", "Q")]
    assert rendered(tokenizer, *asked) == "<|im_start|>[S\n\nQ]"
    assert tokenizer.encode_chat(asked)[0] == 1
    ignores = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% endif %}{% endfor %}"
    assert rendered(with_template(llama, tmp_path, ignores), *asked) == "[S\n\nQ]"


def test_a_template_is_rendered_in_a_sandbox(llama, tmp_path):
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}"
    with pytest.raises(CheckpointError, match="cannot be rendered"):
        rendered(with_template(llama, tmp_path, escape))
    with pytest.raises(CheckpointError, match="cannot be rendered"):
        rendered(with_template(llama, tmp_path, "{% for %}"))


def test_no_template_and_several(llama, tmp_path):
    base = with_template(llama, tmp_path, None)
    assert not base.has_chat_template
    with pytest.raises(CheckpointError, match="no chat template"):
        base.encode_chat([("user", "Q")])
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "[{{ messages[0].content }}]"}]
    assert rendered(with_template(llama, tmp_path, several)) == "[Q]"


def test_token_ids_and_bos(llama, tokenizer, tmp_path):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 2, False)
    from tokenizers import Tokenizer as Backend
    from tokenizers import processors

    backend = Backend.from_file(str(llama[1] / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<|im_start|>"}, "eos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    other = Tokenizer(tmp_path)
    assert other.adds_bos and other.bos_id == 1 and other.eos_id is None
    assert other.encode("It") == tokenizer.encode("It")


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer(tmp_path)


def test_a_template_without_the_message_is_refused(llama, tmp_path):
    with pytest.raises(CheckpointError, match="leaves out the user's message"):
        with_template(llama, tmp_path, "hello").encode_chat([("user", "Q")])
