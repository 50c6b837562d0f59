"""`lib.run` through its real command line, in a project with one tiny chapter."""

import ctypes
import functools
import http.server
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock

from lib.ledger.evidence import Evidence
from lib.runs import execution
from lib.runs.execution import Watch


def only_run(project, scale="book", chapter="tiny") -> Path:
    (folder,) = (project.root / "runs" / scale / chapter).iterdir()
    return folder


def wait_for(condition):
    """However long it takes: what never comes meets the limit of time that every test has."""
    while not condition():
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else True


def kernel_pid(project) -> int:
    log = next((project.root / "runs").rglob("log.txt")).read_text()
    return int(log.split("pid=")[1].split()[0])


def started(project) -> bool:
    """The chapter is in the middle of its first step."""
    return any((project.root / "runs").rglob("checkpoints/0"))


def test_a_run_leaves_the_whole_folder_and_is_not_repeated(project):
    first = project.run("lib.run", "tiny", "--threads", "2")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    folder = only_run(project)
    left = {path.name for path in folder.iterdir()} - {".lock"}
    assert left == {"evidence.json", "claims.json", "notebook.ipynb", "parameters.json", "log.txt"}
    evidence = Evidence.load(folder / "evidence.json")
    assert (evidence.chapter, evidence.scale, evidence.claims[0].verdict) == ("tiny", "book", "exact")
    assert evidence.parameters == {
        "scale": "book",
        "seeds": [0],
        "device": "cpu",
        "value": 4.0,
        "crash": False,
    }
    assert set(evidence.provenance.sections) == {"A tiny chapter", "Work", "End"}
    held = json.loads((folder / "parameters.json").read_text())
    assert held["altered"] == [] and evidence.altered == ()
    first_cell = json.loads((folder / "notebook.ipynb").read_text())["cells"][0]
    assert "on its page, `_build/html/notebooks/tiny.html`" in "".join(first_cell["source"])
    assert folder.name == held["fingerprint"][:12]
    assert {"Python", "cell 1"} < set(held["method"]) and "seeds" not in held["method"]
    lines = first.stdout.splitlines()
    assert lines[0].startswith("[tiny] 2/8 A tiny chapter · ")
    assert any(line.startswith("[tiny] 5/8 Work · ") for line in lines)
    assert "[tiny]   T1: exact. The number agrees to the stated precision." in lines
    assert "complete" in lines[-1] and "1 exact" in lines[-1]
    assert not any("\r" in line or "%|" in line for line in lines), "no bar where nobody watches"
    log = (folder / "log.txt").read_text()
    assert "env=['2', '2', '1', '0', 'UTC']" in log
    assert f"cwd={project.root.resolve()} " in log
    for line in log.splitlines():
        assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ lib ", line), line

    before = (folder / "notebook.ipynb").stat().st_mtime_ns
    second = project.run("lib.run", "tiny")
    assert second.returncode == 0
    assert "already complete" in second.stdout
    assert (folder / "notebook.ipynb").stat().st_mtime_ns == before
    forced = project.run("lib.run", "tiny", "--force")
    assert forced.returncode == 0
    assert (folder / "notebook.ipynb").stat().st_mtime_ns > before


def test_the_terminal_gets_the_newest_line_of_the_log_now_and_then(tmp_path, monkeypatch):
    said, log = [], tmp_path / "log.txt"
    log.write_text("2026-11-23T08:24:12Z lib.training.loop of a former attempt\n")
    monkeypatch.setattr(execution, "ECHO_SECONDS", 3600)
    with Watch("tiny", log, said.append), log.open("a") as file:
        for step in range(60):
            file.write(f"2026-11-23T08:24:13Z lib.training.loop model, seed 0: step {step} of 60, loss 0.5\n")
            file.flush()
            if step == 0:
                wait_for(lambda: said)
    assert said == [f"[tiny]   model, seed 0: step {step} of 60, loss 0.5" for step in (0, 59)]


