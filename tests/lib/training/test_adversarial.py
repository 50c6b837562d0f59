"""Rounds of turns: what each moves, R1's scale, the average, and a game that kills do not change."""

import copy
import os
import random
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lib.training.adversarial import Rounds, Turn, lazy_adam, r1_turn, save_sheet
from lib.training.loop import Evaluation, run_steps, seeded
from tests.lib.training.kills import killed_after


def batch_at(number):
    draw = torch.Generator().manual_seed(number)
    return {
        "images": torch.rand(8, 1, 4, 4, generator=draw) * 2 - 1,
        "latents": torch.randn(8, 3, generator=draw),
    }


def networks():
    generator = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.2), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))
    return generator, nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 1))


def played(**changes):
    """Rounds of a small game, and its networks."""
    seeded(0)
    generator, critic = networks()

    def fool(batch):
        batch["fake"] = generator(batch["latents"])
        return {"generator loss": F.softplus(-critic(batch["fake"])).mean()}

    def tell_apart(batch):
        fake = critic(batch["fake"].detach())
        return {"critic loss": (F.softplus(fake) + F.softplus(-critic(batch["images"]))).mean()}

    options = {
        "networks": {"generator": generator, "critic": critic},
        "optimizers": {
            "generator": torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.0, 0.99)),
            "critic": lazy_adam(critic.parameters(), learning_rate=0.01, betas=(0, 0.99), every=4),
        },
        "turns": [
            Turn(fool, ("generator",)),
            Turn(tell_apart, ("critic",)),
            r1_turn(critic, ("critic",), every=4),
        ],
        "batch_at": batch_at,
        "averages": {"generator": 0.9},
    }
    return Rounds(**{**options, **changes}), generator, critic


def tensors(rounds):
    return {
        f"{name}/{key}": value.clone()
        for name, part in rounds.state.items()
        if isinstance(part, nn.Module)
        for key, value in part.state_dict().items()
    }


