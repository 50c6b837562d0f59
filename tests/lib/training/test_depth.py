"""A training of FSRE-Depth on the one loop: killed and continued, it ends with the very same weights."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from lib.models.depth.fsre_depth import FsreDepth
from lib.training.loop import fit, seeded
from tests.lib.training.kills import killed_after

STEPS = 4


def batch_at(number: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(number)
    intrinsics = torch.tensor([[37.0, 0, 31.5], [0, 37.0, 31.5], [0, 0, 1]])
    return {
        "images": torch.rand(2, 3, 3, 64, 64, generator=draw),
        "labels": torch.randint(3, (2, 64, 64), generator=draw),
        "intrinsics": intrinsics.expand(2, 3, 3),
    }


def trained(checkpoint: Path | None, batch_at: Callable = batch_at) -> dict[str, torch.Tensor]:
    """Its weights after all steps, by a model of its own."""
    seeded(0)
    model = FsreDepth(width=1 / 8, classes=3, scales=(0,))
    fit(model, batch_at, steps=STEPS, checkpoint=checkpoint, checkpoint_seconds=0)
    return model.state_dict()


def _train(checkpoint: Path, told: int) -> None:
    """What is killed: it tells before each step."""
    torch.set_num_threads(1)

    def telling(number: int) -> dict[str, torch.Tensor]:
        os.write(told, b".")
        return batch_at(number)

    trained(checkpoint, telling)


def test_a_killed_training_continues_with_the_same_numbers(tmp_path):
    file = tmp_path / "training.pt"
    assert killed_after(3, _train, file, draw=random.Random(0)) == -signal.SIGKILL
    taken = torch.load(file, weights_only=True)["state"]["progress"]["history"]["steps"]
    assert 1 <= taken < STEPS
    torch.manual_seed(7)  # the noise of the masks comes from the checkpoint's generator
    continued, whole = trained(file), trained(None)
    for key, value in continued.items():
        torch.testing.assert_close(value, whole[key], rtol=0, atol=0, msg=key)