BAD_REQUESTS = [
    (["tinny"], "unknown chapter 'tinny' (did you mean 'tiny'?)"),
    (["tiny", "--scale", "smok"], "unknown scale 'smok' (did you mean 'smoke'?)"),
    (["tiny", "--scale", "paper"], "tiny has no scale 'paper'"),
    (["tiny", "-p", "valu", "3"], "unknown parameter 'valu' (did you mean 'value'?)"),
    (["tiny", "-p", "value", "four"], "parameter value must be float, got 'four' (str)"),
    (["tiny", "-p", "value", ".nan"], "parameter value must be float, got nan"),
    (["tiny", "-p", "crash", "1"], "parameter crash must be bool, got 1 (int)"),
    (["tiny", "-p", "seeds", "3"], "parameter seeds must be list[int], got 3 (int); write [3]"),
    (["tiny", "-p", "seeds", "[0, true]"], "parameter seeds must be list[int]"),
    (
        ["tiny", "-p", "seeds", "[1, 1]"],
        "parameter seeds must be list[int], 1+ distinct in [0, 2^32), got [1, 1]",
    ),
    (["tiny", "-p", "device", "cuda"], "parameter device: PyTorch finds no GPU here for 'cuda'; use 'cpu'"),
    (["tiny", "-p", "value", "1", "-p", "value", "2"], "parameter value is given twice"),
    (["tiny", "-p", "scale", "smoke"], "parameter scale is set by --scale"),
    (["tiny", "-p", "crash", "on"], "parameter crash must be bool, got 'on' (str)"),
    (["tiny", "-p", "seeds", "[010, 011]"], "parameter seeds must be list[int], got ['010', '011'] (list)"),
    (["tiny", "-p", "value", "1:30"], "parameter value must be float, got '1:30' (str)"),
    (["tiny", "-p", "value", "１.５"], "parameter value must be float, got '１.５' (str)"),
    (["tiny", "-p", "value", "-inf"], "parameter value must be float, got '-inf' (str)"),
    (["tiny", "-p", "value", "9" * 5000], "parameter value must be float, got '999"),
    (["tiny", "-p", "seeds", "[" * 3000], "not YAML: nested too deeply"),
    (["tiny", "-p", "device", "\udcff"], "parameter device must be str, got '\\udcff': "),
    (["tiny", "-p", "value"], "argument -p: expected 2 arguments"),
    (["tiny", "-p", "data_dir", "s3://bucket/x"], "parameter data_dir: s3://bucket/x is an address"),
    (["tiny", "-p", "run_dir", "x"], "parameter run_dir is set by --out"),
    *(
        (["tiny", "--threads", count], f"argument --threads: must be 1 to 1024, got {count}")
        for count in ("0", "-1", "99999999999", "1.5", "two")
    ),
    (["tiny", "--start-timeout", "99999999999"], "argument --start-timeout: must be 1 to 86400, got 9"),
    (["tiny", "--seeds", "1"], "unrecognized arguments: --seeds 1"),
    (["tiny", "--out", "lib"], "is not empty and holds no run"),
    (["tiny", "--out", "other"], "is not empty and holds no run"),
    (["tiny", "--out", "pyproject.toml"], "is a file"),
    (["tiny", "--out", "pyproject.toml/x/y"], "pyproject.toml is a file"),
    (["tiny", "--out", "/dev/null/x"], "/dev/null is a file"),
    (["tiny", "--out", "/proc/1/x"], "/proc/1/x cannot be a folder: No such file or directory"),
    (["tiny", "--out", "a" * 300], " cannot be a folder: File name too long; choose another --out"),
    (["tiny", "--out", "new/" + "é" * 200], " cannot be a folder: File name too long; choose another --out"),
    (["tiny", "--out", "new/" + 24 * ("a" * 200 + "/")], " cannot be a folder: File name too long"),
    (["tiny", "--out", "a\0b"], " cannot be a folder: embedded null byte"),
    (["tiny", "--out", "a\udcff"], " cannot be a folder: it is no UTF-8"),
    (["tiny", "--out", "~nobody-of-this-name/x"], " cannot be a folder: Could not determine home directory"),
    (["tiny", "--out", "s3://bucket/x"], "argument --out: s3://bucket/x is an address"),
    (["tiny", "--start-timeout", "0"], "argument --start-timeout: must be 1 to 86400, got 0"),
    (["x" * 5000], "unknown chapter 'xxx"),
    ([], "which chapter?"),
]


