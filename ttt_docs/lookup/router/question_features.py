"""What a question is made of, as the router sees it: its words, their classes and vectors, and what it points to.

Only the clause that asks counts. Names, numbers, quotations and pointers such as "page 12" stand in it as `<name>`,
`<number>`, `<quote>` and `<place>`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from ttt_docs.lookup.patterns import compiled, patterns
from ttt_docs.text.names import word_list

#: Of a longer question the first and the last words count.
LONGEST = 120

_PATTERNS = {name: compiled(pattern) for name, pattern in patterns()["router"].items()}
_WORD, _CLAUSE, _POLITE = _PATTERNS["word"], _PATTERNS["clause"], _PATTERNS["polite"]
_WRITTEN = tuple(
    (re.compile(pattern, re.IGNORECASE), written)
    for pattern, written in (
        (r"\b(mr|mrs|ms|dr|st|prof|al|no|vs|etc|inc|ltd|co)\.(?=\s)", r"\1"),
        (r"\btl;?\s?dr\b", "tldr"),
        (r"\bhow come\b", "why"),
    )
)
_ASKING = ("who", "whom", "whose", "when", "where", "which", "what", "why", "how")
#: A question that begins with one of these asks for yes or no.
_AUXILIARIES = word_list("auxiliaries")
_SHORT = {"what's": "what is", "who's": "who is", "where's": "where is", "when's": "when is", "how's": "how is"}
#: Small words end or come before what is asked for. Orders are verbs that say nothing of what is wanted.
_SMALL, _ORDERS = word_list("small"), word_list("orders")


def stem(word: str) -> str:
    """The word without its commonest endings, British spelling made American: `summarised` and `summarizes` are one."""
    word = word.replace("’", "'").removesuffix("'s").rstrip("'")
    word = re.sub(r"(?<=[a-z]{3})(?:is|iz)(?=(?:e|ed|es|er|ing|ation)s?$)", "iz", word)
    if len(word) > 4:
        word = re.sub(r"ies$", "y", word)
        word = re.sub(r"(?<=[^s])s$", "", word)
    for ending in ("ing", "ed", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    if len(word) > 3:
        word = re.sub(r"([bdfgmnprt])\1$", r"\1", word.removesuffix("e"))
    return word


@cache
def word_classes() -> dict[str, tuple[str, ...]]:
    """Stem to the names of its classes."""
    classes: dict[str, dict[str, None]] = {}  # names in order, each once
    for name, entry in _word_file().items():
        for word in entry["words"].split():
            classes.setdefault(stem(word), {})[name] = None
    return {word: tuple(names) for word, names in classes.items()}


@cache
def class_meanings() -> dict[str, str]:
    """What a question with a word of the class does, in words: "asks for a number"."""
    return {name: entry["says"] for name, entry in _word_file().items()}


@cache
def _word_file() -> dict[str, dict[str, str]]:
    return json.loads(Path(__file__).with_name("question_words.json").read_text("utf-8"))


def corrected(word: str) -> str:
    """The known stem that is one slip of the pen away from this one, if any: `them` stays, `sumary` is `summary`.

    One letter is missing, too much or another, or two neighbours have changed places; the first letter is right.
    """
    known = word_classes()
    if word in known or len(word) < 5 or not word.isascii():
        return word
    near = set()
    for i in range(1, len(word) + 1):
        before, after = word[:i], word[i:]
        near |= {before + after[1:], before + after[1::-1] + after[2:]}
        near |= {before + letter + rest for letter in ascii_lowercase for rest in (after, after[1:])}
    return next((other for other in known if other in near and len(other) > 3 and "common" not in known[other]), word)


def features(question: str) -> dict[str, str]:
    """The question's features, each with the words of the question that it comes from (for the reason).

    Names: `w=` a stem, `c=` a word class, `q=` the question word, `has=` one of place, quote, form, code, year, number
    and name. `lead&c=` and `head&c=` are classes of the first and of the last word of what is asked for.
    `q=...&head&c=...` joins the question word and such a class.
    """
    stems, spoken, found = clause_words(question)
    for kind in ("quote", "form", "place"):  # of another clause they say less
        if f"has={kind}" in found and f"<{kind}>" not in spoken:
            del found[f"has={kind}"]
    asking = _question_word([word.lower() for word in spoken])
    yes_or_no = bool(spoken) and spoken[0].lower() in _AUXILIARIES
    kind = "how much" if asking.startswith("how ") else asking or ("yes" if yes_or_no else "none")
    found[f"q={kind}"] = asking
    lowered = [stem if stem == "<name>" else word.lower() for stem, word in zip(stems, spoken, strict=True)]
    for part, word_at in zip(("lead", "head"), asked_for(lowered), strict=True):
        if word_at is not None:
            for name in _telling_classes(stems[word_at]):
                found[f"{part}&c={name}"] = found[f"q={kind}&{part}&c={name}"] = spoken[word_at]
    for word, said in zip(stems, spoken, strict=True):
        if not word.startswith("<"):
            found.setdefault(f"w={word}", said)
        for name in _telling_classes(word):
            found.setdefault(f"c={name}", said)
    return found


def _telling_classes(word: str) -> list[str]:
    return [name for name in word_classes().get(word, ()) if name not in ("common", "document")]


def asked_for(words: list[str]) -> tuple[int | None, int | None]:
    """The positions of the first and last word of what is asked for: "what is the [main character's name]".

    That is the first run of words without small words: in English its last word is its head. `words` in lower case,
    with names and the like as `<name>`. (None, None) if there are only small words.
    """
    telling = (word not in _SMALL and not (word in _ORDERS and i + 1 < len(words)) for i, word in enumerate(words))
    first = next((i for i, tells in enumerate(telling) if tells), None)
    if first is None:
        return None, None
    return first, next((i for i, word in enumerate(words) if i > first and word in _SMALL), len(words)) - 1


def clause_words(question: str) -> tuple[list[str], list[str], dict[str, str]]:
    """Stems and written words of the clause that asks, names and pointers as `<name>`, `<place>` and so on.

    Also a feature for every name and pointer, anywhere in the question.
    """
    found: dict[str, str] = {}
    text = _plain(question)
    words = text.split()
    if len(words) > LONGEST:
        text = " ".join(words[: LONGEST // 2] + words[-LONGEST // 2 :])

    def mask(text: str, *kinds: str) -> str:
        for kind in kinds:
            for match in _PATTERNS[kind].finditer(text):
                found.setdefault(f"has={kind}", match[0].strip())
            text = _PATTERNS[kind].sub(f" <{kind}> ", text)
        return text

    clause = _POLITE.sub("", _asking_clause(mask(text, "quote", "form", "place")))
    return (*_stems(mask(clause, "code", "year", "number"), found), found)


def _plain(question: str) -> str:
    """The question with plain quotation marks, and without the full stops that end no sentence."""
    text = unicodedata.normalize("NFKC", question).translate(str.maketrans("“”„«»‘’", '"""""\'\'')).strip()
    for pattern, written in _WRITTEN:
        text = pattern.sub(written, text)
    return text


