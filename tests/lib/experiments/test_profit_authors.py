"""A file of the authors' program: read by its name and keys, evaluated, or refused in one line."""

from __future__ import annotations

import pytest
import torch

from lib.data.images import ImageSet
from lib.experiments.profit_authors import read_authors_file
from lib.models.vision.mobilenet_authors import QuantizedMobileNetV2, QuantizedMobileNetV3Large
from lib.training.classifiers import accuracy

V2_NAME = "ts_mobilenetv2_resnet101_duq_ema_5_4_bn2_best.pth"


def pictures(classes=10) -> ImageSet:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=random)
    return ImageSet(images, torch.arange(12) % classes, 0.5, 0.25, classes=tuple("abcdefghij"[:classes]))


def read(path, classes=10):
    return read_authors_file(path, classes=classes)


def saved(path, make=QuantizedMobileNetV2, classes=10, seed=0, wrapped=False):
    """Write what the authors' program would, with norms and ranges that let something through."""
    torch.manual_seed(seed)
    state = make(num_classes=classes).state_dict()
    if wrapped:
        average = {key: value.clone() for key, value in state.items()}
        average["classifier.1.bias"][3] = 1e3  # says class 3, whatever it sees
        torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "model_ema": average}, path)
    else:
        torch.save(state, path)
    return state


def test_a_file_is_evaluated_in_the_bits_of_its_name(tmp_path):
    state = saved(tmp_path / V2_NAME)
    authors = read(tmp_path / V2_NAME)
    network = authors.networks["weights"]
    assert (authors.activation_bits, authors.weight_bits) == (5, 4)
    assert network.classifier[1].bits == 4 and network.relu6.bits == 5
    scores = authors.scores(pictures())
    assert scores[["network", "bits", "state"]].values.tolist() == [["MobileNetV2", "W4A5", "weights"]]
    plain = QuantizedMobileNetV2.from_authors(state, weight_bits=4, activation_bits=5)
    expected = accuracy(plain, pictures(), topk=(1, 5))
    assert scores.loc[0, ["top-1", "top-5"]].to_dict() == expected
    assert (authors.name, authors.files("elsewhere")) == (V2_NAME, [tmp_path / V2_NAME])


def test_both_states_of_a_ckpt_and_the_other_network(tmp_path):
    saved(tmp_path / "ts_mobilenetv2_none_duq_4_4_ft3_15.ckpt", wrapped=True)
    scores = read(tmp_path / "ts_mobilenetv2_none_duq_4_4_ft3_15.ckpt").scores(pictures())
    assert scores["state"].tolist() == ["weights", "moving average"]
    held = torch.load(tmp_path / "ts_mobilenetv2_none_duq_4_4_ft3_15.ckpt") | {"model_ema": None}
    torch.save(held, tmp_path / "ts_mobilenetv2_none_duq_4_4_ft3_16.ckpt")
    assert list(read(tmp_path / "ts_mobilenetv2_none_duq_4_4_ft3_16.ckpt").networks) == ["weights"]
    assert scores["top-1"][1] == pytest.approx(100 / 12)  # one picture in twelve is of class 3
    saved(tmp_path / "ts_mobilenetv3_none_duq_8_8_best.pth", QuantizedMobileNetV3Large)
    scores = read(tmp_path / "ts_mobilenetv3_none_duq_8_8_best.pth").scores(pictures())
    assert scores["network"].tolist() == ["MobileNetV3Large"]


def test_the_cited_number_stands_beside_the_same_network_and_bits(tmp_path):
    cited = {"top-1 (ImageNet), 8 bits": 72.352, "top-1 (ImageNet), 4 bits": 71.564}
    saved(tmp_path / "ts_mobilenetv2_x_4_4_bn_best.pth")
    saved(tmp_path / "ts_mobilenetv2_x_8_4_bn_best.pth")
    same, other = (read(tmp_path / f"ts_mobilenetv2_x_{bits}_bn_best.pth") for bits in ("4_4", "8_4"))
    assert same.scores(pictures(), cited=cited)["top-1, cited"].tolist() == [71.564]
    assert "top-1, cited" not in other.scores(pictures(), cited=cited)
    assert "top-1, cited" not in same.scores(pictures())


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    def refused(name, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            read_authors_file(tmp_path / name, **{"classes": 10} | options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert refused("ts_4_4_best.pth") == f"no checkpoint at {tmp_path / 'ts_4_4_best.pth'}"
    (tmp_path / "passwd_4_4_best.pth").write_text("root:x:0:0:root:/root:/bin/bash\n")
    assert "passwd_4_4_best.pth is no checkpoint: damaged" in refused("passwd_4_4_best.pth")
    saved(tmp_path / V2_NAME)
    assert refused(V2_NAME, classes=1000) == f"{V2_NAME} tells 10 classes apart, the pictures have 1000"
    (tmp_path / V2_NAME).rename(tmp_path / "mobilenet.pth")
    assert "mobilenet.pth: the bits of activations and weights must be in the name" in refused(
        "mobilenet.pth"
    )
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "x_4_4_best.pth")
    message = refused("x_4_4_best.pth")
    assert message.startswith(
        f"{tmp_path / 'x_4_4_best.pth'}: this is no QuantizedMobileNetV2 checkpoint of PROFIT's authors: "
        "missing features.0.0"
    )
    assert message.endswith("unexpected conv.weight") and "and 521 more" in message