def test_a_bad_request_is_one_line_and_writes_nothing(project, request_run):
    project.write("other/parameters.json", "[1, 2")  # somebody else's file of that name
    before = sorted(path for path in project.root.rglob("*") if path.suffix != ".pyc")
    for arguments, message in BAD_REQUESTS:
        done = request_run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert len(done.stderr.splitlines()) == 1 and len(done.stderr) < 600, done.stderr
        assert message in done.stderr
    first = project.run("lib.run", *BAD_REQUESTS[0][0])
    assert (first.returncode, first.stdout) == (2, "")
    assert first.stderr == "python -m lib.run: unknown chapter 'tinny' (did you mean 'tiny'?)\n"
    after = sorted(path for path in project.root.rglob("*") if path.suffix != ".pyc")
    assert [path for path in after if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]


def test_a_scale_file_is_checked_like_the_command_line(project, request_run):
    for text, message in [
        ("sedes: [1]", "smoke/tiny.yml: unknown parameter 'sedes' (did you mean 'seeds'?)"),
        ("seeds: 1", "smoke/tiny.yml: parameter seeds must be list[int]"),
        ("run_dir: here", "smoke/tiny.yml must not set run_dir"),
        ("[1]", "smoke/tiny.yml must map parameters to values, got list"),
        ("a: [", "smoke/tiny.yml, line 1: not YAML"),
    ]:
        project.write("notebooks/scales/smoke/tiny.yml", text)
        done = request_run("tiny", "--scale", "smoke")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr


def test_a_number_without_a_dot_is_a_float(project, request_run):
    """As YAML 1.2 reads 1e-3, on the command line as in a scale's file."""
    project.write("notebooks/scales/smoke/tiny.yml", "value: 1e-3\n")
    for arguments in (["-p", "value", "1e-3"], ["--scale", "smoke"], ["-p", "value", "0.001"]):
        done = request_run("tiny", *arguments, "--dry-run")
        assert "value: 0.001\n" in done.stdout, done.stderr
    assert not (project.root / "runs").exists()


def test_two_words_after_p_are_a_parameter(request_run):
    for value, read in [("-1e-3", "-0.001"), ("-2", "-2.0"), ("-.5", "-0.5")]:
        assert f"value: {read}\n" in request_run("tiny", "-p", "value", value, "--dry-run").stdout
    given = request_run("tiny", "-p", "device", "--force", "--dry-run", "-p", "seeds", "[3]")
    assert "device: --force\n" in given.stdout and "seeds: [3]\n" in given.stdout
    for name in ("--out", "-p data_dir"):
        given = request_run("tiny", *name.split(), "~/no/such/folder", "--dry-run")
        assert f"{Path.home()}/" in (given.stdout or given.stderr)  # which says that it cannot be written


