"""The training loop: it optimises, resumes exactly, keeps the best weights, counts patience in steps."""

import copy
import doctest
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.training.loop import Evaluation, History, fit, one_device, run_steps, seeded, shard, warmup_cosine
from tests.lib.training.kills import killed_after


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


def test_training_solves_least_squares():
    seeded(1)
    model = Line(dropout=0)
    history = fit(model, batch_at, steps=600, learning_rate=0.05, evaluation=every(100))
    torch.testing.assert_close(weights(model), torch.ones(5), atol=1e-2, rtol=0)
    assert history.losses[-1]["loss"] < 1e-3 < history.losses[0]["loss"]
    assert torch.equal(weights(trained()[0]), weights(trained()[0]))


def test_a_seed_decides_weights_dropout_and_draws_and_another_seed_others():
    def drawn(seed):
        seeded(seed)
        return [
            weights(Line()).tolist(),
            nn.Dropout(0.5)(torch.ones(64)).tolist(),
            np.random.random(4).tolist(),  # noqa: NPY002
            [random.random() for _ in range(4)],
        ]

    first, second = drawn(3), drawn(4)
    assert first == drawn(3)
    assert all(one != other for one, other in zip(first, second, strict=True))


class Killed(Exception):
    pass


def dying(step_or_batch, moment):
    def at(number):
        if number == moment:
            raise Killed
        return step_or_batch(number)

    return at


class Lottery:
    """Batches that depend on the global generators of NumPy and Python, and on what was drawn before."""

    def __init__(self):
        self.drawn = 0.0

    def __call__(self, step):
        self.drawn += float(np.random.random()) + random.random()  # noqa: NPY002
        batch = batch_at(step)
        return batch | {"y": batch["y"] + math.sin(self.drawn)}

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def ensemble(**options):
    """A training with everything that has a state; returns it all."""
    model, lottery = Line(), Lottery()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    seen = []

    def score(average):
        seen.append(weights(average).clone())
        return {
            "score": np.float64(-((average.module.weight.bias.item() - 0.5) ** 2)),
            "half": np.float32(0.5),
        }

    history = fit(
        model,
        options.pop("batches", lambda batch_at: batch_at)(lottery),
        **{
            "steps": 60,
            "evaluation": every(20, score, monitor="score", of=("average",)),
            "learning_rate": 0.05,
            "schedule": warmup_cosine(60, warmup=5),
            "after_step": lambda step: average.update_parameters(model),
            "also": {"average": average, "lottery": lottery},
            "checkpoint_seconds": 0,
        }
        | options,
    )
    draws = [torch.rand(1).item(), np.random.random(), random.random()]  # noqa: NPY002
    result = [weights(model).tolist(), weights(average).tolist(), lottery.drawn, draws]
    return [*result, history.losses, history.evaluations, history.best_step, history.steps]


@pytest.mark.parametrize("killed_at", [1, 21, 40, 45, 59])
def test_a_killed_training_continues_to_the_same_everything(tmp_path, killed_at):
    seeded(3)
    whole = ensemble()
    asked, file = [], tmp_path / "deep" / "line.pt"
    seeded(3)
    with pytest.raises(Killed):
        ensemble(batches=lambda lottery: dying(lottery, killed_at), checkpoint=file)
    (file.parent / f".{file.name}.abcd.tmp").write_bytes(b"what a kill while writing leaves")
    seeded(99)  # a new process has another random state
    again = ensemble(
        batches=lambda lottery: lambda step: asked.append(step) or lottery(step), checkpoint=file
    )
    assert again == whole
    assert asked == [*range(killed_at, 60)]
    assert list(file.parent.iterdir()) == [file]


def test_a_finished_training_is_not_repeated(tmp_path):
    file = tmp_path / "line.pt"
    seeded(3)
    whole = ensemble(checkpoint=file)
    content = file.read_bytes()
    seeded(99)

    def never(step):
        raise AssertionError("a step of a finished training")

    assert ensemble(checkpoint=file, batches=lambda lottery: never) == whole
    assert file.read_bytes() == content


def test_an_evaluation_that_became_due_is_made_up_for(tmp_path):
    """Killed at step 30, fewer steps wanted: what is returned ends with an evaluation all the same."""
    file = tmp_path / "line.pt"
    with pytest.raises(Killed):
        ensemble(batches=lambda lottery: dying(lottery, 30), checkpoint=file)
    *_, losses, evaluations, _, steps = ensemble(checkpoint=file, steps=30)
    assert [row["step"] for row in losses] == [row["step"] for row in evaluations] == [20, 30] and steps == 30


