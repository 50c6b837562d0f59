"""The parameters cell as declaration."""

import nbformat
import pytest

from lib.runs.parameters import Parameter, RequestError, override, parse, read_parameters

REQUIRED = """scale: str = "book"  # a
seeds: list[int] = [0]  # b
device: str = "cpu"  # c
data_dir: str = "data"  # d
run_dir: str = ""  # e
"""


def notebook(source: str, tags=("parameters",)) -> nbformat.NotebookNode:
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})]
    made.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return made


def test_every_type_is_read_with_its_help():
    extra = """rate: float = 1e-3  # step size
names: list[str] = ["a", "b"]  # of arms
flag: bool = False  # whether
ratios: list[float] = [0.5, 1]  # of sizes
rates: dict[str, float] = {"an arm": 1e-3, "other": 1}  # step size of each arm
"""
    found = read_parameters(notebook(REQUIRED + extra), "x.md")
    assert list(found) == [
        "scale",
        "seeds",
        "device",
        "data_dir",
        "run_dir",
        "rate",
        "names",
        "flag",
        "ratios",
        "rates",
    ]
    assert found["rate"] == Parameter("rate", "float", 1e-3, "step size")
    assert found["ratios"].default == [0.5, 1.0]
    assert found["rates"] == Parameter(
        "rates", "dict[str, float]", {"an arm": 0.001, "other": 1.0}, "step size of each arm"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rate = 1  # no type", "a parameter is `name: type = value  # help`, found `rate = 1`"),
        ("rate: number = 1  # odd", "must be one of int, float"),
        ("rate: float = 2 * 3  # sum", "must be a literal"),
        ("rate: float = 1.0  # a = b", "papermill cannot read"),
        ('rate: float = "x"  # text', "parameter rate must be float, got 'x' (str)"),
        ("print(1)", "a parameter is"),
        ("rate: float = = 1  # twice", "x.md: parameters cell, line 6: invalid syntax"),
    ],
)
def test_a_line_that_would_be_misread_is_refused(line, message):
    with pytest.raises(RequestError, match="x.md|parameter") as caught:
        read_parameters(notebook(REQUIRED + line), "x.md")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_every_chapter_has():
    for name in ("scale", "seeds", "device", "data_dir", "run_dir"):
        lines = [line for line in REQUIRED.splitlines() if not line.startswith(name)]
        with pytest.raises(RequestError, match=f"every chapter has a parameter `{name}"):
            read_parameters(notebook("\n".join(lines)), "x.md")
    with pytest.raises(RequestError, match="one cell tagged 'parameters', found 0"):
        read_parameters(notebook(REQUIRED, tags=()), "x.md")


def test_text_is_read_as_the_declared_type():
    def read(annotation, text):
        return parse(Parameter("x", annotation, None, ""), text)

    assert read("str", "1e-3") == "1e-3"
    assert read("float", "1e-3") == 0.001
    assert read("float", "2") == 2.0
    assert read("list[float]", "[1e-3, 2]") == [0.001, 2.0]
    assert read("int", "-3") == -3
    assert read("dict[str, float]", "{an arm: 1e-3, other: 2}") == {"an arm": 0.001, "other": 2.0}
    assert read("dict[str, float]", "{}") == {}
    assert read("bool", "true") is True
    for annotation, text in [
        ("int", "2.0"),
        ("int", "true"),
        ("bool", "1"),
        ("list[int]", "[1"),
        ("float", ""),
        ("dict[str, float]", "{a: b}"),
        ("dict[str, float]", "{a: true}"),
        ("dict[str, float]", "{a: .nan}"),
        ("dict[str, float]", "{1: 0.5}"),
        ("dict[str, float]", "{a: [0.5]}"),
        ("dict[str, float]", "0.5"),
    ]:
        with pytest.raises(RequestError, match="parameter x must be"):
            read(annotation, text)
    with pytest.raises(RequestError, match=r"got 0\.5 \(float\); write {name: number}"):
        read("dict[str, float]", "0.5")


def test_the_domain_stands_before_the_help():
    line = "bits: int = 3  # in [1, 8]: width: of a code"
    found = read_parameters(notebook(REQUIRED + line), "x.md")
    assert found["bits"] == Parameter("bits", "int", 3, "width: of a code", "in [1, 8]")
    assert found["bits"].kind == "int in [1, 8]"
    assert found["device"].domain == "" and found["device"].kind == "str"
    # Every chapter has seeds, and a generator takes no others.
    assert found["seeds"].kind == "list[int], 1+ distinct in [0, 2^32)"


