"""The gap world: its arms have the kernels of their names, a curve follows its seed."""

from __future__ import annotations

from lib.data.worlds import GapWorld
from lib.experiments.meantime_gap_world import GAP_WORLD_ARMS, gap_world_curve, gap_world_model
from lib.models.recommenders.meantime import Meantime


def test_the_gap_worlds_arms_have_the_kernels_of_their_names():
    world = GapWorld(seed=0)
    models = {
        arm: gap_world_model(arm, world, mixture=("c", "s-l"), hidden_size=12) for arm in GAP_WORLD_ARMS
    }
    kernels = {arm: (m.absolute, m.relative) for arm, m in models.items() if isinstance(m, Meantime)}
    assert kernels == {
        "p + e": (("p",), ("e",)), "p + l": (("p",), ("l",)), "MEANTIME": (("c",), ("s", "l"))
    }  # fmt: skip
    assert {model.num_items for model in models.values()} == {world.num_items}


def test_a_curve_of_the_gap_world_follows_its_seed(tmp_path):
    options = {"mixture": ("p-d", "s-l"), "hidden_size": 8, "steps": 20, "batch_size": 16}
    first, other = (gap_world_curve("MEANTIME", seed, **options) for seed in (0, 1))
    assert first["step"].tolist() == list(range(2, 21, 2))
    assert first["Recall@10"].tolist() != other["Recall@10"].tolist()
    assert first.equals(gap_world_curve("MEANTIME", 0, **options, checkpoint=tmp_path / "gap.pt"))
    assert first.equals(gap_world_curve("MEANTIME", 0, **options, checkpoint=tmp_path / "gap.pt"))
