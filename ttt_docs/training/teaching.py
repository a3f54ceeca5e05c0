"""Teaches a skill (`weights.skill`) from prompts and replies: a low-rank change of the static weights.

    python -m ttt_docs.training.teaching train.jsonl.zst --dev dev.jsonl.zst --run RUN --steps 3000

A line of the data is {"user": prompt, "assistant": reply}. The loss is the mean over the reply's tokens; the base is
frozen, nothing is learned while reading, and every prompt is read with full attention. A run that was cut off goes on
from its last checkpoint when it is started again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.documents.json_lines import json_lines
from ttt_docs.io import replacing
from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.dispatch import kernels_for
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.positions import Positions
from ttt_docs.model.rope import rotation
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.training.recipe import OptimizerRecipe
from ttt_docs.training.record import Record
from ttt_docs.training.trainer import learning_rate
from ttt_docs.weights.pretrained import open_pretrained
from ttt_docs.weights.skill import SYSTEM, Skill, matrices, norms, save_skill

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a skill is taught."""

    rank: int = 16
    frozen: int = 10  # blocks at the bottom that are not changed: no gradient is computed for them
    lr: float = 1e-3
    steps: int = 3000
    batch: int = 4096  # tokens of a step, padding counted
    longest: int = 1400  # tokens of an example, at most
    save_every: int = 100  # steps between two checkpoints
    seed: int = 0

    @property
    def optimizer(self) -> OptimizerRecipe:
        """Factors of low rank do not decay, and warm up soon."""
        return OptimizerRecipe(lr=self.lr, final_lr=self.lr / 20, warmup=0.03, beta2=0.99, weight_decay=0.0)


class Example(NamedTuple):
    prompt: list[int]
    reply: list[int]  # with the token that ends it

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.reply


def encoded(tokenizer: Tokenizer, prompt: str, reply: str) -> Example:
    """An example from texts. The reply ends with the model's end of a turn."""
    ids = tokenizer.encode_chat([("system", SYSTEM), ("user", prompt)])
    assert tokenizer.eos_id is not None
    return Example(ids, [*tokenizer.encode(reply), tokenizer.eos_id])


def examples_of(path: Path, tokenizer: Tokenizer, longest: int) -> list[Example]:
    """The examples of a file, without those longer than `longest` tokens."""
    made = (encoded(tokenizer, row["user"], row["assistant"]) for _, row in json_lines(path))
    return [example for example in made if len(example.tokens) <= longest]


class Tree(NamedTuple):
    """Examples that begin alike: what they share is read once, and each goes on from there by itself."""

    shared: list[int]
    branches: list[Example]  # without what is shared

    @property
    def tokens(self) -> list[int]:
        return self.shared + [token for branch in self.branches for token in branch.tokens]


def trees(examples: Iterable[Example], longest: int) -> list[Tree]:
    """Every example in one tree. What a tree shares is at least half of each prompt; `longest` tokens at most."""
    made: list[list[Example]] = []
    shared: list[int] = []
    for example in sorted(examples):
        same = _common(shared, example.prompt) if made else []
        group = made[-1] if made else []
        tokens = len(same) + sum(len(e.tokens) - len(same) for e in [*group, example])
        if group and 2 * len(same) >= max(len(e.prompt) for e in [*group, example]) and tokens <= longest:
            group.append(example)
            shared = same
        else:
            made.append([example])
            shared = example.prompt[:-1]
    return [_tree(group) for group in made]


def _common(one: list[int], other: list[int]) -> list[int]:
    return one[
        : next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ]


def _tree(group: Sequence[Example]) -> Tree:
    """Sorted as they are, what the first and the last share is shared by all."""
    count = len(_common(group[0].prompt[:-1], group[-1].prompt[:-1]))
    return Tree(group[0].prompt[:count], [Example(e.prompt[count:], e.reply) for e in group])


def batches(examples: Sequence[Tree], size: int, seed: int) -> list[list[Tree]]:
    """All trees once, in random batches of similar lengths: at most `size` tokens each, padding counted."""
    chance = random.Random(seed)
    order = sorted(examples, key=lambda e: len(e.tokens) * chance.uniform(0.9, 1.1))
    made: list[list[Tree]] = [[]]
    for example in order:
        longest = max(len(e.tokens) for e in [*made[-1], example])
        if made[-1] and longest * (len(made[-1]) + 1) > size:
            made.append([])
        made[-1].append(example)
    chance.shuffle(made)
    return made


