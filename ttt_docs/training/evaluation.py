"""Validation of a model in training, by reading: what a user of it would measure."""

from __future__ import annotations

import numpy as np
import torch

from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.training.processes import Processes
from ttt_docs.training.sequences import Sequences
from ttt_docs.ttt.state import ReadingState


def validation_loss(
    model: Decoder, sequences: Sequences, indices: np.ndarray, reading: ReadingConfig, processes: Processes
) -> tuple[float, list[float]]:
    """Mean loss of the sequences read one by one, and the mean of each chunk; nats per token.

    The sequences are divided between the processes.
    """
    chunks = sequences.length // reading.chunk
    total = torch.zeros(chunks + 1, dtype=torch.float64)
    for index in indices[processes.rank :: processes.count]:
        tokens = torch.from_numpy(sequences[int(index)]).unsqueeze(0).to(model.embed.weight.device)
        state = ReadingState(model, reading)
        losses: list[float] = []
        while (left := chunks - len(losses)) > 0:
            count = min(left, state.slots_left)
            here = tokens[:, state.position : state.position + count * reading.chunk + 1]
            losses += [float(result.loss[0]) for result in state.read(here)]
        total += torch.tensor([*losses, sum(losses) / chunks], dtype=torch.float64)
    means = (processes.sum(total.to(processes.device)) / len(indices)).tolist()
    return means[-1], means[:-1]