def test_whatever_an_editor_made_of_a_chapter(project, request_run):
    """Marks, line ends and the kernel of another machine are no other run; what cannot be read says where."""
    page = project.root / "notebooks/tiny.md"
    text = page.read_text()
    (kernel,) = re.findall(r"^kernelspec: .*\n", text, flags=re.MULTILINE)
    same = request_run("tiny", "--dry-run").stdout
    for other in [
        "\ufeff" + text,
        text.replace("\n", "\r\n"),
        text.replace(kernel, ""),
        text.replace(kernel, "kernelspec: {display_name: R, language: R, name: ir}\n"),
    ]:
        page.write_bytes(other.encode())
        done = request_run("tiny", "--dry-run")
        assert (done.returncode, done.stdout, done.stderr) == (0, same, "")
    for other, message in [
        (text.replace(kernel, "a: 1\na: 2\n"), "notebooks/tiny.md, line 4: not YAML: 'a' twice"),
        (
            text.replace(kernel, "a: @\n"),
            "notebooks/tiny.md, line 3: not YAML: found character '@' that cannot",
        ),
        (text.replace("  id: tiny", "  - tiny"), "notebooks/tiny.md, line 6: not YAML: "),
        (
            text.replace("companion:\n  id: tiny\n  data: []", "companion: tiny"),
            "the front matter must say companion",
        ),
        (
            text.replace("A tiny", "A täny"),
            "notebooks/tiny.md, line 9: not UTF-8; save it as UTF-8",
        ),
    ]:
        page.write_bytes(other.encode("latin-1"))
        done = request_run("tiny", "--dry-run")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
    page.write_text(text)
    ledger = project.root / "book/claims/tiny.yml"
    for other, message in [
        (b"a: 1\na: 2\n", "book/claims/tiny.yml, line 2: not YAML: 'a' twice"),
        (b"[a]: 1\n", "book/claims/tiny.yml, line 1: not YAML: a key of parts"),
        (b"[" * 20_000, "book/claims/tiny.yml: not YAML: nested too deeply"),
        (b"a: 2026-13-45\n", "book/claims/tiny.yml: not YAML: month must be in 1..12"),
        ("a: é\n".encode("latin-1"), "book/claims/tiny.yml, line 1: not UTF-8"),
    ]:
        ledger.write_bytes(other)
        done = request_run("tiny")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_a_scale_is_read_whatever_saved_it(project, request_run):
    path, text = project.root / "notebooks/scales/smoke/tiny.yml", "# Käse\nvalue: 2.5\n"
    for content in (text.encode(), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()):
        path.write_bytes(content)
        assert "value: 2.5\n" in request_run("tiny", "--scale", "smoke", "--dry-run").stdout
    for content in (text.encode("latin-1"), text.encode("utf-16")):
        path.write_bytes(content)
        done = request_run("tiny", "--scale", "smoke", "--dry-run")
        where = "notebooks/scales/smoke/tiny.yml, line 1"
        assert (done.returncode, done.stderr) == (
            2,
            f"python -m lib.run: {where}: not UTF-8; save it as UTF-8\n",
        )


def test_folders_of_this_machine_are_told_at_the_end_of_the_run(project, tmp_path):
    """And what a parameter names elsewhere is kept by its name: its content is what counts."""
    page, elsewhere = project.root / "notebooks/tiny.md", tmp_path / "of mine"
    elsewhere.mkdir()
    text = page.read_text().replace("crash: bool", 'photos: str = ""  # a folder or empty: mine\ncrash: bool')
    page.write_text(text.replace("record.close()", "_ = record.close()"))
    done = project.run("lib.run", "tiny", "-p", "photos", str(elsewhere))
    assert done.returncode == 0 and "a folder of this machine" not in done.stdout, done.stderr
    evidence = Evidence.load(only_run(project) / "evidence.json")
    assert evidence.parameters["photos"] == "of mine" and evidence.altered == ("photos",)
    page.write_text(text)  # whose last cell shows the path of a file
    done = project.run("lib.run", "tiny", "--out", "mine")
    told = [line for line in done.stdout.splitlines() if "a folder of this machine" in line]
    assert len(told) == 1 and "[tiny] cell 10 of notebook.ipynb names " in told[0], done.stdout


def test_a_long_scale_and_a_mapping_from_names_to_numbers(project, request_run):
    """From the scale's file and the command line through papermill into the chapter and its evidence."""
    page = project.root / "notebooks/tiny.md"
    line = 'rates: dict[str, float] = {"an arm": 0.5}  # step size of each arm\n'
    text = page.read_text().replace("crash: bool", f"{line}crash: bool")
    page.write_text(text.replace('{"number": value}', '{"number": 1000 * rates["an arm"]}'))
    assert "step size of each arm" in request_run("tiny", "--list").stdout
    refused = request_run("tiny", "--scale", "long")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "tiny has no scale 'long': notebooks/scales/long/tiny.yml does not exist" in refused.stderr
    project.write("notebooks/scales/long/tiny.yml", "rates: {an arm: 4e-3, b: 1}\n")
    ledger = project.root / "book/claims/tiny.yml"
    ledger.write_text(ledger.read_text().replace("paper: {tested", "long: {tested: true}, paper: {tested"))
    done = project.run("lib.run", "tiny", "--scale", "long")
    assert done.returncode == 0, done.stderr
    evidence = Evidence.load(only_run(project, "long") / "evidence.json")
    assert (evidence.scale, evidence.parameters["rates"]) == ("long", {"an arm": 0.004, "b": 1.0})
    assert evidence.claims[0].measured == {"number": 4.0}
    dry = request_run("tiny", "--scale", "long", "-p", "rates", "{an arm: 4e-3, b: 1.0}", "--dry-run")
    assert "complete" in dry.stdout, "the same values are the same run"


