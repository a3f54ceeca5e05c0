"""Loss against context length: the same tokens by several systems."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from click.testing import CliRunner
from tiny_model import tiny_decoder
from ttt_docs_cli.main import cli

from ttt_docs.errors import UsageError
from ttt_docs.evaluation import context
from ttt_docs.evaluation.books import Text
from ttt_docs.evaluation.context import BUCKET, Base, Reading, open_system
from ttt_docs.reader import TTTReader
from ttt_docs.ttt import prefix
from ttt_docs.ttt.state import ReadingState

SENTENCE = "The ship came to the harbour at night, and nobody was there. "
BOOKS = [Text("long", "A long one", SENTENCE * 45), Text("short", "A short one", SENTENCE * 20)]


@pytest.fixture
def opened(monkeypatch, tiny_reader, tiny_tokenizer):
    """Systems over the tiny model; returns the names of those that were opened."""
    names = []

    def open_(name: str, base: Base) -> TTTReader:
        names.append(name)
        reading = tiny_reader.reading.model_copy(update={"learn": name == "retrofit", "inner_lr": 0.3})
        return TTTReader(tiny_reader.model, tiny_tokenizer, reading, name="tiny", fingerprint="ab" * 32)

    monkeypatch.setattr(context, "open_system", open_)
    return names


def test_one_reading_gives_every_length(opened):
    readings = list(context.measure(BOOKS, ["window", "retrofit"], Base(), 2 * BUCKET))
    rows = {(row["system"], row["length"]): row for row in context.by_length(readings, [BUCKET, 2 * BUCKET])}
    assert set(rows["window", BUCKET]["books"]) == {"long", "short"}
    assert set(rows["window", 2 * BUCKET]["books"]) == {"long"}
    whole = rows["retrofit", 2 * BUCKET]
    assert whole["nats"] == whole["books"]["long"]
    assert whole["nats"] < rows["window", 2 * BUCKET]["nats"]  # the text repeats itself: reading must pay
    books = rows["retrofit", BUCKET]["books"].values()
    assert rows["retrofit", BUCKET]["nats"] == pytest.approx(sum(books) / 2)


def test_the_losses_are_those_of_reading(opened, tiny_reader, tiny_tokenizer):
    (reading,) = context.measure(BOOKS[:1], ["retrofit"], Base(), BUCKET)
    memory = tiny_reader.ingest(text=BOOKS[0].text, progress=False)
    assert reading.nats[0] == pytest.approx(float(memory.nll[1 : BUCKET + 1].double().mean()), abs=1e-6)
    assert len(reading.nats) == 1


def test_systems_with_the_same_prefix_run_it_once(opened, monkeypatch):
    alone = [next(context.measure(BOOKS[:1], [name], Base(), 2 * BUCKET)) for name in ("window", "retrofit")]
    runs = []
    genuine = prefix.run_group

    def counted(loop, caches, tokens, first, size):
        runs.append(first)
        return genuine(loop, caches, tokens, first, size)

    monkeypatch.setattr(prefix, "run_group", counted)
    together = list(context.measure(BOOKS[:1], ["window", "retrofit"], Base(), 2 * BUCKET))
    assert [r.nats for r in together] == [r.nats for r in alone]
    assert len(runs) > 1 and len(runs) == len(set(runs))  # each group of chunks once, for both systems


def test_another_prefix_is_not_shared(tiny_reader, tiny_tokenizer):
    models = [tiny_decoder() for _ in range(3)]
    models[1].blocks[0].mlp.w2.weight.data += 1e-3  # below the fast weights
    models[2].final_norm.weight.data += 1e-3  # above
    readers = [TTTReader(m, tiny_tokenizer, tiny_reader.reading, name="", fingerprint="") for m in models]
    assert context._same_prefix(readers) == [0, 1, 0]


def test_full_attention_ends_where_the_model_was_trained_to(opened, monkeypatch, tiny_reader, tmp_path):
    assert tiny_reader.model.config.max_positions >= 2 * BUCKET
    short = tiny_reader.model.config.model_copy(update={"max_positions": BUCKET + 5})
    monkeypatch.setattr(tiny_reader.model, "config", short)
    readings = list(context.measure(BOOKS[:1], ["full", "window"], Base(), 2 * BUCKET))
    assert [len(r.nats) for r in readings] == [1, 2]
    rows = [row["nats"] for row in context.by_position(readings, 2 * BUCKET) if row["system"] == "full"]
    assert rows == [readings[0].nats[0], None]
    context.plot(readings, [BUCKET, 2 * BUCKET], tmp_path / "out.png")  # against the system that ends first
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_positions_cover_the_document_once(opened):
    readings = list(context.measure(BOOKS, ["window"], Base(), 2 * BUCKET))
    rows = context.by_position(readings, 2 * BUCKET)
    assert [(row["start"], row["end"]) for row in rows] == [(0, BUCKET), (BUCKET, 2 * BUCKET)]
    long = readings[0]
    assert sum(row["nats"] for row in rows) / 2 == pytest.approx(long.loss(0, 2 * BUCKET))
    assert all(row["books"] == 1 for row in rows)


def test_updating_existing_mlps_starts_from_the_same_model():
    model, changed = tiny_decoder(), tiny_decoder()
    for block in (model.blocks[i] for i in model.config.suffix):  # as a retrofit begins
        block.prime_mlp.w2.data.zero_()
        block.prime_mlp.w1.data, block.prime_mlp.w3.data = block.mlp.w13.weight.clone().chunk(2)
        block.prime_norm.weight.data = block.mlp_norm.weight.clone()
    changed.load_state_dict(model.state_dict())
    context.update_existing_mlps(changed)
    tokens = torch.randint(3, 259, (1, 33), generator=torch.Generator().manual_seed(1))
    losses = [ReadingState(m, _reading()).score(tokens) for m in (model, changed)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)


def _reading():
    from ttt_docs.model.config import ReadingConfig

    return ReadingConfig(chunk=16, window=1024)


def test_what_is_known_is_not_read_again(opened):
    first = list(context.measure(BOOKS, ["retrofit"], Base(), BUCKET))
    marked = [replace_nats(r, 7.0) for r in first]
    again = list(context.measure(BOOKS, ["retrofit"], Base(), BUCKET, known=marked))
    assert [r.nats for r in again] == [(7.0,), (7.0,)]
    longer = list(context.measure(BOOKS, ["retrofit"], Base(), 2 * BUCKET, known=marked))
    assert len(longer[0].nats) == 2 and longer[0].nats[0] != 7.0  # more of it is wanted now
    assert longer[1].nats == (7.0,)  # the whole book was read


def replace_nats(reading: Reading, value: float) -> Reading:
    return reading.model_copy(update={"nats": (value,) * len(reading.nats)})


def test_systems_open_the_base_model_each_in_its_way(monkeypatch, tiny_reader):
    asked = []

    def opened(model, **settings):
        asked.append(settings)
        return tiny_reader

    monkeypatch.setattr(TTTReader, "from_pretrained", opened)
    monkeypatch.setattr(context, "update_existing_mlps", lambda model: asked.append("updates existing MLPs"))
    base = Base(adapter="a.safetensors", control="c.safetensors")
    shared = {"window": 2048, "dtype": None, "adapter": None}
    longest = tiny_reader.model.config.max_positions
    expected = {
        "window": [{"learn": False}],
        "retrofit": [{}],
        "inplace": [{"inner_rule": "sgd", "inner_lr": 0.03}, "updates existing MLPs"],
        "adapter": [{"adapter": "a.safetensors"}],
        "adapter-off": [{"adapter": "a.safetensors", "learn": False}],
        "control": [{"adapter": "c.safetensors", "learn": False}],
        "full": [{"learn": False}, {"learn": False, "window": longest}],
    }
    assert expected.keys() == context.SYSTEMS.keys()
    for name, calls in expected.items():
        asked.clear()
        assert open_system(name, base) is tiny_reader
        assert asked == [call if isinstance(call, str) else shared | call for call in calls]


def test_unknown_systems_and_missing_adapters_are_named(opened):
    with pytest.raises(UsageError, match="no system magic"):
        list(context.measure(BOOKS, ["window", "magic"], Base(), BUCKET))
    assert opened == []
    for name in ("adapter", "control"):
        with pytest.raises(UsageError, match=f"--{name}"):
            open_system(name, Base(model="HuggingFaceTB/SmolLM2-360M"))


def test_command(opened, tmp_path):
    file, out, picture = tmp_path / "books.jsonl", tmp_path / "out.json", tmp_path / "out.png"
    rows = [{"id": book.id, "title": book.title, "text": book.text} for book in BOOKS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    arguments = ["eval", "context", str(file), "--system", "window,retrofit", "--length", f"{BUCKET},{2 * BUCKET}"]
    arguments += ["--json", str(out), "--plot", str(picture)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text("utf-8"))
    assert [(row["system"], row["length"]) for row in report["results"]] == [
        ("window", BUCKET), ("window", 2 * BUCKET), ("retrofit", BUCKET), ("retrofit", 2 * BUCKET)
    ]  # fmt: skip
    assert set(report["results"][0]) == {"system", "length", "nats", "books"}
    assert f"{report['results'][0]['nats']:.4f} (2)" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    before = [row["seconds"] for row in report["readings"]]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    assert [row["seconds"] for row in json.loads(out.read_text("utf-8"))["readings"]] == before


def test_a_picture_without_matplotlib_is_refused_in_a_sentence(opened, tmp_path, monkeypatch):
    (reading,) = context.measure(BOOKS[:1], ["window"], Base(), BUCKET)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"ttt-docs\[plot\]"):
        context.plot([reading], [BUCKET], tmp_path / "out.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "window,magic"], "no system magic"),
        (["--length", "1000"], "not a multiple of 1,024"),
        (["--length", "many"], "not a list of numbers"),
        (["--json", "nowhere/out.json"], "does not exist"),
        (["--plot", "out.docx"], "png, svg or pdf"),
    ],
)
def test_command_says_what_is_wrong(opened, tmp_path, arguments, message):
    file = tmp_path / "a.txt"
    file.write_text(SENTENCE, "utf-8")
    result = CliRunner().invoke(cli, ["eval", "context", str(file), *arguments])
    assert result.exit_code == 2 and message in result.output
    assert opened == []


def test_a_foreign_file_is_not_overwritten(opened, tmp_path):
    file, out = tmp_path / "a.txt", tmp_path / "out.json"
    file.write_text(SENTENCE, "utf-8")
    out.write_text('{"mine": 1}', "utf-8")
    result = CliRunner().invoke(cli, ["eval", "context", str(file), "--json", str(out)])
    assert result.exit_code == 2 and "another --json file" in result.output
    assert out.read_text("utf-8") == '{"mine": 1}'
