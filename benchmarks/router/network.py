"""Trains the network of ttt_docs/lookup/router/question_network.py, and packs it for the package."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt_docs.lookup.router.question_network import BEGIN, EMPTY, END, LENGTH, RUNS, UNKNOWN, Words, words_of

WIDTH, CHANNELS = 64, 128
EPOCHS, BATCH, RATE, DECAY = 8, 256, 3e-3, 0.02
DROPOUT = 0.2
FORGET = 0.1  # share of words that lose their row in a step: so the vectors and classes learn to stand in for it

Array = np.ndarray


class Network(nn.Module):
    def __init__(self, rows: int, dim: int, classes: int) -> None:
        super().__init__()
        self.own = nn.Embedding(rows, WIDTH, padding_idx=EMPTY)
        nn.init.normal_(self.own.weight, std=0.1)
        self.own.weight.data[EMPTY] = 0
        self.vector = nn.Linear(dim, WIDTH, bias=False)
        self.classes = nn.Linear(classes, WIDTH, bias=False)
        self.runs = nn.ModuleList(nn.Conv1d(WIDTH, CHANNELS, size, padding=int(size > 1)) for size in RUNS)
        self.out = nn.Linear(len(RUNS) * CHANNELS, 1)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, ids: Tensor, vectors: Tensor, classes: Tensor) -> Tensor:
        """ids [batch, LENGTH], vectors and classes [batch, LENGTH, ...] -> log odds of lookup [batch]."""
        x = self.own(ids) + self.vector(vectors) + self.classes(classes)
        x = (self.dropout(x) * (ids != EMPTY)[..., None]).transpose(1, 2)
        peaks = [F.relu(run(x)).amax(2) for run in self.runs]
        return self.out(self.dropout(torch.cat(peaks, 1)))[:, 0]


def vocabulary(questions: list[str], least: int) -> list[str]:
    """Stems that at least `least` questions have."""
    seen: Counter[str] = Counter()
    for question in questions:
        seen.update(set(words_of(question).stems))
    return sorted({stem for stem, count in seen.items() if count >= least} | {BEGIN, END})


def tensors(questions: list[str], words: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows int64 [questions, LENGTH], vectors float16 and classes bool [questions, LENGTH, ...]."""
    rows = {word: i + UNKNOWN + 1 for i, word in enumerate(words)}
    ids = np.full((len(questions), LENGTH), EMPTY)
    vectors, classes = [], []
    for i, question in enumerate(questions):
        one: Words = words_of(question)
        ids[i, : len(one.stems)] = [rows.get(stem, UNKNOWN) for stem in one.stems]
        vectors.append(one.vectors.astype(np.float16))
        classes.append(one.classes > 0)
    return torch.from_numpy(ids), torch.from_numpy(np.stack(vectors)), torch.from_numpy(np.stack(classes))


def train(questions: list[str], y: Array, weight: Array, words: list[str], seed: int = 0) -> Network:
    """`y` [questions]: the probability of lookup that the network is to give."""
    torch.manual_seed(seed)
    ids, vectors, classes = tensors(questions, words)
    targets, sizes = torch.from_numpy(y).float(), torch.from_numpy(weight).float()
    network = Network(len(words) + UNKNOWN + 1, vectors.shape[2], classes.shape[2])
    descent = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    steps = EPOCHS * math.ceil(len(questions) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(questions)).split(BATCH):
            own = ids[rows]
            own = torch.where((torch.rand(own.shape) < FORGET) & (own != EMPTY), UNKNOWN, own)
            odds = network(own, vectors[rows].float(), classes[rows].float())
            errors = F.binary_cross_entropy_with_logits(odds, targets[rows], sizes[rows], reduction="sum")
            descent.zero_grad()
            (errors / sizes[rows].sum()).backward()
            descent.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def scores(network: Network, questions: list[str], words: list[str]) -> Array:
    ids, vectors, classes = tensors(questions, words)
    return network(ids, vectors.float(), classes.float()).double().numpy()


@torch.no_grad()
def save(network: Network, words: list[str], path: Path) -> None:
    """8 bits a weight, one scale for each array."""
    weight = {name: parameter.numpy() for name, parameter in network.named_parameters()}
    arrays = {
        "own": weight["own.weight"],
        "vector": weight["vector.weight"].T,
        "classes": weight["classes.weight"].T,
        "out": weight["out.weight"][0],
        "out_bias": weight["out.bias"][0],
    }
    for i, size in enumerate(RUNS):
        arrays[f"run{size}"] = weight[f"runs.{i}.weight"].transpose(2, 1, 0).reshape(size * WIDTH, CHANNELS)
        arrays[f"bias{size}"] = weight[f"runs.{i}.bias"]
    packed: dict[str, Array] = {"words": np.array(" ".join(words))}
    for name, array in arrays.items():
        scale = np.float32(max(np.abs(array).max(), 1e-12) / 127)
        packed[name] = np.round(array / scale).astype(np.int8)
        packed[f"{name}.scale"] = scale
    np.savez_compressed(path, **packed)
