"""A tiny random model that stands in the cache under the default model's name, another one, and a way to run commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ttt_docs import Memory
from ttt_docs.checkpoints.names import parameter_shapes
from ttt_docs.checkpoints.source import WeightSource
from ttt_docs.checkpoints.store import write_checkpoint
from ttt_docs.model.config import ModelConfig
from ttt_docs_cli.main import cli

torch.set_num_threads(1)

#: Small chunks, so that a short document has many.
SMALL = ("--window", "64", "--chunk", "32", "--dtype", "float32")
TEXT = "\n".join(
    f"{day}. The ship lay still on day {day * 37 % 101}, and the captain, who had not slept, counted {day * 13} waves."
    for day in range(1, 91)
)


def write_tokenizer(folder: Path) -> None:
    """One token per byte, and the control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    settings = {"bos_token": special[1], "eos_token": special[2], "chat_template": template + "<|im_start|>assistant\n"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def write_model(folder: Path, seed: int) -> Path:
    config = ModelConfig(
        name="tiny",
        vocab_size=320,
        blocks=2,
        dim=16,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp_dim=24,
        rope_theta=10_000.0,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    noise = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(config)
    state = {name: 0.2 * torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    dtypes = {name: torch.float32 for name in shapes}
    return write_checkpoint(folder, WeightSource(config, dtypes, state.__getitem__, "test", (), write_tokenizer))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The user's cache folder, with a tiny model under the default model's name."""
    folder = tmp_path_factory.mktemp("cache")
    write_model(folder / "checkpoints" / "smollm2-135m", seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTT_DOCS_CACHE", str(folder))
        patch.delenv("TTT_DOCS_DEBUG", raising=False)
        patch.delenv("TTT_DOCS_KERNELS", raising=False)
        yield folder


@pytest.fixture(autouse=True)
def home(cache, tmp_path, monkeypatch):
    """Each test works in a folder of its own, which it may name relatively, and finds no memories in the cache."""
    shutil.rmtree(cache / "memories", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def book(home) -> Path:
    path = home / "book.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.fixture(scope="session")
def read_book(cache, tmp_path_factory) -> Path:
    """book.ttt as one uninterrupted `ingest` makes it, for tests that copy or compare it."""
    folder = tmp_path_factory.mktemp("read")
    (folder / "book.txt").write_text(TEXT, "utf-8")
    command("ingest", str(folder / "book.txt"), *SMALL)
    return folder / "book.ttt"


@pytest.fixture
def memory(read_book, home) -> Path:
    return Path(shutil.copy(read_book, home / "book.ttt"))


def command(*arguments: str | Path, code: int = 0, stdin: str | bytes | None = None) -> Result:
    """Runs `ttt-docs`; any other exit code than `code` fails the test."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def run() -> Callable[..., Result]:
    return command


@pytest.fixture
def run_json() -> Callable[..., dict]:
    """Runs a command with --json: standard output must be one JSON object and nothing else."""

    def run_json(*arguments: str | Path, code: int = 0, stdin: str | None = None) -> dict:
        result = command(*arguments, "--json", code=code, stdin=stdin)
        parsed = json.loads(result.stdout)
        assert isinstance(parsed, dict) and result.stdout.count("\n") == 1
        return parsed

    return run_json


@pytest.fixture
def fails() -> Callable[..., str]:
    """Runs a command that must fail: says so on standard error alone, and no file appears or changes."""

    def fails(*arguments: str | Path, code: int, stdin: str | None = None) -> str:
        before = snapshot()
        result = command(*arguments, code=code, stdin=stdin)
        assert snapshot() == before
        assert result.stdout == "" and "Error: " in result.stderr
        return result.stderr

    return fails


def snapshot() -> dict[Path, bytes | None]:
    """Every file of the working folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.fixture
def load() -> Callable[[str | Path], Memory]:
    return Memory.load
