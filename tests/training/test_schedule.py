"""The published schedules: values worked out by hand from docs/method.md section 4."""

import pytest

from ttt_docs.errors import UsageError
from ttt_docs.training.recipe import load_recipe
from ttt_docs.training.trainer import inner_lr_scale, learning_rate

FIRST, EXTENSION = (load_recipe(name).optimizer for name in ("pretrain-125m", "extend-125m-32k"))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (48, 3e-4),
        (240, 1.5e-3),
        (480, 3e-3),
        (1560, 2.562125e-3),  # a quarter of the cosine: 1e-5 + 2.99e-3 * (1 + cos(pi / 4)) / 2
        (2640, 1.505e-3),  # its middle
        (4800, 1e-5),
    ],
)
def test_learning_rate_of_the_125m_run(step: int, expected: float) -> None:
    assert learning_rate(FIRST, step, 4800) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (120, 0.325), (240, 0.55), (480, 1.0), (4800, 1.0)])
def test_inner_learning_rate_of_the_125m_run(step: int, expected: float) -> None:
    assert inner_lr_scale(FIRST, step, 4800) == pytest.approx(expected, rel=1e-9)


def test_extension_has_no_inner_warm_up() -> None:
    assert inner_lr_scale(EXTENSION, 0, 120) == 1.0
    assert learning_rate(EXTENSION, 6, 120) == pytest.approx(2e-4)
    assert learning_rate(EXTENSION, 12, 120) == pytest.approx(4e-4)


@pytest.mark.parametrize("key", ["warmup", "inner_warmup"])
def test_a_warm_up_that_is_no_part_of_the_run_is_refused(key: str) -> None:
    for value in (-0.1, 1.0):
        with pytest.raises(UsageError, match=f"optimizer.{key}: Input should be"):
            load_recipe("pretrain-125m", [f"optimizer.{key}={value}"])
