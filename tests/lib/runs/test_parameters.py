"""The parameters cell as declaration."""

import nbformat
import pytest

from lib.runs.parameters import Parameter, RequestError, parse, read_parameters

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
