"""Authors' files: read without running code, unwrapped, and refused in one line that names what is wrong."""

from __future__ import annotations

import pickle
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from lib.models.authors import contents, opened, read_state_dict, require_finite, require_fit, require_keys
from lib.models.recommenders.bert4rec import BERT4Rec
from lib.models.recommenders.marank import MARank
from lib.models.recommenders.meantime import Meantime
from lib.models.recommenders.sasrec import SASRec, TiSASRec
from lib.models.vision.mobilenet_authors import QuantizedMobileNetV2, QuantizedMobileNetV3Large

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


class Calls:
    """Unpickled, it calls a function: here a harmless one."""

    def __reduce__(self):
        return print, ("this ran",)


def test_a_file_or_what_it_holds_bare_or_wrapped(tmp_path):
    prefixed = {f"module.{key}": value for key, value in STATE.items()}
    torch.save({"epoch": 3, "best": {"state": prefixed}}, tmp_path / "wrapped.pth")
    torch.save(STATE, tmp_path / "bare.pth")
    for source in (tmp_path / "wrapped.pth", str(tmp_path / "bare.pth"), prefixed):
        state = read_state_dict(contents(source), wrappers=("best", "state"), prefix="module.")
        assert state.keys() == STATE.keys() and all(torch.equal(state[key], STATE[key]) for key in STATE)
    assert read_state_dict(prefixed).keys() == prefixed.keys()


