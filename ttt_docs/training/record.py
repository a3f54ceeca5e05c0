"""What a run writes down: log.jsonl, TensorBoard events, loss.png, and which code made it."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from ttt_docs._version import __version__
from ttt_docs.figures import new_figure, save_figure
from ttt_docs.io import replacing

LOG = "log.jsonl"
PACKAGE = Path(__file__).resolve().parents[1]


class Record:
    """The log of a run that stands at `step`: what an interrupted attempt wrote beyond it is taken back."""

    def __init__(self, run: Path, step: int) -> None:
        lines = [line for line in read_log(run) if line["step"] <= step]
        with replacing(run / LOG) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file: TextIO = (run / LOG).open("a", encoding="utf-8")
        self._board = _board(run, step)

    def add(self, line: dict[str, Any]) -> None:
        """One line; numbers and lists of numbers go to TensorBoard too."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for key, value in line.items() if self._board is not None else ():
            if isinstance(value, list):
                for index, number in enumerate(value):
                    self._board.add_scalar(f"{key}/{index:03d}", number, line["step"])
            elif isinstance(value, int | float) and key != "step":
                self._board.add_scalar(key, value, line["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that a crash cut short is left out."""
    path = run / LOG
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def plot(run: Path) -> None:
    """Draws loss.png from the log: loss by step, and loss by chunk at the run's end. Without matplotlib, nothing."""
    log = read_log(run)
    steps = [line for line in log if "loss" in line]
    if not steps or find_spec("matplotlib") is None:
        return
    figure = new_figure((10, 4))
    left, right = figure.subplots(1, 2)
    left.plot([line["step"] for line in steps], [line["loss"] for line in steps], lw=0.8, label="training")
    valid = [line for line in log if "valid_loss" in line]
    if valid:
        left.plot([line["step"] for line in valid], [line["valid_loss"] for line in valid], "o-", label="validation")
    left.set(xlabel="step", ylabel="loss (nats per token)")
    left.legend()
    tail = steps[-max(1, len(steps) // 10) :]
    chunks = [sum(values) / len(values) for values in zip(*(line["chunk_losses"] for line in tail), strict=True)]
    right.plot(range(len(chunks)), chunks, "o-", ms=3)
    right.set(xlabel="chunk", ylabel="loss (nats per token)", title=f"mean of the last {len(tail)} steps")
    save_figure(figure, run / "loss.png")


def code_identity(package: Path = PACKAGE) -> dict[str, str]:
    """What identifies the code of a run, in a checkout as in a wheel: the version, and one hash over the package's
    Python and C++ sources and their paths."""
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(source)}\n".encode() + source)
    return {"version": __version__, "sha256": digest.hexdigest()}


def _board(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
