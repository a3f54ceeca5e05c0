"""The router: its decisions, its figures on the half it was not trained on, its speed, its command."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_decoder
from ttt_docs_cli.main import cli

from ttt_docs import UsageError
from ttt_docs.lookup.router.question_features import asked_for, corrected, features, stem
from ttt_docs.lookup.router.question_network import LENGTH, network_score, read_network, words_of
from ttt_docs.lookup.router.routing import decide

ROOT = Path(__file__).parents[2]
LABELLED = ROOT / "benchmarks" / "router"


def labelled(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (LABELLED / name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What was the captain's name?", "lookup"),
        ("captain's name", "lookup"),
        ("On which page is arbitration mentioned?", "lookup"),
        ("How many people were on board?", "lookup"),
        ('Who says "we shall not meet again"?', "lookup"),
        ("Summarize what page 12 says.", "lookup"),
        ("What is the main date the story revolves around?", "lookup"),
        ("What are the main themes?", "whole"),
        ("summarise the report", "whole"),
        ("How does Anna change over the course of the novel?", "whole"),
        ("Describe the style of the author.", "whole"),
        ("Compare the two brothers.", "whole"),
    ],
)
def test_clear_questions(question, expected):
    decision = decide(question)
    assert decision.route == expected and decision.reason
    assert 0 <= decision.probability <= 1


def test_half_that_no_weight_was_fitted_on():
    rows = [row for row in labelled("questions.jsonl") if row["half"] == "test"]
    right = sum(decide(row["question"]).route == row["label"] for row in rows)
    assert len(rows) >= 300 and right / len(rows) >= 0.95  # docs/router.md has the figure itself


def test_halves_share_no_template():
    rows = labelled("questions.jsonl")
    halves = {half: {row["template"] for row in rows if row["half"] == half} for half in ("train", "test")}
    assert len(rows) >= 600 and not halves["train"] & halves["test"]
    assert {row["domain"] for row in rows} == {"book", "contract", "report", "paper", "code", "manual"}


def test_frames_say_what_no_template_says(router_scripts):
    frames, make_questions = router_scripts("frames"), router_scripts("make_questions")
    rows = frames.frame_questions()
    templates = {frames.bare(template["text"]).lower() for template in make_questions.templates()}
    assert {row["label"] for row in rows} == {"lookup", "whole"} and len(rows) > 1000
    assert not {row["bare"].lower() for row in rows} & templates
    assert not any("{" in row["question"] for row in rows)


def test_choices_are_made_by_templates_that_nothing_learns_from(router_scripts):
    train = router_scripts("train")
    kept, last = train.learned_from(train.load(LABELLED / "questions.jsonl", "train"))
    assert not {row["template"] for row in kept} & {row["template"] for row in last}
    assert 0.2 < len(last) / (len(kept) + len(last)) < 0.3


def test_plain_questions_are_not_held_out_ones(router_scripts):
    plain = router_scripts("invent").plain
    held = {plain(row["question"]) for row in labelled("questions.jsonl") if row["half"] == "test"}
    own = [row["question"] for row in labelled("plain.jsonl")]
    assert len(own) > 1500 and len(set(own)) == len(own) and not held & set(map(plain, own))


def test_invented_questions(router_scripts):
    invent = router_scripts("invent")
    sources = ["What is the tone of the last chapter?", "When was the bridge in Leith built?", "Who signed the lease"]
    forbidden = ["When was the tone of the last chapter?"]
    found = invent.Inventor([(1.0, sources)], forbidden).questions(200)
    assert found == invent.Inventor([(1.0, sources)], forbidden).questions(200)
    assert len({invent.plain(one) for one in found}) == 200
    assert not {invent.plain(one) for one in found} & {invent.plain(one) for one in forbidden}


def test_a_teacher_learns(router_scripts, monkeypatch, tiny_tokenizer):
    teacher = router_scripts("teacher")
    base = SimpleNamespace(model=tiny_decoder(), tokenizer=tiny_tokenizer)
    monkeypatch.setattr(teacher, "TTTReader", SimpleNamespace(from_pretrained=lambda *_, **__: base))
    monkeypatch.setattr(teacher, "RATE", 3e-3)
    monkeypatch.setattr(teacher, "WARM", 2)
    questions = ["When was it built?", "What is its tone?", "Where?", "Why is the whole book so very sad?"]
    one = teacher.taught(questions, np.array([1.0, 0, 1, 0]), np.ones(4), epochs=600)
    scores = teacher.judged(one, questions)
    assert ((scores > 0) == [True, False, True, False]).all()
    alone = [float(teacher.judged(one, [question])[0]) for question in questions]
    assert scores == pytest.approx(alone, abs=1e-3), "what is read beside a question changes nothing"


@pytest.fixture
def router_scripts(monkeypatch):
    monkeypatch.syspath_prepend(LABELLED)
    return importlib.import_module


def test_labelled_set_is_what_its_templates_make():
    spec = importlib.util.spec_from_file_location("make_questions", LABELLED / "make_questions.py")
    make_questions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_questions)
    assert labelled("questions.jsonl") == make_questions.questions(), "run: python benchmarks/router/make_questions.py"


def test_reason_names_the_words_it_comes_from():
    assert "page 12" in decide("What does page 12 say?").reason
    assert "themes" in decide("What are the themes?").reason


def test_empty_question():
    with pytest.raises(UsageError, match="empty"):
        decide(" \n")


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_has_a_route(text):
    decision = decide(text)
    assert decision.route in ("whole", "lookup") and decision.reason and 0 <= decision.probability <= 1


def test_pasted_pages_are_a_question_too():
    assert decide("word " * 100_000 + "what is the date?").route in ("whole", "lookup")


def test_neither_torch_nor_transformers_is_imported():
    program = "import sys, ttt_docs.lookup.router.routing as r; r.decide('Who?'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_stems():
    assert stem("summarised") == stem("summarizes") == stem("summarize")
    assert stem("themes") == stem("theme") and stem("theories") == stem("theory")


def test_slips_of_the_pen():
    assert corrected(stem("sumarize")) == corrected(stem("summraize")) == stem("summarize")
    assert corrected(stem("these")) == stem("these") and corrected("zebra") == "zebra"


@pytest.mark.parametrize(
    ("question", "lead", "head"),
    [
        ("what is the main character's name", "main", "name"),
        ("termination notice period of the lease", "termination", "period"),
        ("give me a sense of the mood", "sense", "sense"),
        ("is the deposit refundable", "deposit", "refundable"),
        ("why is it", None, None),
    ],
)
def test_what_is_asked_for(question, lead, head):
    words = question.split()
    assert [place if place is None else words[place] for place in asked_for(words)] == [lead, head]


def test_network_reads_words_in_order():
    words = words_of("What is the theme of page 12?")
    assert words.stems == ["^", "what", "is", "the", "them", "of", "<place>", "$"]
    assert len(words.vectors) == len(words.classes) == LENGTH and not words.vectors[len(words.stems) :].any()
    assert network_score("the number of the theme") != network_score("the theme of the number")
    assert np.isfinite(network_score("qwzx " * 500))


def test_package_computes_what_was_trained(router_scripts, tmp_path):
    network = router_scripts("network")
    questions = ["When was it signed?", "What are the themes?", "page 12", "Why?"]
    words = network.vocabulary(questions, least=1)
    trained = network.train(questions, np.array([1.0, 0, 1, 0]), np.ones(4), words)
    network.save(trained, words, tmp_path / "network.npz")
    read = read_network(tmp_path / "network.npz")
    expected = network.scores(trained, questions, words)
    assert [network_score(question, read) for question in questions] == pytest.approx(expected, abs=0.05)
    assert np.ptp(expected) > 0.1


def test_a_question_takes_less_than_5_ms():
    questions = [row["question"] for row in labelled("questions.jsonl")[::50]]
    seconds = []
    for question in questions:
        began = time.process_time()
        decide(question)
        seconds.append(time.process_time() - began)
    assert median(seconds) < 0.005


def test_what_stands_in_quotes_says_nothing():
    assert "w=theme" not in features('On which page does the word "theme" stand?')
    assert "has=quote" in features('On which page does the word "theme" stand?')


def test_only_the_asking_clause_counts():
    found = features("I have read about the style and the mood of it; who wrote it?")
    assert "q=who" in found and not any(name.startswith("c=style") for name in found)


def run(*arguments: str, code: int = 0, stdin: str | bytes | None = None):
    result = CliRunner().invoke(cli, ["route", *arguments], input=stdin)
    assert result.exit_code == code, result.output
    return result


def test_command_json():
    (line,) = run("What are the themes?", "--json").stdout.splitlines()
    decision = json.loads(line)
    assert decision.keys() == {"route", "probability", "reason"} and decision["route"] == "whole"


def test_command_reads_questions_line_by_line():
    result = run("--json", stdin="What are the themes?\nOn which page is Paris mentioned?\n")
    assert [json.loads(line)["route"] for line in result.stdout.splitlines()] == ["whole", "lookup"]
    assert "lookup" in run("-", stdin="Who was it?\n").stdout


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        ((" ",), None, "the question is empty"),
        ((), "Who?\n \nWhen?", "line 2: the question is empty"),
        ((), "", "holds no question"),
        (("--json",), b"\xff\xfe", "not UTF-8"),
    ],
)
def test_command_refuses(arguments, stdin, says):
    result = run(*arguments, stdin=stdin, code=2)
    assert says in result.stderr and result.stdout == ""