# What a chapter may be fed, by the real code, and the end of the one line that it ends in.
BAD_INPUT = {
    "empty_log": (
        """import pandas as pd
from lib.data.interactions import InteractionLog
InteractionLog.from_frame(pd.DataFrame(columns=["user", "item", "rating", "timestamp"]))""",
        "ValueError: the interaction log is empty: expected at least one rating",
    ),
    "few_events": (
        """import pandas as pd
from lib.data.interactions import InteractionLog
from lib.data.sequences import ClozeTraining
frame = pd.DataFrame({"user": [7, 7], "item": [1, 2], "rating": 5.0, "timestamp": [10, 20]})
log = InteractionLog.from_frame(frame, min_item_count=1, min_user_count=1)
ClozeTraining(log, max_length=4, stride=2, batch_size=2, seed=0)""",
        "ValueError: leave-one-out needs at least 3 events per user, but user 1 (id 7) has 2; "
        "build the log with min_user_count=3 or more",
    ),
    "tampered": (
        """from pathlib import Path
from lib.data.download import Download
Download("a.bin", (ADDRESS,), "1 MB", "for tests", "md5:" + 32 * "0").fetch(Path(data_dir))""",
        "what it sends is not the expected one (md5:00000000000000000000000000000000). Get it from ",
    ),
    "offline": (
        """from pathlib import Path
from lib.data.download import Download
Path(data_dir).mkdir()
(Path(data_dir) / "b.bin").write_bytes(b"the beginn")
here = "http://127.0.0.1:9/b.bin"
Download("b.bin", (here,), "1 MB", "for tests", "md5:" + 32 * "0").fetch(Path(data_dir))""",
        "b.bin: [Errno 111] Connection refused. Get it from http://127.0.0.1:9/b.bin and put it at ",
    ),
    "too_long": (
        """import torch
from lib.models.recommenders.bert4rec import BERT4Rec
model = BERT4Rec(5, max_length=4, hidden_size=8, num_heads=2)
model({"tokens": torch.ones(1, 5, dtype=torch.int64)})""",
        "T in 1..4, got (1, 5)",
    ),
    "nan_loss": (
        """import torch
from lib.training.loop import fit
class Diverging(torch.nn.Linear):
    def loss(self, batch):
        return self.weight.sum() * float("nan")
fit(Diverging(1, 1), lambda step: {}, steps=2, name="Diverging, seed 0")""",
        "Error: Diverging, seed 0: the loss is nan in the 2 steps before step 2; lower learning_rate",
    ),
    "several_lines": (
        """raise RuntimeError("\\x1b[31mCUDA error:\\x1b[0m out of memory\\nCompile with DSA.")""",
        "): RuntimeError: CUDA error: out of memory · log ",
    ),
    "group": (
        """raise ExceptionGroup("several", [ValueError("a"), TypeError("b")])""",
        "): ExceptionGroup: several (2 sub-exceptions) · log ",
    ),
    "without_words": (
        """assert not names""",
        "`assert not names`): AssertionError: without a message · log ",
    ),
    "quit": ("""quit()""", "`quit()`): it ends the kernel (quit, exit) · log "),
    "huge": ("""raise ValueError(2_000_000 * "x")""", "): ValueError: xxxxx"),
    "full_disk": (
        """(record.folder / "checkpoints" / "0.pt").write_bytes(bytes(2_000_000))""",
        "OSError: [Errno 28] No space left on device",
    ),
}


def chapter_with(project, name: str, source: str) -> None:
    """A chapter whose third cell of code is `source`."""
    project.chapter(name)
    path = project.root / "notebooks" / f"{name}.md"
    old = 'if crash:\n    raise ValueError("first line\\nlast line")\n'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, source + "\n"))


