"""Text to tokens and back, with the `tokenizers` package alone: importing transformers would cost seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ttt_docs.errors import CheckpointError

_SLOT = "\ue000{}\ue000"  # stands for a message in a template; private-use characters: no template has them
_HELD = 8  # tokens; a character has at most 4 bytes, so more than that is no character in the making


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    A text is only data: a document that contains `<|im_end|>` gets the tokens of those ten characters, never the
    control token. Only the chat template can produce control tokens.

    Raises:
        CheckpointError: the folder has no tokenizer.json, or a broken one.
    """

    def __init__(self, folder: str | Path) -> None:
        from tokenizers import Tokenizer as Backend

        folder = Path(folder)
        path = folder / "tokenizer.json" if folder.is_dir() else folder
        if not path.is_file():
            raise CheckpointError(f"{folder} has no tokenizer (tokenizer.json)")
        try:
            self._backend: Any = Backend.from_file(str(path))
            settings = path.parent / "tokenizer_config.json"
            self._settings: dict[str, Any] = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
            template = path.parent / "chat_template.jinja"
            if template.is_file():  # where transformers 5 saves it
                self._settings["chat_template"] = template.read_text("utf-8")
        except Exception as error:  # `tokenizers` raises bare exceptions
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self._backend.encode_special_tokens = True  # special tokens written in a text stay text
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        self._special = {token.content: index for index, token in added.items() if token.special}

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    @property
    def bos_id(self) -> int | None:
        return self.token_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self.token_id("eos_token")

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the model was trained with BOS in front of every text. `encode` never adds it: the caller does."""
        return self.bos_id is not None and self._backend.encode("a").ids[:1] == [self.bos_id]

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`; no BOS or EOS, and special tokens spelled out in the text are plain text."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, of several texts, on all cores."""
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens and, for each, the characters `text[start:end]` it covers.

        Tokens that share a character (the bytes of one symbol) each have the whole of it. Some tokenizers leave leading
        white space out of a token's span.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, control tokens left out. Bytes that are no valid UTF-8 come out as U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def decode_stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens that come one at a time; the pieces joined are what `decode` gives for all of them.

        The bytes of a character are held back until it is complete.
        """
        ids: list[int] = []  # the tokens already shown that give the next ones their context, then the new ones
        shown, new = 0, ""
        for token in tokens:
            ids.append(token)
            # Some decoders strip a space at the start of a text. The tokens before keep that out of the new text.
            new = self.decode(ids)[len(self.decode(ids[:shown])) :]
            if new and not (new.endswith("\ufffd") and len(ids) - shown <= _HELD):
                yield new
                ids, shown, new = ids[shown:], len(ids) - shown, ""
        yield new

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of a conversation of (role, text), ready for the assistant's next message.

        The roles are perhaps "system", then alternately "user" and "assistant". Control tokens come from the template
        alone. A template that knows no system role gets the system text in front of the user's. White space around each
        text is stripped, as most templates do. A thinking switch (Qwen 3's `enable_thinking`) is off.

        Raises:
            CheckpointError: no chat template (a base model), or one that cannot be rendered.
        """
        parts, contents = self._chat_parts(messages)
        ids: list[int] = []
        pending = ""
        for part in parts:
            if part in contents:
                pending += contents[part]
                continue
            for piece in self._special_pattern.split(part):
                if piece in self._special:
                    ids += [*self.encode(pending), self._special[piece]]
                    pending = ""
                else:
                    pending += piece
        return ids + self.encode(pending)

    def _chat_parts(self, messages: Sequence[tuple[str, str]]) -> tuple[list[str], dict[str, str]]:
        """The rendered template cut at the slots for the contents, and what goes into each slot."""
        contents = {_SLOT.format(index): text.strip() for index, (_, text) in enumerate(messages)}
        slots = [{"role": role, "content": slot} for slot, (role, _) in zip(contents, messages, strict=True)]
        if len(slots) > 1 and slots[0]["role"] == "system":
            system, user, *rest = slots
            try:
                rendered = self._render(slots)
            except CheckpointError:
                rendered = ""
            if system["content"] not in rendered:
                both = f"{system['content']}\n\n{user['content']}"
                rendered = self._render([{"role": "user", "content": both}, *rest])
        else:
            rendered = self._render(slots)
        if not all(slot in rendered for slot in contents):
            raise CheckpointError("the chat template leaves out the user's message")
        parts = re.split(f"({'|'.join(map(re.escape, contents))})", rendered)
        return [part for part in parts if part], contents

    def _render(self, messages: list[dict[str, str]]) -> str:
        if self._template is None:
            raise CheckpointError("this model has no chat template: it continues text, it was not trained to answer")
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(  # a template is code from the checkpoint's author
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        special = {key: self._token(key) or "" for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        try:
            template = environment.from_string(self._template)
            return template.render(messages=messages, add_generation_prompt=True, enable_thinking=False, **special)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the model's chat template cannot be rendered: {error}") from error

    @cached_property
    def _template(self) -> str | None:
        template = self._settings.get("chat_template")
        if isinstance(template, list):  # several by name
            named = {item["name"]: item["template"] for item in template}
            template = named.get("default")
        return template

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else r"(?!)")

    def _token(self, key: str) -> str | None:
        token = self._settings.get(key)
        return token.get("content") if isinstance(token, dict) else token

    def token_id(self, key: str) -> int | None:
        """Id of the special token that the tokenizer's settings name `key` (`unk_token`, ...)."""
        token = self._token(key)
        return None if token is None else self._backend.token_to_id(token)
