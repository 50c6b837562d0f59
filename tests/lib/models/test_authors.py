"""Authors' files: read without running code, unwrapped, and refused in one line that names what is wrong."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from lib.models.authors import contents, read_state_dict, require_fit, require_keys

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


class Calls:
    """Unpickled, it calls a function: here a harmless one."""

    def __reduce__(self):
        return print, ("this ran",)


def test_a_file_or_what_it_holds_bare_or_wrapped(tmp_path):
    prefixed = {f"module.{key}": value for key, value in STATE.items()}
    torch.save({"epoch": 3, "best": {"state": prefixed}}, tmp_path / "wrapped.pth")
    torch.save(STATE, tmp_path / "bare.pth")
    found = [
        read_state_dict(tmp_path / "wrapped.pth", wrappers=("best", "state"), prefix="module."),
        read_state_dict(str(tmp_path / "bare.pth"), wrappers=("best", "state"), prefix="module."),
        read_state_dict(prefixed, prefix="module."),
    ]
    for state in found:
        assert state.keys() == STATE.keys() and all(torch.equal(state[key], STATE[key]) for key in STATE)
    assert read_state_dict(prefixed).keys() == prefixed.keys()


@pytest.mark.parametrize("written", ["nothing", "text", "code", "cut"])
def test_other_files_are_refused_in_one_line(tmp_path, capsys, written):
    path = tmp_path / "file.pth"
    if written == "text":
        path.write_text("root:x:0:0:root:/root:/bin/bash\n")
    elif written == "code":
        torch.save({"a": Calls()}, path)
    elif written == "cut":
        torch.save(STATE, path)
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"file.pth is no file of tensors that torch saved \(.+\)$") as error:
        contents(path)
    assert "\n" not in str(error.value)
    assert not capsys.readouterr().out


def test_a_twin_that_unpickles_anything_would_have_run_it(tmp_path, capsys):
    torch.save({"a": Calls()}, tmp_path / "file.pth")
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert pickle.loads(pickle.dumps(Calls())) is None
    assert capsys.readouterr().out == "this ran\n" * 2


def test_what_holds_no_state_dict_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nothing.pth"):
        read_state_dict(tmp_path / "nothing.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    for empty in (tmp_path / "list.pth", {}, {"model": {}}, {"model": torch.ones(1)}):
        with pytest.raises(ValueError, match="the checkpoint holds no state dict$"):
            read_state_dict(empty, wrappers=("model",))
    others = STATE | dict.fromkeys("efghi", 1)
    with pytest.raises(ValueError, match="holds no state dict: e, f, g and 2 more are no tensors$"):
        read_state_dict(others)


def test_keys_are_named():
    require_keys(STATE, ["a.weight"], "file of X")
    with pytest.raises(ValueError, match=r"^this is no file of X: missing b; unexpected a\.bias$"):
        require_keys(STATE, ["a.weight", "b"], "file of X", only=True)
    with pytest.raises(ValueError, match=r"^this is no file of X: missing b$"):
        require_keys(STATE, ["a.weight", "b"], "file of X")
    with pytest.raises(ValueError, match=r"unexpected a\.bias$"):
        require_keys(STATE, ["a.weight"], "file of X", only=True)


def test_a_network_of_the_same_keys_and_shapes():
    network = nn.ModuleDict({"a": nn.Linear(3, 2)})
    require_fit(STATE, network, "file of X")
    with pytest.raises(ValueError, match=r"no file of X: a\.weight must be \(2, 3\), got \(3, 2\)$"):
        require_fit(STATE | {"a.weight": torch.ones(3, 2)}, network, "file of X")
    with pytest.raises(ValueError, match=r"no file of X: missing a\.weight, a\.bias$"):
        require_fit({}, network, "file of X")