def test_bad_input_is_one_line_that_says_what_to_do(project, tmp_path):
    """Through the command line, the kernel and the real code; the kernels run side by side."""
    (project.root / "torch.py").unlink()
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(b"not what was promised")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'"http://127.0.0.1:{server.server_port}/a.bin"'
        started = {}
        for name in BAD_INPUT.keys() - {"full_disk"}:
            chapter_with(project, name, BAD_INPUT[name][0].replace("ADDRESS", address))
            started[name] = project.start("lib.run", name, "-p", "data_dir", f"data-{name}", no_proxy="*")
        for name, process in started.items():
            _, err = process.communicate()
            assert process.returncode == 1, err
            assert len(err.splitlines()) == 1 and len(err) < 900 and "\x1b" not in err, err
            assert err.startswith(f"[{name}] failed in cell 6 (section 'Work', `")
            assert BAD_INPUT[name][1] in err
        server.shutdown()
    for name in started:
        folder = only_run(project, chapter=name)
        left = {path.name for path in folder.iterdir()} - {".lock"}
        assert left == {"parameters.json", "log.txt", "failed.txt", "notebook.partial.ipynb", "checkpoints"}
    assert not list(project.root.glob("data-tampered/a.bin"))


def test_a_chapter_that_fills_the_disk(project, small_disk):
    chapter_with(project, "tiny", BAD_INPUT["full_disk"][0])
    done = project.run("lib.run", "tiny", "--out", str(small_disk / "run"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "No space left on device" in done.stderr
    left = {path.name for path in (small_disk / "run").iterdir()}
    assert not left & {"evidence.json", "notebook.ipynb", "claims.json"}
    for path in (small_disk / "run").glob("*.ipynb"):
        nbformat.read(path, as_version=4)  # whole, if it is there
    assert not any(name.endswith(".tmp") for name in left)


def test_a_disk_that_is_full_from_the_start(project, small_disk):
    with pytest.raises(OSError, match="No space"), (small_disk / "other").open("wb") as file:
        file.write(bytes(2_000_000))
    done = project.run("lib.run", "tiny", "--out", str(small_disk / "run"))
    assert done.returncode == 1
    assert done.stderr.startswith("[tiny] cannot write: [Errno 28] No space left on device")
    assert done.stderr.endswith("; the same command continues\n") and done.stderr.count("\n") == 1
    assert {path.name for path in (small_disk / "run").iterdir()} <= {".lock"}
    (small_disk / "other").unlink()
    assert project.run("lib.run", "tiny", "--out", str(small_disk / "run")).returncode == 0


def test_help_and_list(request_run):
    text = request_run("--help").stdout
    for part in ("examples:", "exit codes:", "evidence.json", "notebook.partial.ipynb", "--scale smoke"):
        assert part in text
    assert request_run("--list").stdout.split() == ["tiny", "A", "tiny", "chapter"]
    listed = request_run("tiny", "--list", "--scale", "smoke").stdout
    assert "seeds: list[int], 1+ distinct in [0, 2^32) = [1]\n    the seeds\n" in listed


def test_a_commit_that_cannot_be_read_is_told(project):
    (project.root / ".git").mkdir()  # as git sees the checkout of another user
    done = project.run("lib.run", "tiny")
    assert done.returncode == 0, done.stderr
    assert "[tiny] no commit in the evidence: git does not tell it" in done.stdout


def test_another_system_is_refused_in_a_line(project):
    project.write("windows.py", "import sys\n\nsys.platform = 'win32'\nimport lib.run\n")
    done = project.run("windows")
    assert done.returncode == 1
    assert done.stderr == "Linux or macOS is needed; on Windows its subsystem for Linux (WSL) will do\n"


def test_a_failing_cell_is_named_and_leaves_no_evidence(project):
    done = project.run("lib.run", "tiny", "-p", "crash", "true")
    assert done.returncode == 1
    folder = only_run(project)
    (line,) = done.stderr.splitlines()
    assert line.startswith("[tiny] failed in cell 6 (section 'Work', `if crash:`): ValueError: first line · ")
    assert line.endswith(f"log {folder.relative_to(project.root)}/log.txt")
    assert not (folder / "evidence.json").exists() and not (folder / "notebook.ipynb").exists()
    partial = nbformat.read(folder / "notebook.partial.ipynb", as_version=4)
    assert any(out.output_type == "error" for cell in partial.cells for out in cell.get("outputs", []))
    assert "ValueError" in (folder / "log.txt").read_text()
    assert "\x1b" not in (folder / "log.txt").read_text()
    assert (folder / "failed.txt").read_text() == line.replace("[tiny] failed in", "tiny:") + "\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "record.close()",
            "",
            "[tiny] failed: no claims.json in the run's folder: the chapter did not close its record · ",
        ),
        (
            "record.close()",
            "record.close()\nimport shutil\n[shutil.rmtree(run_dir), record.folder.mkdir()]",
            "[tiny] failed: its folder was removed or emptied while it ran: run it again · log ",
        ),
        ("record.close()", "raise SystemExit", "kept an error in its output: SystemExit"),
        ('if "TINY_DIE" in os.environ:', "if True:", "the kernel died"),
    ],
)
def test_a_chapter_that_only_seems_to_end_leaves_no_evidence(project, old, new, message):
    path = project.root / "notebooks" / "tiny.md"
    path.write_text(path.read_text().replace(old, new))
    done = project.run("lib.run", "tiny")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (only_run(project) / "evidence.json").exists()


