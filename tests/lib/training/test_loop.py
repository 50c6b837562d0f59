"""The training loop: it optimises, resumes exactly, keeps the best weights, counts patience in steps."""

import math
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from lib.training.loop import Evaluation, History, fit, seeded, shard, warmup_cosine


class Line(nn.Module):
    """Least squares with dropout, so that an inexact resume of the random state shows."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.weight = nn.Linear(4, 1)
        self.dropout = nn.Dropout(dropout)

    def loss(self, batch):
        return ((self.weight(self.dropout(batch["x"])) - batch["y"]) ** 2).mean()


def batch_at(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 4, generator=generator)
    return {"x": x, "y": x.sum(1, keepdim=True) + 1}


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def every(steps, function=lambda model: {}, **options):
    return Evaluation(function, every=steps, **options)


def trained(**options):
    seeded(3)
    model = Line()
    history = fit(
        model, batch_at, **({"steps": 60, "evaluation": every(20), "learning_rate": 0.05} | options)
    )
    return model, history


def test_first_step_is_adams():
    """Closed form: Adam's first step moves every weight by the learning rate against its gradient's sign."""
    seeded(0)
    model = Line(dropout=0)
    before = weights(model).clone()
    model.loss(batch_at(0)).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    fit(model, batch_at, steps=1, learning_rate=0.01, clip_norm=0)
    torch.testing.assert_close(weights(model), before - 0.01 * gradient.sign(), atol=1e-6, rtol=0)


def test_the_schedule_is_a_factor_on_every_group():
    """Closed form: plain SGD with factor f moves a group by f times its learning rate times the gradient."""
    seeded(0)
    model = Line(dropout=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.loss(batch_at(0)).backward()
    gradient = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    rates = {"weight.weight": 0.1, "weight.bias": 0.02}
    groups = [{"params": [parameter], "lr": rates[name]} for name, parameter in model.named_parameters()]
    optimizer = torch.optim.SGD(groups)
    fit(model, batch_at, steps=1, optimizer=optimizer, clip_norm=0, schedule=lambda step: 0.25)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.25 * rates[name] * gradient[name])


def test_a_schedule_continues_where_it_was(tmp_path):
    factors = []

    def schedule(step):
        factors.append(step)
        return 0.9**step

    whole, _ = trained(schedule=schedule)
    file = tmp_path / "line.pt"
    trained(schedule=schedule, checkpoint=file, steps=40)
    resumed, _ = trained(schedule=schedule, checkpoint=file)
    assert torch.equal(weights(resumed), weights(whole))
    assert factors == [*range(60), *range(40), *range(40, 60)]
    steady, _ = trained()
    assert not torch.equal(weights(steady), weights(whole))


def test_warmup_and_cosine():
    """The values of the closed form, and the ends."""
    factor = warmup_cosine(15, warmup=3, floor=0.1)
    assert [factor(step) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factor(3) == 1 and factor(14) == pytest.approx(0.1) and factor(99) == pytest.approx(0.1)
    assert factor(8) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 5 / 11)) / 2)
    assert all(factor(step) > factor(step + 1) for step in range(3, 14))
    for bad in (dict(warmup=16), dict(warmup=-1), dict(floor=1.5)):
        with pytest.raises(ValueError):
            warmup_cosine(15, **bad)


def test_after_step_sees_the_moved_weights():
    seeded(3)
    model, seen = Line(), []
    fit(model, batch_at, steps=3, after_step=lambda step: seen.append((step, weights(model).clone())))
    assert [step for step, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], weights(model)) and not torch.equal(seen[0][1], seen[1][1])


def test_clipping_limits_the_update():
    seeded(0)
    model = Line(dropout=0)
    before = weights(model).clone()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    fit(model, batch_at, steps=1, optimizer=sgd, clip_norm=0.25)
    torch.testing.assert_close((weights(model) - before).norm(), torch.tensor(0.25), atol=1e-4, rtol=0)


def test_training_solves_least_squares_and_is_a_function_of_the_seed():
    seeded(1)
    model = Line(dropout=0)
    history = fit(model, batch_at, steps=600, learning_rate=0.05, evaluation=every(100))
    torch.testing.assert_close(weights(model), torch.ones(5), atol=1e-2, rtol=0)
    assert history.losses[-1]["loss"] < 1e-3 < history.losses[0]["loss"]
    assert torch.equal(weights(trained()[0]), weights(trained()[0]))


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [21, 40, 45, 59])
def test_a_killed_training_continues_to_the_same_weights(tmp_path, killed_at):
    whole, _ = trained()

    def dies(step):
        if step == killed_at:
            raise Killed
        return batch_at(step)

    file = tmp_path / "deep" / "line.pt"
    seeded(3)
    with pytest.raises(Killed):
        fit(
            Line(),
            dies,
            steps=60,
            evaluation=every(20),
            learning_rate=0.05,
            checkpoint=file,
            checkpoint_seconds=0,
        )
    seeded(99)  # a new process has another random state
    model = Line()
    asked = []
    history = fit(
        model,
        lambda step: asked.append(step) or batch_at(step),
        steps=60,
        evaluation=every(20),
        learning_rate=0.05,
        checkpoint=file,
    )
    assert torch.equal(weights(model), weights(whole))
    assert asked[0] == killed_at and history.steps == 60
    assert list(file.parent.iterdir()) == [file]


def test_a_finished_training_is_not_repeated(tmp_path):
    file = tmp_path / "line.pt"
    model, history = trained(checkpoint=file)
    again, again_history = trained(checkpoint=file, steps=60)
    assert torch.equal(weights(model), weights(again))
    assert again_history.losses == history.losses


def test_the_best_weights_are_kept_and_patience_counts_steps():
    values = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    snapshots = []

    def evaluate(model):
        snapshots.append(weights(model).clone())
        return {"metric": next(values)}

    model, history = trained(steps=200, evaluation=every(20, evaluate, monitor="metric", patience=40))
    assert (history.best_step, history.steps) == (40, 80)
    assert torch.equal(weights(model), snapshots[1])
    assert list(history.to_frame()["metric"]) == [0.1, 0.5, 0.4, 0.3]


def test_without_a_monitor_the_last_weights_stay():
    model, history = trained()
    assert history.best_step == history.steps == 60 and not model.training


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    def poisoned(step):
        batch = batch_at(step)
        return batch | {"y": batch["y"] * float("nan")} if step == 30 else batch

    file = tmp_path / "line.pt"
    with pytest.raises(
        FloatingPointError, match="line: the loss is nan in the 11 steps before step 31; lower learning_rate"
    ):
        fit(
            Line(),
            poisoned,
            steps=60,
            checkpoint=file,
            checkpoint_seconds=0,
            name="line",
            evaluation=every(20),
        )
    assert torch.load(file, weights_only=True)["state"]["progress"]["history"]["steps"] == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "metric"}, "monitor='metric', got m"),
        ({"every": 0}, "every must be at least 1 step, got 0"),
        ({"patience": 100}, "needs a monitor"),
        ({"patience": 5, "monitor": "m"}, "every=20 steps, got patience=5, monitor='m'"),
        ({"of": "model"}, "of is a tuple of names, got 'model'"),
        ({"of": ("generator",)}, "the evaluation is of generator; the modules of the state are model"),
        ({"function": lambda model: {"m": [1, 2]}}, "must return numbers, got m: list"),
    ],
)
def test_bad_evaluations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trained(evaluation=Evaluation(**({"function": lambda model: {"m": 0}, "every": 20} | options)))


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        trained(steps=0)
    with pytest.raises(ValueError, match="also must not hold model: fit saves its own"):
        trained(also={"model": Line()})


def test_foreign_and_broken_checkpoints_are_refused(tmp_path):
    file = tmp_path / "line.pt"
    trained(checkpoint=file, name="one")
    with pytest.raises(ValueError, match="no checkpoint of 'two'.*belongs to 'one'.*remove it"):
        trained(checkpoint=file, name="two")
    for content in (file.read_bytes()[:1000], b"not an archive", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="no checkpoint of 'one'.*remove it"):
            trained(checkpoint=file, name="one")


def test_a_checkpoint_of_a_longer_training_is_refused(tmp_path):
    file = tmp_path / "line.pt"
    trained(checkpoint=file)
    with pytest.raises(ValueError, match=r"is 60 steps into 'model', 40 were asked for: remove it"):
        trained(checkpoint=file, steps=40)


def test_a_resumed_training_remembers_its_best_value(tmp_path):
    """Even if a later evaluation was minus infinity."""
    file = tmp_path / "line.pt"
    values = iter([0.5, -math.inf, 0.4, 0.6])
    evaluation = every(20, lambda model: {"m": next(values)}, monitor="m")
    options = {"evaluation": evaluation, "checkpoint": file}
    trained(steps=40, **options)
    _, history = trained(steps=60, **options)
    assert history.best_step == 20
    _, history = trained(steps=80, **options)
    assert history.best_step == 80


def test_shards_partition_the_batch():
    batch = batch_at(0)
    parts = torch.cat([shard(batch, rank, 3)["x"] for rank in range(3)])
    assert sorted(parts[:, 0].tolist()) == sorted(batch["x"][:, 0].tolist())
    assert shard(batch, 0, 1) is batch


def test_two_processes_take_the_step_of_one(tmp_path):
    """With equal shares and a mean loss, averaging gradients over processes is the gradient of the batch."""
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from lightning_fabric import Fabric
            from torch import nn
            from lib.training.loop import fit, seeded
            class Line(nn.Module):
                def __init__(self):
                    super().__init__(); self.weight = nn.Linear(4, 1)
                def forward(self, batch): return self.weight(batch["x"])
                def loss(self, batch): return ((self(batch) - batch["y"]) ** 2).mean()
            def batch_at(step):
                x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
                return {"x": x, "y": x.sum(1, keepdim=True) + 1}
            torch.set_num_threads(1)
            fabric = Fabric(accelerator="cpu", devices=int(sys.argv[1]), strategy=sys.argv[2])
            fabric.launch(); seeded(0)
            model = Line()
            fit(model, batch_at, steps=30, learning_rate=0.05, fabric=fabric)
            if fabric.is_global_zero: torch.save(model.state_dict(), sys.argv[3])
            """
        )
    )
    states = []
    for devices, strategy in ((1, "auto"), (2, "ddp")):
        file = tmp_path / f"{devices}.pt"
        subprocess.run([sys.executable, script, str(devices), strategy, str(file)], check=True, timeout=120)
        states.append(torch.load(file, weights_only=True))
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-5)


def test_history_of_nothing_is_empty():
    assert History().to_frame().empty
