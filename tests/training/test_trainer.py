"""Runs: what they leave, going on after a kill, several processes, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_files import tiny_recipe, write_books

from ttt_docs import TTTReader
from ttt_docs.errors import CheckpointError, TTTDocsError, UsageError
from ttt_docs.training import checkpoint, trainer
from ttt_docs.training.checkpoint import saved_checkpoints
from ttt_docs.training.parallel import Processes
from ttt_docs.training.record import code_identity, read_log
from ttt_docs.training.trainer import train

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
RUN = "import sys; from ttt_docs.training.recipe import load_recipe; from ttt_docs.training.trainer import train; "
RUN += "import torch; torch.set_num_threads(1); train(load_recipe(sys.argv[1], sys.argv[2:]), progress=False)"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TTT_DOCS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run) if "loss" in line]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_run_leaves_a_model_that_reads_better_than_its_start(tmp_path):
    books = write_books(tmp_path / "valid.jsonl", seed=5)
    changes = [f"data.valid=[{books}]", "checkpoint.evaluate_every=3", "steps=24", "optimizer.lr=1e-2"]
    recipe = tiny_recipe(tmp_path, *changes)
    plans = []
    done = train(recipe, progress=False, announce=plans.append)
    assert (plans[0].steps, plans[0].tokens, plans[0].documents, plans[0].left_out) == (24, 24 * 4 * 32, 5, 1)
    log = read_log(recipe.folder)
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 25))
    assert len(steps[0]["chunk_losses"]) == len(steps[0]["inner_norms"]) == 4
    assert sum(steps[0]["chunk_losses"]) / 4 == pytest.approx(steps[0]["loss"])
    valid = [line["valid_loss"] for line in log if "valid_loss" in line]
    assert len(valid) == 8 and done.valid_loss == valid[-1] < valid[0] - 0.1
    saved = saved_checkpoints(recipe.folder)
    best = min((c for c in saved if c.score is not None), key=lambda c: c.score)
    assert len(saved) <= 3 and best.score == min(valid) and saved[-1].step == 24
    assert (recipe.folder / "loss.png").stat().st_size > 1000
    reader = TTTReader.from_pretrained(done.exported, dtype="float32")
    assert (reader.reading.chunk, reader.reading.window, reader.reading.guard) == (8, 16, None)
    text = json.loads(books.read_text().splitlines()[0])["text"]
    read = reader.ingest(text=text[:33]).nll
    assert read.shape == (33,) and 3 < read.mean() < 5.5


@pytest.mark.parametrize("at", [1, 3])
def test_killed_at_any_step_the_loss_curve_is_the_same_bit_for_bit(tmp_path, at):
    """SIGKILL from inside the process right after step `at` was logged, checkpoints being made every two steps."""
    whole = tiny_recipe(tmp_path, "learned_inner_lr=matrix", f"output={tmp_path / 'whole'}")
    train(whole, progress=False)
    recipe = tiny_recipe(tmp_path, "learned_inner_lr=matrix", f"output={tmp_path / 'killed'}")
    kill = (
        "import os; from ttt_docs.training import record; add = record.Record.add\n"
        f"def fatal(self, line):\n    add(self, line)\n    if line['step'] == {at}: os.kill(os.getpid(), 9)\n"
        "record.Record.add = fatal\n"
    )
    arguments = [str(tmp_path / "tiny.yaml"), "learned_inner_lr=matrix", f"output={tmp_path / 'killed'}"]
    killed = subprocess.run([sys.executable, "-c", kill + RUN, *arguments], env=environment(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(losses(recipe.folder)) == at
    train(recipe, progress=False)
    assert losses(recipe.folder) == losses(whole.folder)
    rates = [line["inner_lr_factors"] for line in read_log(recipe.folder)]
    assert rates == [line["inner_lr_factors"] for line in read_log(whole.folder)] and rates[-1] != rates[0]
    weights = [(r.folder / "model" / "model.safetensors").read_bytes() for r in (whole, recipe)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("parallel", ["data", "sharded"])
def test_two_processes_have_the_loss_curve_of_one(tmp_path, parallel):
    books = write_books(tmp_path / "valid.jsonl", seed=5)
    changes = ["compute.micro_batch=1", "learned_inner_lr=true", f"data.valid=[{books}]"]
    alone = tiny_recipe(tmp_path, *changes)
    done = train(alone, progress=False)
    together = [*changes, f"output={tmp_path / 'two'}", f"compute.parallel={parallel}"]
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    ran = subprocess.run(
        [*command, str(tmp_path / "tiny.yaml"), *together], env=environment(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(alone.folder), abs=1e-5)
    valid = [line["valid_loss"] for line in read_log(tmp_path / "two") if "valid_loss" in line]
    assert valid == pytest.approx([done.valid_loss], abs=1e-5)
    one, two = (TTTReader.from_pretrained(run / "model", dtype="float32") for run in (alone.folder, tmp_path / "two"))
    for (name, mine), (_, other) in zip(one.model.named_parameters(), two.model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0, msg=name)
    assert one.reading.inner_lr_factors == pytest.approx(two.reading.inner_lr_factors, abs=1e-5)


def test_the_code_of_a_run_is_its_version_and_all_its_sources(tmp_path):
    from ttt_docs import __version__

    (tmp_path / "kernels").mkdir()
    (tmp_path / "a.py").write_text("a = 1\n")
    seen = [code_identity(tmp_path)["sha256"]]
    for name, text in (("a.py", "a = 2\n"), ("kernels/k.cpp", "int k;\n"), ("kernels/k.h", ""), ("kernels/k.cpp", "")):
        (tmp_path / name).write_text(text)
        seen.append(code_identity(tmp_path)["sha256"])
    (tmp_path / "kernels" / "k.h").rename(tmp_path / "k.h")
    seen.append(code_identity(tmp_path)["sha256"])
    assert len(set(seen)) == len(seen)
    (tmp_path / "a.pyc").write_text("not a source")
    assert code_identity(tmp_path) == {"version": __version__, "sha256": seen[-1]}


def test_a_baseline_without_prime_mlps_reads_with_its_window_alone(tmp_path):
    changes = ["mode=none", "model.changes.suffix_blocks=0", "reading.window=32", "steps=2"]
    done = train(tiny_recipe(tmp_path, *changes), progress=False)
    reader = TTTReader.from_pretrained(done.exported, dtype="float32")
    assert reader.model.config.suffix_blocks == 0 and reader.reading.window == 32
    assert reader.ingest(text="the ship lay still").nll[1:].min() > 0


def test_bfloat16_products_train_float32_masters(tmp_path):
    recipe = tiny_recipe(tmp_path, "compute.dtype=bfloat16", "optimizer.lr=1e-5", "steps=3")
    done = train(recipe, progress=False)
    reader = TTTReader.from_pretrained(done.exported, dtype="float32")
    norm = reader.model.block(0).mlp_norm.weight
    assert (norm != 1).any() and (norm.bfloat16() == 1).all()  # a change that bfloat16 could not hold


def test_a_checkpoint_of_another_recipe_is_refused_by_name(tmp_path):
    train(tiny_recipe(tmp_path, "steps=2"), progress=False)
    other = tiny_recipe(tmp_path, "steps=2", "optimizer.lr=2e-3")
    with pytest.raises(CheckpointError, match=r"optimizer.lr is 0.003 there and 0.002 here"):
        train(other, progress=False)
    write_books(tmp_path / "books.jsonl", seed=3)
    with pytest.raises(CheckpointError, match="another data"):
        train(tiny_recipe(tmp_path, "steps=2"), progress=False)


def test_ctrl_c_makes_a_checkpoint_and_the_same_call_goes_on(tmp_path, monkeypatch):
    whole = tiny_recipe(tmp_path, f"output={tmp_path / 'whole'}")
    train(whole, progress=False)
    recipe, genuine = tiny_recipe(tmp_path), trainer._step

    def step(*arguments):
        if arguments[1] == 3:
            signal.raise_signal(signal.SIGINT)
        return genuine(*arguments)

    monkeypatch.setattr(trainer, "_step", step)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
        train(recipe, progress=False)
    monkeypatch.setattr(trainer, "_step", genuine)
    train(recipe, progress=False)
    assert losses(recipe.folder) == losses(whole.folder)


def test_a_run_that_diverges_says_so(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    monkeypatch.setattr(trainer, "learning_rate", lambda *_: float("nan"))
    with pytest.raises(TTTDocsError, match=r"step 2: the loss .* not a number"):
        train(recipe, progress=False)
    assert saved_checkpoints(recipe.folder) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.train=[]"], "names no documents"),
        (["data.train=[nowhere/*.jsonl]"], "no training data at nowhere"),
        (["data.tokenizer=model"], "random weights has none"),
        (["steps=null", "batch=200"], "less than one batch"),
        (["model.changes.vocab_size=100"], "259 tokens and the model 100"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(tmp_path, changes, message):
    recipe = tiny_recipe(tmp_path, *changes)
    with pytest.raises(UsageError, match=message):
        train(recipe, progress=False)
    assert not recipe.folder.exists()


def test_a_device_or_number_of_processes_that_cannot_work_is_said(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"compute\.device=cuda: no GPU is visible"):
            train(tiny_recipe(tmp_path, "compute.device=cuda"), progress=False)
    three = Processes(0, 3, 0, torch.device("cpu"))
    with pytest.raises(UsageError, match="4 sequences cannot be divided between 3 processes in pieces of 2"):
        trainer._train(tiny_recipe(tmp_path), three, False, None)


def test_a_model_with_other_suffix_blocks_is_refused(tmp_path):
    done = train(tiny_recipe(tmp_path, "steps=1"), progress=False)
    start = [
        "model.config=null",
        "model.changes={}",
        f"model.pretrained={done.exported}",
        f"output={tmp_path / 'other'}",
    ]
    with pytest.raises(UsageError, match="has 1 suffix blocks, not 2"):
        train(tiny_recipe(tmp_path, *start, "model.suffix_blocks=2"), progress=False)


def test_a_damaged_checkpoint_and_a_data_folder_that_is_a_file_are_named(tmp_path):
    recipe = tiny_recipe(tmp_path, "steps=1")
    train(recipe, progress=False)
    (saved,) = saved_checkpoints(recipe.folder)
    for part in saved.folder.glob("*.distcp"):
        part.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-000001 cannot be loaded \(EOFError.*: remove it"):
        train(recipe, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(TTTDocsError, match=r"cannot be made for tokenized data .*: set data\.folder"):
        train(tiny_recipe(tmp_path, f"data.folder={tmp_path / 'file' / 'data'}"), progress=False)


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def full(*_, **__):
        raise checkpoint.dcp.api.CheckpointException("write", {0: (OSError(28, "No space left on device"), None)})

    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(CheckpointError, match=r"step-000001 cannot be written \(OSError.*No space left.*: make room"):
        train(tiny_recipe(tmp_path, "steps=1"), progress=False)