def test_killed_and_started_again_it_continues(project):
    temporary = project.write("temporary/.keep", "").parent
    process = project.start("lib.run", "tiny", TINY_PAUSE="60", TMPDIR=str(temporary))
    wait_for(lambda: started(project))
    kernel = kernel_pid(project)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not alive(kernel))  # the kernel notices that it is alone
    folder = only_run(project)
    assert not (folder / "evidence.json").exists()
    (folder / ".evidence.json.0f1e2d3c.tmp").write_text("{")  # as a kill in the middle of writing leaves it
    assert list(temporary.glob("lib-run-*"))
    noted = json.loads((folder / "parameters.json").read_text())
    assert noted["earlier_seconds"] == 0
    # As if it had been killed once before, and then had gone on for a quarter of an hour.
    (folder / "parameters.json").write_text(json.dumps(noted | {"earlier_seconds": 500}))
    quarter_before = (folder / "log.txt").stat().st_mtime - 900
    os.utime(folder / "parameters.json", times=(quarter_before, quarter_before))
    again = project.run("lib.run", "tiny", TMPDIR=str(temporary))
    assert not list(temporary.glob("lib-run-*")) and not list(folder.glob(".*.tmp"))
    assert again.returncode == 0, again.stderr
    assert "continues from the checkpoints" in again.stdout
    log = (folder / "log.txt").read_text()
    assert "step 0 was done" in log and "step 1" in log
    assert (folder / "evidence.json").exists() and not (folder / "checkpoints").exists()
    seconds = Evidence.load(folder / "evidence.json").provenance.wall_seconds
    assert 1400 <= seconds < 1700, "all three sittings"
    assert project.run("lib.run", "tiny", "--force").returncode == 0
    assert Evidence.load(folder / "evidence.json").provenance.wall_seconds < 300, "from the start"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux: who adopts orphans")
def test_a_kernel_that_is_orphaned_at_its_start_ends(project):
    """Adopted by another process than the first, as under systemd, before it knows whose child it is."""
    adopt = ctypes.CDLL(None).prctl
    adopt(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    try:
        process = project.start("lib.run", "tiny", TINY_PAUSE="60")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: children.read_text().split())
        kernel = int(children.read_text().split()[0])
        process.kill()
        process.communicate()
        wait_for(lambda: not alive(kernel))
    finally:
        adopt(36, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evidence.json", "{"),
        ("evidence.json", "{}"),
        ("evidence.json", None),
        ("notebook.ipynb", ""),
        ("notebook.ipynb", "{}"),
        ("notebook.ipynb", "[" * 20_000),
        ("notebook.ipynb", '{"cells": []}'),
        ("tables/numbers.csv", ""),
        ("tables/numbers.csv", None),
    ],
)
def test_a_damaged_run_is_not_complete(shared_project, shared_requests, name, content):
    if not (shared_project.root / "notebooks/tiny.md").exists():
        shared_project.chapter("tiny")
        page = shared_project.root / "notebooks/tiny.md"
        page.write_text(
            page.read_text().replace("record.close", 'record.numbers("T1", name="numbers")\nrecord.close')
        )
    if "[tiny] complete" not in shared_requests("tiny", "--dry-run").stdout:
        done = shared_project.run("lib.run", "tiny")
        assert done.returncode == 0, done.stderr
    path = only_run(shared_project) / name
    whole = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_text(content)
        assert "[tiny] would run" in shared_requests("tiny", "--dry-run").stdout
        if content == "{":
            again = shared_project.run("lib.run", "tiny")
            assert (
                "[tiny] damaged, so it is made again: evidence.json: the file: Invalid JSON" in again.stdout
            )
            assert "[tiny] complete · " in again.stdout
            whole = path.read_bytes()
    finally:
        path.write_bytes(whole)
    assert "[tiny] complete" in shared_requests("tiny", "--dry-run").stdout


