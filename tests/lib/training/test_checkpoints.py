"""Checkpoints: all that a training is comes back, and what is not of this training is refused in one line."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from lib.training.checkpoints import FORMAT, random_state, restore, save, set_random_state


def parts(rate=0.1, optimizer=torch.optim.Adam):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return {"model": model, "optimizer": optimizer(model.parameters(), lr=rate)}


def stepped(state, steps=3):
    for number in range(steps):
        state["optimizer"].zero_grad()
        state["model"](torch.full((4, 3), float(number))).square().mean().backward()
        state["optimizer"].step()
    return state["model"].weight.detach().clone()


class Sampler:
    """Something of one's own that has a state."""

    def __init__(self, **content):
        self.content = content

    def state_dict(self):
        return self.content

    def load_state_dict(self, state):
        self.content = state


def test_a_restored_training_takes_the_same_steps(tmp_path):
    file = tmp_path / "a" / "b.pt"
    whole, again = parts() | {"sampler": Sampler(at=7, order=[3, 1])}, parts() | {"sampler": Sampler()}
    stepped(whole)
    save(file, "line", whole)
    restore(file, "line", again)
    assert again["sampler"].content == {"at": 7, "order": [3, 1]}
    assert torch.equal(stepped(whole), stepped(again))
    assert not torch.equal(stepped(whole), stepped(parts())), "the optimiser remembers its steps"
    assert [path.name for path in file.parent.iterdir()] == ["b.pt"]
    assert torch.load(file, weights_only=True)["name"] == "line"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(3).tolist(),
        lambda: np.random.random(3).tolist(),  # noqa: NPY002
        lambda: [np.random.standard_normal() for _ in range(3)],  # noqa: NPY002  drawn in pairs, one is kept
        lambda: [random.random() for _ in range(3)],
        lambda: [random.gauss(0, 1) for _ in range(3)],  # in pairs too
    ],
)
def test_generators_go_on_where_they_were(tmp_path, draw):
    draw()
    save(tmp_path / "a.pt", "line", {})
    drawn = draw()
    assert draw() != drawn
    restore(tmp_path / "a.pt", "line", {})
    assert draw() == drawn
    state = random_state()
    drawn = draw()
    set_random_state(state)
    assert draw() == drawn


def refused(file, state, name="line"):
    with pytest.raises(ValueError) as caught:
        restore(file, name, state)
    message = str(caught.value)
    assert message.startswith(f"{file} is no checkpoint of {name!r} (") and "\n" not in message
    assert message.endswith("): remove it to train anew") and "\x1b" not in message
    return message.partition("' (")[2].removesuffix("): remove it to train anew")


def test_checkpoints_of_other_trainings_are_refused(tmp_path):
    file = tmp_path / "line.pt"
    state = parts()
    stepped(state)
    save(file, "line", state)
    assert refused(file, state, "other") == "it belongs to 'line'"
    other = parts(optimizer=torch.optim.SGD)
    assert refused(file, other) == "it holds 'optimizer' (Adam) instead of 'optimizer' (SGD)"
    assert refused(file, state | {"sampler": Sampler()}) == "it holds nothing instead of 'sampler' (Sampler)"
    wide = parts() | {"model": nn.Linear(4, 2)}
    assert "size mismatch for weight" in refused(file, wide)


def test_damaged_files_are_refused(tmp_path):
    """Cut at any length, and what is no checkpoint at all."""
    file = tmp_path / "line.pt"
    state = parts()
    stepped(state)
    save(file, "line", state)
    whole = file.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 60), len(whole) - 1]:
        file.write_bytes(whole[:length])
        assert refused(file, state) == "damaged, or not written by this loop"
    place = whole.index(state["model"].weight.detach().numpy().tobytes())
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])  # one bit of a weight
    assert refused(file, state) == "damaged, or not written by this loop"
    for content in (b"not an archive", b"<html>404</html>", b"\x80\x04."):
        file.write_bytes(content)
        assert refused(file, state) == "damaged, or not written by this loop"
    torch.save({"format": FORMAT, "name": np.float64(1)}, file)
    assert refused(file, state) == "damaged, or not written by this loop"
    for content in ({"name": "line", "model": {}, "history": {}}, {"format": FORMAT - 1}, [1], torch.ones(2)):
        torch.save(content, file)
        assert refused(file, state) == "of another format"
    torch.save({"format": FORMAT, "name": "line", "kinds": {}}, file)
    assert refused(file, {}) == "'random'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"at": np.int64(3)}, r"the state of 'sampler' at 'at' is a numpy\.int64: checkpoints hold tensors"),
        ({"at": [1, (np.float64(2.0),)]}, r"a member of a member of .* at 'at' is a numpy\.float64"),
        ({"order": np.arange(3)}, r"at 'order' is a numpy\.ndarray"),
        ({"on": {np.int64(3): 1}}, r"a key of the state of 'sampler' at 'on' is a numpy\.int64"),
        ({"when": frozenset({1})}, r"at 'when' is a builtins\.frozenset"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, content, message):
    file = tmp_path / "line.pt"
    save(file, "line", {"sampler": Sampler(at=1)})
    with pytest.raises(ValueError, match=message):
        save(file, "line", {"sampler": Sampler(**content)})
    sampler = Sampler()
    restore(file, "line", {"sampler": sampler})
    assert sampler.content == {"at": 1}, "the checkpoint before is still there"
    torch.save(content, file)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(file, weights_only=True)


def test_what_may_be_written_can_be_read(tmp_path):
    content = {"a": [1, 2.5, None, True, "x", b"x", 1j, {3}], "b": (torch.ones(2), {"c": torch.Size([1])})}
    content |= {"d": torch.float32, "e": torch.device("cpu"), 3: 10**30}
    sampler = Sampler()
    save(tmp_path / "line.pt", "line", {"sampler": Sampler(**{str(k): v for k, v in content.items()})})
    restore(tmp_path / "line.pt", "line", {"sampler": sampler})
    assert sampler.content["a"] == content["a"] and sampler.content["3"] == 10**30