def test_a_round_is_what_a_plain_loop_does():
    """The same game written out, with its own average: equal to the last bit, with R1 and without."""
    rounds, *_ = played()
    told = [rounds(number) for number in range(6)]
    seeded(0)
    generator, critic = networks()
    average = copy.deepcopy(generator)
    moves = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.0, 0.99))
    tells = torch.optim.Adam(critic.parameters(), lr=0.01 * 4 / 5, betas=(0.0, 0.99 ** (4 / 5)))
    for number in range(6):
        batch = batch_at(number)
        fake = generator(batch["latents"])
        loss = F.softplus(-critic(fake)).mean()
        assert torch.equal(told[number]["generator loss"], loss.detach())
        moves.zero_grad()
        loss.backward()
        moves.step()
        loss = (F.softplus(critic(fake.detach())) + F.softplus(-critic(batch["images"]))).mean()
        tells.zero_grad()
        loss.backward()
        tells.step()
        if number % 4 == 0:
            images = batch["images"].requires_grad_()
            (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
            penalty = slope.square().sum((1, 2, 3)).mean()
            tells.zero_grad()
            (10 / 2 * 4 * penalty).backward()
            tells.step()
            torch.testing.assert_close(told[number]["r1"], penalty.detach())
        assert ("r1" in told[number]) == (number % 4 == 0)
        with torch.no_grad():
            for mean, now in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(now, 1 - 0.9)
    for name, mine in (("generator", generator), ("critic", critic)):
        for one, other in zip(rounds.networks[name].parameters(), mine.parameters(), strict=True):
            assert torch.equal(one, other), name
    for one, other in zip(
        rounds.averaged["generator"].module.parameters(), average.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert rounds.taken == 6


def test_r1_of_a_linear_critic_is_its_weights_squared():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    weight = critic[1].weight.detach().clone()
    turn = r1_turn(critic, ("critic",), weight=3.0, every=8)
    losses = turn.losses(batch_at(0))
    assert losses["r1"].item() == pytest.approx(weight.square().sum().item())
    total = turn.total(losses)
    total.backward()
    torch.testing.assert_close(critic[1].weight.grad, 3.0 * 8 * weight)  # of γ/2 · k · ‖w‖²


def test_lazy_adam_has_stylegan2s_settings():
    group = lazy_adam([nn.Parameter(torch.zeros(1))], learning_rate=0.002, betas=(0, 0.99)).param_groups[0]
    assert group["lr"] == pytest.approx(0.00188235, abs=1e-8)
    assert group["betas"] == pytest.approx((0.0, 0.9905855), abs=1e-7)


def test_a_turn_moves_its_networks_and_gives_no_gradient_to_others():
    seen = {}
    rounds, generator, critic = played()
    fool = rounds.turns[0]

    def looking(batch):
        losses = fool.losses(batch)
        seen["critic"] = [weight.requires_grad for weight in critic.parameters()]
        seen["generator"] = [weight.requires_grad for weight in generator.parameters()]
        return losses

    rounds.turns = (Turn(looking, ("generator",)),)
    before = tensors(rounds)
    rounds(0)
    moved = {
        name.split("/")[0] for name, now in tensors(rounds).items() if not torch.equal(now, before[name])
    }
    assert moved == {"generator", "generator average"}
    assert not any(seen["critic"]) and all(seen["generator"])
    assert all(weight.requires_grad and weight.grad is None for weight in critic.parameters())


def test_weights_have_their_gradients_again_after_an_error():
    def fails(batch):
        raise RuntimeError("no loss")

    rounds, _, critic = played(turns=[Turn(fails, ("generator",))])
    with pytest.raises(RuntimeError, match="no loss"):
        rounds(0)
    assert all(weight.requires_grad for weight in critic.parameters()) and rounds.taken == 0


def test_a_network_may_be_moved_in_several_turns_of_its_own_total():
    """As StyleMapGAN's generator: alone, and with the encoder; a total that weights its losses."""
    weight = nn.Parameter(torch.tensor(1.0))
    other = nn.Parameter(torch.tensor(1.0))
    sgd = {name: torch.optim.SGD([one], lr=0.1) for name, one in (("a", weight), ("b", other))}
    first = Turn(lambda batch: {"one": weight * 1.0}, ("a",))
    second = Turn(
        lambda batch: {"two": weight * other, "three": other * 1.0},
        ("a", "b"),
        total=lambda losses: losses["two"] + 5 * losses["three"],
    )
    rounds = Rounds({}, sgd, [first, second], lambda number: {})
    told = rounds(0)
    assert weight.item() == pytest.approx(0.9 - 0.1 * 1.0) and other.item() == pytest.approx(
        1 - 0.1 * (0.9 + 5)
    )
    assert {name: round(value.item(), 6) for name, value in told.items()} == {
        "one": 1,
        "two": 0.9,
        "three": 1,
    }


def test_what_does_not_fit_is_refused():
    generator, _ = networks()
    both = {
        "generator": torch.optim.SGD(generator.parameters()),
        "again": torch.optim.SGD(generator.parameters()),
    }
    for changes, message in (
        ({"turns": [Turn(lambda batch: {}, ("encoder",))]}, "no 'encoder', but generator, critic"),
        ({"averages": {"encoder": 0.9}}, "no 'encoder', but generator, critic"),
        ({"averages": {"generator": 1.0}}, r"decay is in \[0, 1\), got 1.0"),
        ({"optimizers": both, "turns": []}, "two optimisers share a weight"),
    ):
        with pytest.raises(ValueError, match=message):
            played(**changes)
    for bad in ({"moves": "generator"}, {"moves": ()}, {"moves": ("generator",), "every": 0}):
        with pytest.raises(ValueError, match="moves is a tuple|every must be"):
            Turn(lambda batch: {}, **bad)


# --- checkpoint and resume ---------------------------------------------------------------------------------


def game(folder, checkpoint=None, wrapped=lambda rounds: rounds, steps=60):
    rounds, *_ = played()

    def draw(generator):
        images = generator(torch.linspace(-1, 1, 12).view(4, 3))
        save_sheet(folder / f"{rounds.taken:04d}.png", images, columns=2)
        return {"spread": images.std()}

    history = run_steps(
        wrapped(rounds),
        steps,
        state=rounds.state,
        evaluation=Evaluation(draw, every=20, of=("generator average",)),
        checkpoint=checkpoint,
        checkpoint_seconds=0.002,
        name="rounds",
    )
    sheets = {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    optimizers = [rounds.state[f"{name} optimizer"].state_dict()["state"] for name in ("generator", "critic")]
    moments = [value for one in optimizers for entry in one.values() for value in entry.values()]
    return {
        "tensors": tensors(rounds),
        "moments": moments,
        "draw": torch.rand(1).item(),
        "history": {**vars(history), "seconds": None},
        "sheets": sheets,
    }


def same(one, other):
    equal = all(one[key] == other[key] for key in ("draw", "history", "sheets"))
    pairs = zip(one["moments"], other["moments"], strict=True)
    return (
        equal
        and all(torch.equal(a, b) for a, b in pairs)
        and one["tensors"].keys() == other["tensors"].keys()
        and all(torch.equal(one["tensors"][key], other["tensors"][key]) for key in one["tensors"])
    )


def _play(folder, file, result, writer):
    torch.set_num_threads(1)
    told = lambda rounds: lambda number: os.write(writer, b".") and rounds(number)  # noqa: E731
    torch.save(game(folder, file, told), result)


def test_sigkill_at_six_random_moments(tmp_path):
    """What comes to its end is the training without kills: weights, averages, moments, samples, history."""
    file, result, draw = tmp_path / "game.pt", tmp_path / "result.pt", random.Random(0)
    (tmp_path / "samples").mkdir()
    (tmp_path / "whole").mkdir()
    whole = game(tmp_path / "whole")
    assert [row["step"] for row in whole["history"]["evaluations"]] == [20, 40, 60]
    assert set(whole["sheets"]) == {"0020.png", "0040.png", "0060.png"}
    kills, continued = 0, set()
    while kills < 6:
        code = killed_after(draw.randint(2, 14), _play, tmp_path / "samples", file, result, draw=draw)
        if code == -signal.SIGKILL:
            kills += 1
            if file.exists():
                content = torch.load(file, weights_only=True)
                continued.add(content["state"]["rounds"]["taken"])
        else:
            assert code == 0 and same(torch.load(result, weights_only=True), whole)
            file.unlink()
    assert len(continued) >= 3
    assert same(game(tmp_path / "samples", file), whole)


def test_an_average_draws_without_dropout_and_is_no_part_of_the_training(tmp_path):
    """Samples do not change the numbers."""
    rounds, *_ = played()
    plain = run_steps(rounds, 20, state=rounds.state)
    sampled = game(tmp_path, steps=20)
    assert plain.losses == sampled["history"]["losses"]
    assert tensors(rounds).keys() == sampled["tensors"].keys()
    assert all(torch.equal(value, sampled["tensors"][key]) for key, value in tensors(rounds).items())
    assert set(plain.losses[-1]) == {"step", "generator loss", "critic loss", "r1"}


# --- sheets ------------------------------------------------------------------------------------------------


def test_a_sheet_has_the_pictures_in_their_places(tmp_path):
    images = torch.linspace(-1.2, 1, 5)[:, None, None, None].expand(5, 3, 4, 6)
    save_sheet(tmp_path / "deep/sheet.png", images, columns=3)
    pixels = np.asarray(Image.open(tmp_path / "deep/sheet.png"))
    assert pixels.shape == (8, 18, 3)
    expected = ((torch.linspace(-1.2, 1, 5).clamp(-1, 1) + 1) * 127.5).round().int().tolist()
    for number, value in enumerate([*expected, 255]):  # what is left is white
        row, column = divmod(number, 3)
        assert (pixels[4 * row : 4 * row + 4, 6 * column : 6 * column + 6] == value).all()
    save_sheet(tmp_path / "grey.png", images[:2, :1])
    assert Image.open(tmp_path / "grey.png").mode == "L" and Image.open(tmp_path / "grey.png").size == (12, 4)
    for bad in (images[0], images[:0], images[:, :2], images / 0):
        with pytest.raises(ValueError, match="pictures"):
            save_sheet(tmp_path / "bad.png", bad)
    assert not (tmp_path / "bad.png").exists()
