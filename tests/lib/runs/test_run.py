"""`lib.run` through its real command line, in a project with one tiny chapter."""

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
    (["tiny", "-p", "run_dir", "x"], "parameter run_dir is set by --out"),
    (["tiny", "--threads", "0"], "--threads must be at least 1, got 0"),
    (["tiny", "--seeds", "1"], "unrecognized arguments: --seeds 1"),
    (["tiny", "--out", "lib"], "is not empty and holds no run"),
    (["tiny", "--out", "other"], "is not empty and holds no run"),
    (["tiny", "--out", "pyproject.toml"], "is a file"),
    ([], "which chapter?"),
]


def test_a_bad_request_is_one_line_and_writes_nothing(project, request_run):
    project.write("other/parameters.json", "[1, 2")  # somebody else's file of that name
    before = sorted(path for path in project.root.rglob("*") if path.suffix != ".pyc")
    for arguments, message in BAD_REQUESTS:
        done = request_run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert len(done.stderr.splitlines()) == 1, done.stderr
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
            assert len(err.splitlines()) == 1, err
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
    assert "seeds: list[int] = [1]\n    the seeds\n" in listed


def test_a_failing_cell_is_named_and_leaves_no_evidence(project):
    done = project.run("lib.run", "tiny", "-p", "crash", "true")
    assert done.returncode == 1
    folder = only_run(project)
    (line,) = done.stderr.splitlines()
    assert line.startswith("[tiny] failed in cell 6 (section 'Work', `if crash:`): last line")
    assert line.endswith(f"log {folder.relative_to(project.root)}/log.txt")
    assert not (folder / "evidence.json").exists() and not (folder / "notebook.ipynb").exists()
    partial = nbformat.read(folder / "notebook.partial.ipynb", as_version=4)
    assert any(out.output_type == "error" for cell in partial.cells for out in cell.get("outputs", []))
    assert "ValueError" in (folder / "log.txt").read_text()
    assert "\x1b" not in (folder / "log.txt").read_text()
    assert "cell 6" in (folder / "failed.txt").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("record.close()", "", "did not close its record"),
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
    process = project.start("lib.run", "tiny", TINY_PAUSE="60")
    wait_for(lambda: started(project))
    kernel = kernel_pid(project)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not alive(kernel))  # the kernel notices that it is alone
    folder = only_run(project)
    assert not (folder / "evidence.json").exists()
    again = project.run("lib.run", "tiny")
    assert again.returncode == 0, again.stderr
    assert "continues from the checkpoints" in again.stdout
    log = (folder / "log.txt").read_text()
    assert "step 0 was done" in log and "step 1" in log
    assert (folder / "evidence.json").exists() and not (folder / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_ends_its_kernel_and_keeps_checkpoints(project, number):
    process = project.start("lib.run", "tiny", TINY_PAUSE="60")
    wait_for(lambda: started(project))
    kernel = kernel_pid(project)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "[tiny] interrupted; the same command continues\n"
    assert not alive(kernel)
    folder = only_run(project)
    assert (folder / "checkpoints" / "0").exists() and not (folder / "evidence.json").exists()


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