def test_other_files_are_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "file.pth"
    torch.save(STATE, path)
    whole = path.read_bytes()
    place = whole.index(STATE["a.weight"].numpy().tobytes())
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]  # one bit of a weight
    others = [b"", b"root:x:0:0:root:/root:/bin/bash\n", b"<!DOCTYPE html>", bytes(range(256)), flipped]
    for content in [*others, *(whole[:length] for length in range(1, len(whole), len(whole) // 60))]:
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            contents(path)
        assert str(error.value) == f"{path} is no checkpoint: damaged, or not written by torch.save"
    for content, asks_for in ((Calls(), "print"), (np.float64(1), "numpy._core.multiarray.scalar")):
        torch.save({"a": content}, path)
        with pytest.raises(ValueError) as error:
            contents(path)
        assert str(error.value) == f"{path} is no checkpoint: it asks for {asks_for}"
    assert not capsys.readouterr().out


def test_plain_classes_that_are_named_are_read_and_no_others(tmp_path, capsys):
    path = tmp_path / "file.pth"
    torch.save({"a": Namespace(size=3, name="x")}, path)
    assert contents(path, also=(Namespace,))["a"] == Namespace(size=3, name="x")
    with pytest.raises(ValueError, match="it asks for argparse.Namespace$"):
        contents(path)  # nor is it remembered
    torch.save({"a": Namespace(size=Calls())}, path)
    with pytest.raises(ValueError, match="it asks for print$"), opened(path, also=(Namespace,)):
        pass
    assert not capsys.readouterr().out


def test_files_of_old_torch_are_read(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(contents(tmp_path / "old.pth")["a.weight"], STATE["a.weight"])


def test_a_twin_that_unpickles_anything_would_have_run_it(tmp_path, capsys):
    torch.save({"a": Calls()}, tmp_path / "file.pth")
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert pickle.loads(pickle.dumps(Calls())) is None
    assert capsys.readouterr().out == "this ran\n" * 2


def test_what_holds_no_state_dict_is_refused(tmp_path):
    for nowhere in (tmp_path / "nothing.pth", tmp_path, ""):
        with pytest.raises(FileNotFoundError, match="no checkpoint at "):
            contents(nowhere)
    for strange in (None, [STATE], 3, b"file.pth"):
        with pytest.raises(ValueError, match="^a checkpoint is a path or a mapping, got "):
            contents(strange)
    for empty in ([torch.ones(1)], None, "file.pth", {}):
        with pytest.raises(ValueError, match="^the checkpoint holds no state dict$"):
            read_state_dict(empty, wrappers=("model",))
    for empty in ({}, None, torch.ones(1)):
        with pytest.raises(ValueError, match="^'model' of the checkpoint holds no state dict$"):
            read_state_dict({"model": empty}, wrappers=("model",))
    others = STATE | dict.fromkeys("efghi", 1)
    with pytest.raises(ValueError, match="holds no state dict: no dense tensors at e, f, g and 2 more$"):
        read_state_dict(others)
    for strange in (STATE["a.bias"].to_sparse(), STATE["a.bias"].to("meta")):
        with pytest.raises(ValueError, match=r"no dense tensors at a\.bias$"):
            read_state_dict(STATE | {"a.bias": strange})


def test_errors_about_a_file_name_it(tmp_path):
    torch.save(STATE, tmp_path / "file.pth")
    for source, prefix in ((tmp_path / "file.pth", f"{tmp_path / 'file.pth'}: "), (STATE, "")):
        with pytest.raises(ValueError) as error, opened(source) as held:
            require_keys(held, ["b"], "file of X")
        assert str(error.value) == f"{prefix}this is no file of X: missing b"


def test_keys_are_named():
    require_keys(STATE, ["a.weight"], "file of X")
    with pytest.raises(ValueError, match=r"^this is no file of X: missing b; unexpected a\.bias$"):
        require_keys(STATE, ["a.weight", "b"], "file of X", only=True)
    with pytest.raises(ValueError, match=r"^this is no file of X: missing b$"):
        require_keys(STATE, ["a.weight", "b"], "file of X")
    with pytest.raises(ValueError, match=r"unexpected a\.bias$"):
        require_keys(STATE, ["a.weight"], "file of X", only=True)


def test_a_network_of_the_same_keys_and_shapes():
    own = nn.ModuleDict({"a": nn.Linear(3, 2)}).state_dict()
    require_fit(STATE, own, "file of X")
    with pytest.raises(ValueError, match=r"no file of X: a\.weight must be \(2, 3\), got \(3, 2\)$"):
        require_fit(STATE | {"a.weight": torch.ones(3, 2)}, own, "file of X")
    with pytest.raises(ValueError, match=r"no file of X: missing a\.weight, a\.bias$"):
        require_fit({}, own, "file of X")


def test_one_floating_type_and_our_other_types():
    own = nn.BatchNorm1d(2).state_dict()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        state = {key: v.to(dtype) if v.is_floating_point() else v for key, v in own.items()}
        require_fit(state, own, "file of X")
    for key, dtype, wanted in (
        ("bias", torch.float64, "torch.float32"),
        ("bias", torch.int64, "torch.float32"),
        ("bias", torch.bool, "torch.float32"),
        ("num_batches_tracked", torch.float32, "torch.int64"),
    ):
        with pytest.raises(ValueError, match=f"no file of X: {key} must be {wanted}, got {dtype}$"):
            require_fit(own | {key: own[key].to(dtype)}, own, "file of X")
    integers = {key: value.long() for key, value in own.items()}
    with pytest.raises(ValueError, match=r"weight must be torch\.float32, got torch\.int64$"):
        require_fit(integers, own, "file of X")


def test_weights_are_finite():
    require_finite(STATE)
    with pytest.raises(ValueError, match=r"^a\.bias holds 1 NaN or infinite values of 2$"):
        require_finite(STATE | {"a.bias": torch.tensor([1.0, torch.nan])})


# --- every loader ---

SMALL = {"max_length": 6, "hidden_size": 8}
LOADERS = {
    "MEANTIME": (lambda: Meantime(7, num_days=5, **SMALL).to_authors(), Meantime.from_authors),
    "BERT4Rec": (lambda: BERT4Rec(7, **SMALL).to_authors(), BERT4Rec.from_authors),
    "SASRec": (lambda: SASRec(7, **SMALL).to_authors(), SASRec.from_authors),
    "TiSASRec": (lambda: TiSASRec(7, max_interval=9, **SMALL).to_authors(), TiSASRec.from_authors),
    "MARank": (lambda: MARank(7, 3, hidden_size=8).to_authors(), MARank.from_authors),
    "MobileNet-v2": (
        lambda: QuantizedMobileNetV2(num_classes=3).state_dict(),
        QuantizedMobileNetV2.from_authors,
    ),
    "MobileNet-v3": (
        lambda: QuantizedMobileNetV3Large(num_classes=3).state_dict(),
        QuantizedMobileNetV3Large.from_authors,
    ),
}
WRONG = {
    "not a number": lambda w: torch.full_like(w, torch.nan),
    "infinite": lambda w: w / 0,
    "integers": lambda w: w.long(),
    "another floating type": lambda w: w.double(),
    "no axes": lambda w: w.sum(),
    "one axis": lambda w: w.flatten().repeat(2),
    "no rows": lambda w: w[:0],
    "one row": lambda w: w[:1],
    "no columns": lambda w: w[..., None][..., :0],
    "sparse": lambda w: w.to_sparse(),
    "nothing": lambda w: None,
}


@pytest.mark.parametrize("name", LOADERS)
def test_wrong_contents_are_refused_in_one_line_with_file_and_key(tmp_path, name):
    make, load = LOADERS[name]
    state, path = make(), tmp_path / "file.pth"
    keys = [key for key, value in state.items() if value.is_floating_point() and len(value) > 1]
    for key in (keys[0], next(key for key in keys if key.endswith("bias"))):
        for wrong in WRONG.values():
            with pytest.raises(ValueError) as error:
                load(state | {key: wrong(state[key].detach())})
            message = str(error.value)
            assert key.rpartition(".")[0] in message and "\n" not in message and len(message) < 300
    torch.save(state | {keys[0]: torch.ones(1)}, path)
    with pytest.raises(ValueError, match=f"file.pth: .*{keys[0]}"):
        load(path)
    for held in (None, [1], torch.ones(2), {"model": None, "state_dict": None}):
        torch.save(held, path)
        with pytest.raises(ValueError, match=r"file.pth: .*the checkpoint holds no state dict$"):
            load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"file.pth is no checkpoint: damaged"):
        load(path)
