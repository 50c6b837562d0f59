"""Every parameter of every chapter at the lowest value that its domain has, the rest at scale smoke.

A run ends well or is refused before it starts; it never fails on the way. ``--lowest N --seed SEED`` tries
N values, others by seed; a thousand are all of them.
"""

import json
import math
import random
import re
from pathlib import Path

import pytest
from torch import nn

from lib.models.depth.resnet_pyramid import ResnetPyramid
from lib.models.vision.resnet import resnet
from lib.runs.parameters import Parameter, read_parameters
from lib.runs.request import chapters, read_chapter, resolve
from tests.notebooks.conftest import ROOT, start_at_smoke

#: Not numbers of an experiment, or other files than smoke's, which their own tests read.
ASIDE = ("scale", "device", "data_dir", "run_dir", "dataset", "text")
KINDS = {"int": int, "float": float, "str": str}


def lowest(kind: type, domain: str) -> list:
    """The lowest value of each interval of a domain, and all of each choice."""
    found = []
    for part in re.findall(r"\{[^{}]+\}|[\[(][^,]+, [^\])]+[\])]", domain):
        if part.startswith("{"):
            found += [kind(name.strip()) for name in part[1:-1].split(",")]
        else:
            base, _, power = part[1:].split(",")[0].partition("^")
            bound = float(base) ** int(power or 1)
            inside = part.startswith("[")
            found.append(
                kind(bound) if inside else kind(bound) + 1 if kind is int else math.nextafter(bound, math.inf)
            )
    return found


def values(parameter: Parameter) -> list:
    """What a parameter is tried at: lists are as short as they may be."""
    if parameter.annotation == "bool":
        return [False, True]
    of_list = parameter.annotation.startswith("list")
    kind = KINDS.get(parameter.annotation[5:-1] if of_list else parameter.annotation)
    if kind is None or not parameter.domain or "empty" in parameter.domain:
        return []
    ends = lowest(kind, parameter.domain)
    if not of_list:
        return ends
    least = int(re.match(r"\d*", parameter.domain)[0] or 0)
    if least < 2 or "distinct" not in parameter.domain:
        return [[end] * least for end in ends] if least else [[], *([end] for end in ends)]
    more = range(least) if kind is int else [0.0] + [10.0 ** -(300 - n) for n in range(1, least)]
    return [ends[:least]] if kind is str else [[ends[0] + n for n in more]]


def cases() -> list[tuple[str, str, object]]:
    found = []
    for chapter in chapters(ROOT):
        declared = read_parameters(read_chapter(chapter), chapter)
        smoke = resolve(chapter, "smoke", fetch=False).parameters
        found += [
            (chapter, name, value)
            for name, parameter in declared.items()
            if name not in ASIDE
            for value in values(parameter)
            if value != smoke[name]
        ]
    return found


def pytest_generate_tests(metafunc):
    if "value" in metafunc.fixturenames:
        every = cases()
        draw = random.Random(metafunc.config.getoption("--seed"))
        some = draw.sample(every, min(len(every), metafunc.config.getoption("--lowest")))
        names = [f"{chapter}-{name}={value}" for chapter, name, value in some]
        metafunc.parametrize(("chapter", "name", "value"), some, ids=names)


@pytest.mark.lowest
def test_a_lowest_value_runs_or_is_refused_at_once(chapter, name, value, tmp_path):
    out = tmp_path / "run"
    given = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    ended = start_at_smoke(chapter, out, "-p", name, given).wait()
    said = Path(f"{out}.said").read_text(encoding="utf-8")
    refused = ended == 2 and not (out / "notebook.partial.ipynb").exists()
    assert ended == 0 or refused or ": DataUnavailable: " in said, said[-2000:]


@pytest.mark.parametrize(
    ("annotation", "domain", "expected"),
    [
        ("int", "in [2, inf)", [2]),
        ("int", "in (2, 8]", [3]),
        ("int", "in [0, 2^32)", [0]),
        ("float", "in (0, 1]", [5e-324]),
        ("float", "in {0.5, 1}", [0.5, 1.0]),
        ("str", "in {cpu, cuda}", ["cpu", "cuda"]),
        ("str", "a file or empty", []),
        ("bool", "", [False, True]),
        ("list[int]", "1+ distinct in [0, 2^32)", [[0]]),
        ("list[int]", "3 distinct in [4, inf)", [[4, 5, 6]]),
        ("list[int]", "3 in [1, inf)", [[1, 1, 1]]),
        ("list[int]", "in [1, 8]", [[], [1]]),
        ("list[str]", "1+ distinct in {a, b}", [["a"], ["b"]]),
    ],
)
def test_lowest_values_by_hand(annotation, domain, expected):
    assert values(Parameter("x", annotation, None, "", domain)) == expected


def narrowest_projection(network: nn.Module) -> int:
    """Channels that the 1×1 convolutions of a stride read, at the least."""
    strided = (one for one in network.modules() if isinstance(one, nn.Conv2d) and one.stride != (1, 1))
    return min(one.in_channels for one in strided if one.kernel_size == (1, 1))


@pytest.mark.parametrize(
    ("chapter", "name", "make"),
    [
        ("fsre_depth", "channels", lambda width: ResnetPyramid(width=width)),
        ("precision_highway", "width", lambda width: resnet(18, width=width, small_images=True)),
        ("value_aware", "width", lambda width: resnet(18, width=width, small_images=True)),
    ],
)
def test_no_chapter_trains_projections_that_write_out_of_bounds(chapter, name, make):
    """From 2 to 7 channels PyTorch 2.13 does, on CPUs and in channels-last order; kernels died of it."""
    domain = read_parameters(read_chapter(chapter), chapter)[name].domain
    (width,) = lowest(float, domain)
    assert narrowest_projection(make(width)) >= 8 > narrowest_projection(make(width / 2))
    assert resolve(chapter, "smoke", fetch=False).parameters[name] >= width