def vector_row(word: str) -> int | None:
    """The row of a word, in lower case, among the vectors; None for an unknown one."""
    rows, _ = word_vectors()
    word = word.replace("’", "'").removesuffix("'s")
    return rows.get(word, rows.get(word.removesuffix("s")))


@cache
def word_vectors() -> tuple[dict[str, int], np.ndarray]:
    """Common words, each with its row, and their unit vectors, float32 [words, dim].

    benchmarks/router/make_vectors.py makes the file.
    """
    with np.load(Path(__file__).with_name("word_vectors.npz")) as file:
        words = str(file["words"]).split()
        return {word: row for row, word in enumerate(words)}, file["vectors"].astype(np.float32) / 127


def _asking_clause(text: str) -> str:
    """The last clause that begins with a question word or nearly so; else the last of all."""
    clauses = [clause for clause in _CLAUSE.split(text) if _WORD.search(clause)]
    asking = [c for c in clauses if _question_word(_WORD.findall(_POLITE.sub("", c).lower())[:4])]
    return (asking or clauses or [""])[-1]


def _stems(clause: str, found: dict[str, str]) -> tuple[list[str], list[str]]:
    """Stems and the words as written; names are `<name>`."""
    written = []
    for match in _WORD.finditer(clause):
        short = _SHORT.get(match[0].lower())
        written += short.split() if short else [match[0]]
    plain = [word for word in written if not word.startswith("<")]
    shouted = sum(word[0].isupper() for word in plain) > max(2, 0.6 * len(plain))
    stems: list[str] = []
    for i, word in enumerate(written):
        if word.startswith("<"):
            stems.append(word)
        elif word[0].isupper() and i and not shouted and word != "I":
            found.setdefault("has=name", word)
            if not stems or stems[-1] != "<name>":
                stems.append("<name>")
                continue
            written[i] = ""
        else:
            word = word.lower()
            stems.append(stem(word) if word in word_vectors()[0] else corrected(stem(word)))
    return stems, [word for word in written if word]


def _question_word(words: list[str]) -> str:
    """The first question word, "how many" as one; empty without one."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "how" and _PATTERNS["measure"].fullmatch(following):
            return f"how {following}"
        if word in _ASKING:
            return "who" if word in ("whom", "whose") else word
    return ""