def test_text_is_used_and_kept_as_it_is(project):
    page = project.root / "notebooks/tiny.md"
    line = 'labels: list[str] = ["a"]  # of arms\n'
    text = page.read_text().replace("crash: bool", f"{line}crash: bool")
    page.write_text(text.replace("if crash:", "record.log.info(ascii(labels))\nif crash:"))
    labels = [" ", "tab\t", "\r", "\0", '"""', "back\\slash", "{x}", "\u2028", "🙂"]
    done = project.run("lib.run", "tiny", "-p", "labels", json.dumps(labels))
    assert done.returncode == 0, done.stderr
    folder = only_run(project)
    assert Evidence.load(folder / "evidence.json").parameters["labels"] == labels
    assert ascii(labels) in (folder / "log.txt").read_text()


def test_a_clock_that_is_set_back_while_it_runs(project):
    project.write("lib/late.py", CLOCK)
    done = project.run("lib.late")
    assert done.returncode == 0, done.stderr
    sections = Evidence.load(only_run(project) / "evidence.json").provenance.sections
    assert all(0 <= seconds < 300 for seconds in sections.values()), sections


CLOCK = """
import datetime, sys
import lib.run
from papermill.engines import NotebookExecutionManager
day = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
def back(self):
    global day
    day -= datetime.timedelta(hours=3)
    return day
NotebookExecutionManager.now = back
sys.exit(lib.run.main(["tiny"]))
"""


def test_a_folder_with_another_run_is_not_touched(project, request_run):
    assert request_run("tiny", "--out", "mine").returncode == 0
    before = (project.root / "mine" / "evidence.json").read_bytes()
    other = request_run("tiny", "-p", "value", "5", "--out", "mine")
    assert other.returncode == 2
    assert "holds another run: tiny at book" in other.stderr and "choose another --out" in other.stderr
    assert (project.root / "mine" / "evidence.json").read_bytes() == before
    assert "already complete" in request_run("tiny", "--out", "mine").stdout


def test_a_folder_that_was_taken_meanwhile_is_not_touched(project):
    """The other run's files appear while this one waits for its lock."""
    folder = project.root / "mine"
    folder.mkdir()
    with FileLock(folder / ".lock"):
        process = project.start("lib.run", "tiny", "--out", "mine")
        assert "waiting for the process" in process.stdout.readline()
        other = {"chapter": "tiny", "scale": "book", "fingerprint": 64 * "0", "commit": None}
        project.write("mine/parameters.json", json.dumps(other))
        project.write("mine/evidence.json", "theirs")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "holds another run: tiny at book, 000000000000, commit unknown" in err
    assert (folder / "evidence.json").read_text() == "theirs"


def test_two_processes_make_one_run(project):
    first = project.start("lib.run", "tiny", TINY_PAUSE="second")
    wait_for(lambda: started(project))
    second = project.start("lib.run", "tiny")
    assert "waiting for the process" in second.stdout.readline()
    project.write("second", "waits")
    first.communicate()
    assert "already complete" in second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)


FULL = """
import errno, os, sys
import lib.ledger.evidence, lib.run
import papermill.iorw
def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
{where} = full
sys.exit(lib.run.main(["tiny"]))
"""


@pytest.mark.parametrize("where", ["papermill.iorw.LocalHandler.write", "lib.ledger.evidence.Evidence.save"])
def test_a_disk_that_is_full_at_the_first_or_the_last_write(project, where):
    project.write("lib/full.py", FULL.format(where=where))
    done = project.run("lib.full")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "No space left on device" in done.stderr
    left = {path.name for path in only_run(project).iterdir()}
    assert not left & {"evidence.json", "notebook.partial.ipynb"}
    assert not any(name.endswith(".tmp") for name in left)