class _Changed(torch.autograd.Function):
    """The product with a changed weight [out, in], whose change is up @ down; gradient for x and the two factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, changed: Tensor, down: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, changed, down, up)
        return F.linear(x, changed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, changed, down, up = ctx.saved_tensors
        rows, grads = x.flatten(0, -2), grad.flatten(0, -2)
        of_down = (grads @ up.to(grad.dtype)).t() @ rows
        of_up = grads.t() @ F.linear(rows, down.to(x.dtype))
        return grad @ changed, None, of_down.to(down.dtype), of_up.to(up.dtype)


class LowRankFactors:
    """The factors being learned, and the kernels that add their products to the frozen ones'."""

    def __init__(self, model: Decoder, rank: int, seed: int, frozen: int = 0, scale: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scale = scale
        self.down: dict[str, Tensor] = {}
        self.up: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        for name, weight in matrices(model, frozen):
            out, into = weight.shape
            bound = 1 / math.sqrt(into)
            self.down[name] = ((torch.rand(rank, into, generator=generator) * 2 - 1) * bound).requires_grad_()
            self.up[name] = torch.zeros(out, rank, requires_grad=True)
            self._names[id(weight)] = name

    def parameters(self) -> dict[str, Tensor]:
        """All of them by name, for an optimizer and for checkpoints."""
        return {f"{name}/{part}": t for part in ("down", "up") for name, t in getattr(self, part).items()}

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """As `Skill` has them."""
        return {name: (self.down[name].detach(), self.scale * self.up[name].detach()) for name in self.down}

    def kernels(self, plain: Kernels, model: Decoder) -> Kernels:
        """`plain` with the factors as they are now. Products of weights that have none are as before."""
        weights = dict(matrices(model))
        changed = {}
        with torch.no_grad():
            for name, (down, up) in self.factors().items():
                changed[name] = (weights[name].float() + up @ down).to(weights[name].dtype)

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            name = self._names.get(id(weight))
            if name is None:
                return plain.linear(x, weight, bias)
            out = _Changed.apply(x, changed[name], self.down[name], self.scale * self.up[name])
            return out if bias is None else out + bias

        def swiglu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
            gate, up = linear(x, w13).chunk(2, dim=-1)
            return linear(F.silu(gate) * up, w2)

        return plain.replace(linear=linear, swiglu=swiglu)


def reply_losses(model: Decoder, kernels: Kernels, batch: Sequence[Tree]) -> Tensor:
    """Losses (nats) of all tokens of the batch's replies, one after another [tokens].

    The trees stand in one sequence, each padded to the longest; what sees what is attention's affair.
    """
    longest = max(len(tree.tokens) for tree in batch)
    ids, positions = torch.zeros(2, len(batch), longest, dtype=torch.long)
    visible = torch.zeros(len(batch), longest, longest, dtype=torch.bool)
    before: list[int] = []
    targets: list[int] = []
    for row, tree in enumerate(batch):
        ids[row, : len(tree.tokens)] = torch.tensor(tree.tokens)
        first = len(tree.shared)
        positions[row, :first] = torch.arange(first)
        for branch in tree.branches:
            last = first + len(branch.tokens)
            positions[row, first:last] = torch.arange(len(tree.shared), len(tree.shared) + last - first)
            visible[row, first:last, : len(tree.shared)] = True
            visible[row, first:last, first:last] = True
            before += range(row * longest + first + len(branch.prompt) - 1, row * longest + last - 1)
            targets += branch.reply
            first = last
        visible[row, : len(tree.shared), : len(tree.shared)] = True
        visible[row, first:, first:] = True  # padding sees padding
    visible = visible.tril()[:, None]
    bias = torch.zeros(visible.shape, dtype=model.dtype).masked_fill_(~visible, float("-inf"))

    def attend(q: Tensor, _k: Tensor, _v: Tensor, _window: None, _sinks: None, new: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (x[0].unflatten(1, (len(batch), longest)).transpose(0, 1) for x in (q, *new))
        return _attention(q, k, v, bias).transpose(0, 1).flatten(1, 2)[None]

    angles = rotation(positions.flatten(), model.inverse_frequencies, model.dtype)
    where = Positions(angles, ((0, ids.numel()),), (None,))
    kernels = kernels.replace(window_attention=attend)
    every = range(model.config.blocks)
    x = model.run(model.hidden(ids.view(1, -1)), every, where, model.new_caches(None), None, kernels)
    return model.token_nll(x[:, before], torch.tensor(targets)[None], kernels)[0]


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rows: int = 128) -> Tensor:
    """Attention with `bias` [batch, 1, tokens, tokens], causal: q [batch, heads, tokens, head_dim]. Some rows at a
    time, so that what comes later is not multiplied; in bfloat16 4 times as fast as PyTorch's, with its gradient."""
    batch, heads, tokens, dim = q.shape
    kv_heads, q, outs = k.shape[1], q * dim**-0.5, []
    for first in range(0, tokens, rows):
        last = min(first + rows, tokens)
        some = q[:, :, first:last].reshape(batch, kv_heads, -1, dim)
        scores = (some @ k[:, :, :last].mT).view(batch, heads, -1, last) + bias[:, :, first:last, :last]
        weights = scores.softmax(-1).view(batch, kv_heads, -1, last)
        outs.append((weights @ v[:, :, :last]).view(batch, heads, -1, dim))
    return torch.cat(outs, 2)


class Teaching:
    """One run in the folder `run`: `step` counts from 0 to `steps`."""

    def __init__(
        self,
        model: Decoder,
        run: Path,
        examples: Sequence[Example],
        dev: Sequence[Example],
        plan: Plan,
    ) -> None:
        self.model, self.run, self.plan = model.requires_grad_(False), run, plan
        self.factors = LowRankFactors(model, plan.rank, plan.seed, plan.frozen)
        self.kernels = kernels_for(model.embed.weight.device)
        self.optimizer = torch.optim.AdamW(
            self.factors.parameters().values(),
            lr=plan.lr,
            betas=(plan.optimizer.beta1, plan.optimizer.beta2),
            weight_decay=plan.optimizer.weight_decay,
        )
        self.examples, self.dev = (trees(some, plan.longest) for some in (examples, dev))
        self.step = 0
        run.mkdir(parents=True, exist_ok=True)
        if (run / "state.pt").is_file():
            self._load()

    def _batches(self) -> Iterator[list[Tree]]:
        """Those from `step` on, epoch after epoch."""
        epoch, skip = 0, self.step
        while True:
            made = batches(self.examples, self.plan.batch, self.plan.seed + epoch)
            yield from made[skip:]
            skip, epoch = max(0, skip - len(made)), epoch + 1

    def learn(self) -> None:
        """Runs to the plan's last step."""
        plan, record = self.plan, Record(self.run, self.step)
        began, tokens = time.perf_counter(), 0
        for batch in self._batches():
            if self.step >= plan.steps:
                break
            rate = learning_rate(plan.optimizer, self.step, plan.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = reply_losses(self.model, self.factors.kernels(self.kernels, self.model), batch).mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(list(self.factors.parameters().values()), plan.optimizer.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            tokens += sum(len(example.tokens) for example in batch)
            line = {"step": self.step, "loss": loss.item(), "norm": float(norm), "lr": rate}
            if self.step % plan.save_every == 0 or self.step == plan.steps:
                line |= {"dev": self.dev_loss(), "tokens_per_second": tokens / (time.perf_counter() - began)}
                self._save()
                logger.info("%s", json.dumps(line))
            record.add(line)
        record.close()

    @torch.no_grad()
    def dev_loss(self) -> float:
        """Nats per token of the dev set's replies."""
        kernels = self.factors.kernels(self.kernels, self.model)
        parts = [reply_losses(self.model, kernels, b) for b in batches(self.dev, self.plan.batch, 0)]
        return torch.cat(parts).mean().item()

    def skill(self, base: str, fingerprint: str) -> Skill:
        """What was learned so far, for the model of that name and fingerprint."""
        provenance = asdict(self.plan) | {"steps": self.step}
        return Skill(base, fingerprint, self.factors.factors(), norms(self.model), provenance)

    def _save(self) -> None:
        state = {"step": self.step, "optimizer": self.optimizer.state_dict()}
        state["factors"] = {name: t.detach() for name, t in self.factors.parameters().items()}
        with replacing(self.run / "state.pt") as file:
            torch.save(state, file)

    def _load(self) -> None:
        state = torch.load(self.run / "state.pt", weights_only=True)
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, tensor in self.factors.parameters().items():
                tensor.copy_(state["factors"][name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints, log and the skill")
    parser.add_argument("--model", default="smollm2-135m")
    for one in fields(Plan):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    options = vars(parser.parse_args())
    plan = Plan(**{one.name: options[one.name] for one in fields(Plan)})
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    opened = open_pretrained(options["model"], None, "cpu", None, None)
    tokenizer = Tokenizer(opened.folder)
    train, dev = (examples_of(options[name], tokenizer, plan.longest) for name in ("data", "dev"))
    teaching = Teaching(opened.model, options["run"], train, dev, plan)
    teaching.learn()
    save_skill(teaching.skill(opened.name, opened.base.fingerprint), options["run"] / "skill.safetensors")


if __name__ == "__main__":
    main()