@pytest.mark.parametrize(
    ("line", "inside", "outside"),
    [
        ("x: int = 1  # in [1, 8]: help", (1, 8), (0, 9)),
        ("x: float = 1  # in (0, 1]: help", (1e-9, 1), (0.0, 1.1)),
        ("x: float = 0.5  # in [-0.5, 1): help", (-0.5, 0.99), (-0.6, 1.0)),
        ("x: int = 1  # in [1, inf): help", (1, 2**63 - 1), (0, 2**63)),
        ("x: int = 0  # in {0} or [3, 2^4]: help", (0, 3, 16), (1, 2, 17)),
        ("x: int = 0  # in {0, 18}: help", (0, 18), (1, -18)),
        ('x: str = "a b"  # in {a b, ml-1m}: help', ("a b", "ml-1m"), ("a", "", "a b ")),
        ('x: str = ""  # in /([pd](-[pd])*)?/: help', ("", "p", "p-d-p"), ("p-", "pd", "p\n")),
        ("x: list[int] = []  # in [0, 8]: help", ([], [8, 8]), ([9], [1, -1])),
        ("x: list[int] = [1]  # 1+ in [1, 8]: help", ([8, 8],), ([], [1, 0])),
        ("x: list[int] = []  # 0+ distinct in [1, 8]: help", ([], [8, 1]), ([8, 1, 8],)),
        ("x: list[int] = [1, 2]  # 2 in [0, inf): help", ([0, 0],), ([], [1], [1, 2, 3])),
        ("x: list[float] = [1]  # 1-2 in [0, 1]: help", ([0, 1],), ([], [0, 0, 0], [2])),
        ('x: list[str] = ["a"]  # 1+ distinct in {a, b}: help', (["b", "a"],), (["c"], [])),
        ("x: dict[str, float] = {}  # in (0, 1): help", ({}, {"a": 0.5}), ({"a": 0.5, "b": 1},)),
    ],
)
def test_every_domain(line, inside, outside):
    declared = read_parameters(notebook(REQUIRED + line), "x.md")
    for value in inside:
        assert override(declared, {"x": value}, "here") == {"x": value}
    for value in outside:
        with pytest.raises(RequestError, match=r"^here: parameter x must be ") as caught:
            override(declared, {"x": value}, "here")
        assert f"{declared['x'].kind}, got {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "x: int = 1  # in [1, 8) width",  # no colon
        "x: list[int] = [1]  # 1+ distinct: widths",  # in what?
        "x: list[int] = [1]  # 3: widths",
        "x: int = 1  # in [1,8]: width",
        "x: int = 1  # in [1, many]: width",
        "x: int = 1  # in {}: width",
        "x: int = 1  # 1+ in [1, 8]: width",  # of no list
        "x: dict[str, float] = {}  # 1+ in [1, 8]: width",
        "x: int = 1  # in {a, b}: width",
        "x: str = 'a'  # in [1, 8]: width",
        "x: bool = True  # in {1}: width",
        "x: int = 1  # a file or empty: width",
        "x: str = ''  # a file: weights",
        "x: list[str] = []  # a folder or empty: pictures",
        "x: str = 'a('  # in /a(/: width",
        "x: int = 9  # in [1, 8]: width",  # the value itself
        "x: list[int] = [1, 1]  # 1+ distinct in [1, 8]: width",
        "value: int = 1  # twice\nvalue: int = 2  # twice",
    ],
)
def test_a_declaration_that_would_check_nothing_is_refused(line):
    with pytest.raises(RequestError, match=r"^x\.md: ") as caught:
        read_parameters(notebook(REQUIRED + line), "x.md")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_a_long_value_is_cut_in_the_message():
    declared = read_parameters(notebook(REQUIRED), "x.md")
    with pytest.raises(RequestError) as caught:
        override(declared, {"seeds": list(range(1000)) * 2}, "here")
    assert len(str(caught.value)) < 200
    with pytest.raises(RequestError) as caught:
        override(declared, {"x" * 1000: 1}, "here")
    assert len(str(caught.value)) < 300