def game(checkpoint=None, step_of=lambda step: step, steps=120):
    """Two networks, two optimisers and a scheduler of torch, an average, patience, all three generators."""
    seeded(7)
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    critic = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
    of_critic = torch.optim.RMSprop(critic.parameters(), lr=0.01, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(of_generator, 120)

    def step(number):
        real = batch_at(number)["x"][:, :2] + np.random.normal() / 10 + random.random()  # noqa: NPY002
        fake = generator(torch.randn(16, 3))
        critic_loss = F.softplus(critic(fake.detach())).mean() + F.softplus(-critic(real)).mean()
        of_critic.zero_grad()
        critic_loss.backward()
        of_critic.step()
        losses = {"critic loss": critic_loss}
        if number % 2:
            of_generator.zero_grad()
            losses["generator loss"] = F.softplus(-critic(fake)).mean()
            losses["generator loss"].backward()
            of_generator.step()
            scheduler.step()
            average.update_parameters(generator)
        return losses

    def closeness(average):
        return {"closeness": -(average(torch.ones(4, 3)) - 0.5).square().mean() + random.random()}

    state = {"generator": generator, "critic": critic, "average": average, "scheduler": scheduler}
    history = run_steps(
        step_of(step),
        steps,
        state=state | {"of generator": of_generator, "of critic": of_critic},
        evaluation=every(10, closeness, monitor="closeness", patience=40, of=("average",)),
        checkpoint=checkpoint,
        checkpoint_seconds=0.003,
        name="game",
    )
    tensors = {name: state[name].state_dict() for name in ("generator", "critic", "average")}
    draws = [torch.rand(1).item(), np.random.random(), random.random()]  # noqa: NPY002
    return {"tensors": tensors, "draws": draws, "history": {**vars(history), "seconds": None}}


def same(one, other):
    equal = one["draws"] == other["draws"] and one["history"] == other["history"]
    pairs = zip(one["tensors"].items(), other["tensors"].items(), strict=True)
    return equal and all(
        key == key2 and state.keys() == state2.keys() and all(torch.equal(state[k], state2[k]) for k in state)
        for (key, state), (key2, state2) in pairs
    )


def test_two_networks_with_two_optimisers(tmp_path):
    whole = game()
    history = whole["history"]
    assert 40 <= history["steps"] < 120, "patience should end it; another seed, if torch's numbers change"
    assert history["steps"] == history["best_step"] + 40
    assert [*history["losses"][0]] == ["step", "critic loss", "generator loss"]
    file = tmp_path / "game.pt"
    with pytest.raises(Killed):
        game(file, lambda step: dying(step, 35))
    assert same(game(file), whole)


def _play(file, result, writer):
    """In a process of its own: tells of each step, and leaves a result at the end."""
    torch.set_num_threads(1)

    def told(step):
        return lambda number: os.write(writer, b".") and step(number)

    torch.save(game(file, told), result)


def test_sigkill_at_twenty_random_moments(tmp_path):
    """After a random number of steps and a random part of one, a save included; then it is started again.

    Whatever comes to its end is the training without kills.
    """
    file, result, draw = tmp_path / "game.pt", tmp_path / "result.pt", random.Random(0)

    def play(checkpoint, steps):
        return killed_after(steps, _play, checkpoint, result, draw=draw)

    def outcome():
        found = torch.load(result, weights_only=True)
        result.unlink()
        return found

    assert play(None, 1000) == 0
    whole, kills, continued = outcome(), 0, set()
    while kills < 20:
        if play(file, draw.randint(1, 15)) == -signal.SIGKILL:
            kills += 1
            if file.exists():
                content = torch.load(file, weights_only=True)
                continued.add(content["state"]["progress"]["history"]["steps"])
        else:
            assert same(outcome(), whole)
            file.unlink()
    assert len(continued) >= 5
    assert play(file, 1000) == 0 and same(outcome(), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["game.pt"]


def test_the_example_of_the_docstring_runs(tmp_path):
    names = {"torch": torch, "F": F, "Evaluation": Evaluation, "run_steps": run_steps, "batch_at": None}
    names |= {"generator": nn.Linear(16, 2), "critic": nn.Linear(2, 1), "file": tmp_path / "example.pt"}
    names["batch_at"] = lambda number: {"images": batch_at(number)["x"][:, :2]}
    names["distance"] = lambda generator: {"distance": generator(torch.zeros(1, 16)).norm()}
    for name in ("generator", "critic"):
        names[f"{name}_optimizer"] = torch.optim.Adam(names[name].parameters())
    before = {name: weights(names[name]).clone() for name in ("generator", "critic")}
    for example in doctest.DocTestParser().get_examples(run_steps.__doc__):
        exec(example.source, names)
    assert not any(torch.equal(weights(names[name]), was) for name, was in before.items())
    assert [row["step"] for row in names["history"].evaluations] == [50, 100, 150, 200]
    assert [*names["history"].losses[0]] == ["step", "critic loss", "generator loss"]


def test_evaluation_is_in_evaluation_mode_and_each_module_gets_its_mode_back():
    """No dropout, no running statistics move; a norm that the caller froze stays frozen in training."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1))
    other = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    frozen = model[2].eval()
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.01)
    everything = [*model.modules(), *other.modules()]
    training, evaluated = [], []

    def step(number):
        training.append([module.training for module in everything])
        loss = model(other(batch_at(number)["x"])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    def evaluate(first, second):
        assert first is model and second is other and not torch.is_grad_enabled()
        evaluated.append([module.training for module in everything])
        before = copy.deepcopy([module.state_dict() for module in (model, other)])
        x = batch_at(0)["x"]
        assert torch.equal(model(other(x)), model(other(x)))
        for module, state in zip((model, other), before, strict=True):
            assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        return {}

    statistics = frozen.running_mean.clone()
    state = {"model": model, "optimizer": optimizer, "other": other}
    run_steps(step, 6, state=state, evaluation=every(2, evaluate, of=("model", "other")))
    assert evaluated == [[False] * len(everything)] * 3
    assert training == [[module is not frozen for module in everything]] * 6
    assert torch.equal(frozen.running_mean, statistics)

    def failing(model):
        raise Killed

    with pytest.raises(Killed):
        run_steps(step, 2, state=state, evaluation=every(2, failing))
    assert [module.training for module in everything] == training[0], "given back on an error too"


def test_fit_trains_in_training_mode_and_leaves_evaluation_mode():
    model = Line().eval()
    modes = []
    fit(model, lambda step: modes.append(model.dropout.training) or batch_at(step), steps=2)
    assert modes == [True, True] and not model.dropout.training


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
    with pytest.raises(ValueError, match="must not hold 'progress': the loop saves its own"):
        trained(also={"progress": Line()})
    with pytest.raises(TypeError, match="learning_rates"):
        trained(learning_rates=0.1)


def test_the_monitored_number_must_be_one():
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(FloatingPointError, match=f"model: the monitored m is {value} at step 20"):
            trained(evaluation=every(20, lambda model, value=value: {"m": value}, monitor="m"))
    _, history = trained(evaluation=every(20, lambda model: {"m": 1.0, "aside": math.nan}, monitor="m"))
    assert history.best_step == 20


def test_means_are_of_what_was_returned_and_keep_their_digits():
    """512 ones in bfloat16, added up in bfloat16, are 256."""

    def step(number):
        losses = {"one": torch.ones((), dtype=torch.bfloat16)}
        return losses if number % 2 else losses | {"number": torch.tensor(float(number))}

    history = run_steps(step, 1024, state={})
    assert history.losses == [
        {"step": 500, "number": 249.0, "one": 1.0},
        {"step": 1000, "number": 749.0, "one": 1.0},
        {"step": 1024, "number": 1011.0, "one": 1.0},
    ]
    assert run_steps(lambda number: {}, 3, state={}).losses == [{"step": 3}]
    running = torch.zeros(())
    assert run_steps(lambda number: {"n": running.add_(1)}, 3, state={}).losses == [{"step": 3, "n": 2.0}]


def test_a_checkpoint_of_a_longer_training_is_refused(tmp_path):
    file = tmp_path / "line.pt"
    trained(checkpoint=file)
    with pytest.raises(ValueError, match=r"is 60 steps into 'model', 40 were asked for: remove it"):
        trained(checkpoint=file, steps=40)


def test_a_resumed_training_remembers_its_best_value(tmp_path):
    """Even if a later evaluation was far below it."""
    file = tmp_path / "line.pt"
    values = iter([0.5, -1e30, 0.4, 0.6])
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
            from pathlib import Path
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
            for steps in (20, 30):  # and goes on from a checkpoint
                model, file = Line(), Path(sys.argv[3]).with_suffix(".checkpoint")
                fit(model, batch_at, steps=steps, learning_rate=0.05, fabric=fabric, checkpoint=file)
            if fabric.is_global_zero: torch.save(model.state_dict(), sys.argv[3])
            """
        )
    )
    states = []
    for devices, strategy in ((1, "auto"), (2, "ddp")):
        file = tmp_path / f"{devices}.pt"
        subprocess.run([sys.executable, script, str(devices), strategy, str(file)], check=True)
        states.append(torch.load(file, weights_only=True))
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-5)


def test_where_slurm_is_installed_nothing_is_said_and_nothing_refused(tmp_path, monkeypatch):
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one_device().world_size == 1
        monkeypatch.setenv("SLURM_NTASKS", "4")
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
        assert one_device().world_size == 1
    root = Path(__file__).resolve().parents[3]
    code = [*(root / "lib").rglob("*.py"), *(root / "notebooks").glob("*.md")]
    assert [path.name for path in code if re.search(r"\bFabric\(", path.read_text())] == ["loop.py"]


def test_history_of_nothing_is_empty():
    assert History().to_frame().empty
