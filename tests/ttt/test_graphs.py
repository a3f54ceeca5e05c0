"""CUDA graphs of the suffix step, on a CPU: a recording of every operation stands in for a captured graph.

It shows what is captured when, and that replays work on memory that has not moved; not what only a device can show.
"""

import gc
import weakref
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from test_device import assert_same, read, reading, tokens_for
from tiny_model import TINY, tiny_decoder
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")


from ttt_docs.kernels.backends import REFERENCE
from ttt_docs.kernels.inner_step.definition import Step
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.chunks import batch_state
from ttt_docs.ttt import state as state_module
from ttt_docs.ttt.graphs import graphs_for
from ttt_docs.ttt.state import DEVICE_PIECE, ReadingState


class Recording(TorchDispatchMode):
    """What `torch.cuda.CUDAGraph` is on a device: `replay` does it all again, from and into the same memory."""

    made: ClassVar[list["Recording"]] = []

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.replays = [], 0
        self.made.append(self)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        self.replays += 1
        for operation, args, kwargs, result in self.calls:
            again = operation(*args, **kwargs)
            for into, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(into, Tensor) and into.data_ptr() != value.data_ptr():
                    into.copy_(value)

    def pool(self) -> None:
        return None


def undo(step: Step, accepted: Tensor) -> Step:
    """In place, as on a device, in recordable operations: Triton's interpreter writes past them."""
    step.fast.copy_(torch.where(accepted[:, None], step.fast, step.before))
    step.products.copy_(step.fast)
    return step


KERNELS = REFERENCE.replace(undo_step=undo, asynchronous=True)


@pytest.fixture(autouse=True)
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    @contextmanager
    def capture(graph: Recording, pool: object):  # type: ignore[no-untyped-def]
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(state_module, "can_capture", lambda loop: True)
    monkeypatch.setattr(Recording, "made", [])
    return Recording.made


def small_model() -> Decoder:
    return tiny_decoder(TINY.model_copy(update={"blocks": 2, "suffix_blocks": 1}))


#: Chunks between two reports, here.
PIECE = 4


@pytest.mark.parametrize(
    "changes",
    [
        {"inner_rule": "sgd"},
        {"inner_rule": "balanced", "inner_lr_factors": (0.5, 1.5, 0.8)},
        {"window": 33, "guard": -100.0},
        {"window": 40, "sinks": 0, "guard": None},
    ],
)
def test_what_is_replayed_is_what_plain_reading_gives(changes: dict[str, object], recordings: list[Recording]) -> None:
    model = small_model()
    for document in range(3):
        tokens = tokens_for(10, batch=2)
        plain = ReadingState(model, reading(**changes), batch=2, kernels=REFERENCE, piece=PIECE)
        ours = ReadingState(model, reading(**changes), batch=2, kernels=KERNELS, piece=PIECE)
        assert_same(read(ours, tokens, 4, 4, 2), read(plain, tokens, 4, 4, 2))
        torch.testing.assert_close(ours.fast, plain.fast, atol=2e-5, rtol=2e-5)
        # Places: 4 of the first piece (with sinks, none for the first chunk), 4 of the others. Each is captured when it
        # is come to a second time.
        first = 4 if changes.get("sinks") == 0 else 3
        assert len(recordings) == (2, first + 4, first + 4)[document]
    assert sum(recording.replays for recording in recordings) == 3 * (first + 6) - (first + 4)


def test_documents_that_are_gone_on_with_share_the_graphs(recordings: list[Recording]) -> None:
    model = small_model()
    for start in (1, 2, 3, 7, 2):  # chunks before the interruption
        tokens = tokens_for(9)
        expected = read(ReadingState(model, reading(), kernels=REFERENCE, piece=9), tokens, 9)
        before = ReadingState(model, reading(), kernels=REFERENCE, piece=9)
        read(before, tokens, start)
        ours = ReadingState(model, reading(), kernels=KERNELS, piece=PIECE)
        ours.restore(before.position, before.fast, [cache.export() for cache in before.caches])
        assert_same(list(ours.read_whole(tokens)), expected[start:])
    assert any(recording.replays > 1 for recording in recordings)


def test_parameters_that_moved_get_new_graphs() -> None:
    """A graph reads the memory that parameters had when it was captured."""
    model = small_model()
    state = ReadingState(model, reading(), kernels=KERNELS)
    first = graphs_for(state.loop, 1, state.piece)
    assert graphs_for(ReadingState(model, reading(), kernels=KERNELS).loop, 1, state.piece) is first
    model.final_norm.weight.mul_(2)  # where it was
    assert graphs_for(state.loop, 1, state.piece) is first
    model.final_norm.weight.data = model.final_norm.weight.data.clone()
    second = graphs_for(state.loop, 1, state.piece)
    assert second is not first
    assert graphs_for(ReadingState(model, reading(inner_lr=0.1), kernels=KERNELS).loop, 1, state.piece) is not second


def test_graphs_do_not_keep_a_model_alive() -> None:
    model = small_model()
    state = ReadingState(model, reading(), kernels=KERNELS, piece=PIECE)
    read(state, tokens_for(9), 4, 4, 1)
    gone = weakref.ref(model)
    del model, state
    gc.collect()
    assert gone() is None


def test_documents_of_a_batch_are_read_in_whole_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttt_docs.ttt.state.kernels_for", lambda device: KERNELS)
    assert batch_state(tiny_decoder(), reading(), 3).piece == DEVICE_PIECE
