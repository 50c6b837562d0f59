"""Execution of one chapter in a kernel of its own, by papermill, watched from outside.

Here: the kernel's environment, the lines on the terminal while it runs, and what is told of a cell that
failed. Not here: which parameters, which folder and what is kept (`lib.runs.runner`).
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import ERROR_MARKER_TAG, execute_notebook
from papermill.iorw import write_ipynb
from traitlets import default
from traitlets.config import Config
from zmq import ZMQError

from lib.listing import ESCAPES, one_line

INJECTED = "injected-parameters"
QUIET_SECONDS = 10.0  # a section that lasts longer than this says again where it is
ECHO_SECONDS = 5.0  # between two lines of the chapter's log on the terminal
STAMP = re.compile(rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ? \S+ ")  # how a line of that log begins


class ChapterFailed(Exception):
    """The chapter ran and failed; the message is one line that says where and with which error.

    Attributes
    ----------
    cell : str
        Which cell failed; empty where none did.
    traceback : str
        The whole error, without colours; may be empty.
    """

    def __init__(self, message: str, traceback: str = "", *, cell: str = ""):
        super().__init__(f"{cell}: {message}" if cell else message)
        self.cell, self.traceback = cell, traceback


# Which instructions torch's libraries use, in which precision: for a process that asks for it, not for a run.
STEERING = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE")


def kernel_environment(root: Path, threads: int, private: str) -> dict[str, str]:
    """Environment of the kernel: this process's own, less what would change results behind its back.

    ``PYTHONPATH`` starts with the repository, so that the chapter imports the ``lib`` that its fingerprint
    names. A user's own start-up files and settings of matplotlib are left out: what IPython and matplotlib
    look for and write at home lies in a `private` folder, also where there is no home.
    """
    number = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **{name: value for name, value in os.environ.items() if name not in (*STEERING, "PYTHONSTARTUP")},
        **dict.fromkeys(names, number),
        "COMPANION_RUN": "1",
        "IPYTHONDIR": private,
        "MPLCONFIGDIR": private,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # or the debugger warns of frozen modules at every start
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": path,
        "TZ": "UTC",
    }


class _ThisPython(KernelSpecManager):
    """Knows one kernel, of the Python that runs this, whatever kernels are installed for whom."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
            metadata={"kernel_provisioner": {"provisioner_name": "local-provisioner"}},
        )


class _KernelManager(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return _ThisPython()


class _Client(PapermillNotebookClient):
    """Papermill's client, to which a kernel that does not start is a failure of one line."""

    def start_new_kernel(self, **options: Any) -> None:
        try:
            super().start_new_kernel(**options)
        except (OSError, ZMQError) as error:
            raise ChapterFailed(f"the kernel did not start: {one_line(error)}") from None

    def start_new_kernel_client(self) -> Any:
        try:
            return super().start_new_kernel_client()
        except (RuntimeError, OSError, ZMQError) as error:
            slow = f"in {self.startup_timeout} seconds" in str(error)
            cure = "; --start-timeout gives it longer" if slow else ""
            raise ChapterFailed(f"the kernel did not start: {one_line(error)}{cure}") from None


@contextmanager
def _private_folder(output: Path) -> Iterator[Path]:
    """A folder for the kernel of the run that writes `output`; what a killed one left is removed first."""
    prefix = f"lib-run-{hashlib.sha256(os.fsencode(output)).hexdigest()[:12]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as private:
        yield Path(private)


def _die_with(parent: int, prctl: Callable[[int, int], int] | None) -> None:
    """In the kernel, before it is one: end when `parent` ends, however that ends (Linux)."""
    if prctl:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def _save(notebook: NotebookNode, output: Path) -> None:
    """Write an `.ipynb` file, whole or not at all."""
    beside = output.with_name(f".{output.name}")
    try:
        write_ipynb(notebook, str(beside))
        beside.replace(output)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


class _Engine(NBClientEngine):
    """Papermill's engine with the kernel's environment, a callback at each cell's start, a steady clock."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man, kernel_name, *, output, root, threads, on_cell, on_error, log, start_timeout, **_
    ):
        cell_start, cell_complete = nb_man.cell_start, nb_man.cell_complete
        cell_exception = nb_man.cell_exception
        began = time.monotonic()

        def started(cell, cell_index=None, **keywords):
            nonlocal began
            began = time.monotonic()
            on_cell(nb_man.nb, cell_index)
            return cell_start(cell, cell_index=cell_index, **keywords)

        def completed(cell, cell_index=None, **keywords):
            cell_complete(cell, cell_index=cell_index, **keywords)
            # Papermill's own is by the clock on the wall, which may be set meanwhile.
            cell.metadata.papermill["duration"] = time.monotonic() - began

        def failed(cell, cell_index=None, **keywords):
            on_error(keywords["exception"])
            return cell_exception(cell, cell_index=cell_index, **keywords)

        def executed(cell_index, execute_reply, **_):
            asked = [payload.get("source") for payload in execute_reply["content"].get("payload", ())]
            if "ask_exit" in asked:  # the kernel would end in the next cell
                raise _failure(nb_man.nb, cell_index, "it ends the kernel (quit, exit)")

        nb_man.cell_start, nb_man.cell_complete, nb_man.cell_exception = started, completed, failed
        nb_man.save = lambda **_: _save(nb_man.nb, output)
        prctl = getattr(ctypes.CDLL(None), "prctl", None)
        with _private_folder(output) as private, log.open("ab") as said:
            # Sockets in a folder of our own: no ports, for which kernels that start together would race.
            # The name of a socket cannot be long, and some clusters' temporary folders are.
            transport = "ipc" if len(os.fsencode(private)) < 80 else "tcp"
            kernel = Config(
                KernelManager={"transport": transport, "connection_file": f"{private}/k.json"},
            )
            client = _Client(
                nb_man,
                config=kernel,
                kernel_manager_class=_KernelManager,
                kernel_name=kernel_name,
                startup_timeout=start_timeout,
                timeout=None,
                iopub_timeout=start_timeout,  # its outputs may come as late as the kernel itself
                # All that matters is on the disk by then, and a training step would outlast a polite request.
                shutdown_kernel="immediate",
                on_cell_executed=executed,
            )
            return client.execute(
                env=kernel_environment(root, threads, str(private)),
                stdout=said,  # what does not come through the notebook: of a Python that starts, or dies
                stderr=said,
                preexec_fn=partial(_die_with, os.getpid(), prctl),
            )


papermill_engines.register("companion", _Engine)


def position(cells: Sequence[NotebookNode], index: int) -> tuple[int, str]:
    """Where one of the cells of an executed notebook stands in the chapter's text.

    Returns
    -------
    number : int
        Which cell, from 1, not counting the one that papermill injected.
    heading : str
        The nearest section heading (``##``, else the title) above it.
    """
    number, heading = 0, ""
    for cell in cells[: index + 1]:
        number += INJECTED not in cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            headings = re.findall(r"^##? +(.+?) *#*$", cell.source, flags=re.MULTILINE)
            heading = headings[-1] if headings else heading
    return number, heading


def section_seconds(notebook: NotebookNode) -> dict[str, float]:
    """Wall time of each section of an executed notebook, in seconds, from papermill's time of each cell."""
    seconds: dict[str, float] = {}
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            heading = position(notebook.cells, index)[1]
            seconds[heading] = seconds.get(heading, 0.0) + (cell.metadata.papermill.get("duration") or 0.0)
    return {heading: round(value, 3) for heading, value in seconds.items()}


class Watch:
    """Says on the terminal what a chapter is doing: a line per section, and the latest of its log.

    Plain lines and no bar, so that a log file of a batch stays readable: of what the chapter logs the newest
    line, without its time stamp, and not more than one in ``ECHO_SECONDS``. All of it is in the log.

    Parameters
    ----------
    chapter : str
        Its name, with which each line begins.
    log : Path
        The file that the chapter's logger appends to; what it holds already is not repeated.
    say : callable
        Prints one line.
    """

    def __init__(self, chapter: str, log: Path, say: Callable[[str], None]):
        self.chapter, self.log, self.say = chapter, log, say
        self.began = self.last = time.monotonic()
        self.heading = ""
        self.read = log.stat().st_size if log.exists() else 0
        self.rest = b""
        self.newest = b""
        self.echoed = -ECHO_SECONDS
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _follow(self) -> None:
        while not self.done.wait(0.5):
            self._look()
            if time.monotonic() - self.echoed >= ECHO_SECONDS:
                self._echo()
        self._look()
        self._echo()

    def _look(self) -> None:
        """Read what the log has got since the last look."""
        if not self.log.exists():
            return
        with self.log.open("rb") as stream:
            stream.seek(self.read)
            text = self.rest + stream.read()
            self.read = stream.tell()
        *lines, self.rest = text.split(b"\n")
        self.newest = next((line for line in reversed(lines) if line.strip()), self.newest)

    def _echo(self) -> None:
        if self.newest:
            line = STAMP.sub(b"", self.newest).decode(errors="replace").rstrip()
            self.say(f"[{self.chapter}]   {line}")
            self.newest, self.echoed = b"", time.monotonic()

    def cell(self, notebook: NotebookNode, index: int) -> None:
        """Note that a cell starts; a new section, or a long silence, is worth a line."""
        number, heading = position(notebook.cells, index)
        now = time.monotonic()
        if notebook.cells[index].cell_type != "code":
            return
        if heading != self.heading or now - self.last > QUIET_SECONDS:
            total, _ = position(notebook.cells, len(notebook.cells) - 1)
            self.say(f"[{self.chapter}] {number}/{total} {heading} · {now - self.began:.0f} s")
            self.heading, self.last = heading, now


def execute(
    notebook: NotebookNode,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    root: Path,
    threads: int,
    watch: Watch,
    start_timeout: int = 300,
) -> NotebookNode:
    """Execute a chapter with ``parameters`` and save it, cell by cell, as ``output``.

    Parameters
    ----------
    notebook : NotebookNode
        The chapter; it is not changed.
    output : Path
        The ``.ipynb`` file.
    parameters : mapping of str to object
        All parameters as used.
    root : Path
        The repository, which is the kernel's working directory.
    threads : int
        Threads of one numerical operation, at least 1.
    watch : Watch
        Told of each cell; what the kernel says outside of cells goes to its log.
    start_timeout : int
        Seconds that the kernel may take to start.

    Returns
    -------
    NotebookNode
        As executed, without an error in any output.

    Raises
    ------
    ChapterFailed
        A cell raised, kept an error in its output, or the kernel died in it or did not start.
    OSError
        ``output`` cannot be written.
    """
    reached, raised = 0, None

    def on_error(error: CellExecutionError) -> None:
        nonlocal raised
        raised = error

    def on_cell(executing: NotebookNode, index: int) -> None:
        nonlocal reached, notebook
        reached, notebook = index, executing
        watch.cell(executing, index)

    try:
        executed = execute_notebook(
            copy.deepcopy(notebook),
            None,  # the engine saves
            parameters=dict(parameters),
            engine_name="companion",
            kernel_name="python3",
            cwd=root,
            progress_bar=False,
            output=output,
            root=root,
            threads=threads,
            on_cell=on_cell,
            on_error=on_error,
            log=watch.log,
            start_timeout=start_timeout,
        )
    except PapermillExecutionError as error:
        # Papermill goes by outputs, of cells that may raise too; a group of exceptions leaves none.
        index = error.cell_index if raised is None else reached
        found = error if raised is None else raised
        traceback = found.traceback if isinstance(found.traceback, str) else "\n".join(found.traceback)
        said = one_line(found.evalue) or "without a message"
        raise _failure(notebook, index, f"{found.ename}: {said}", ESCAPES.sub("", traceback)) from None
    except (DeadKernelError, CellTimeoutError) as error:
        died = "the kernel died (out of memory?)"
        said = died if isinstance(error, DeadKernelError) else one_line(error)
        raise _failure(notebook, reached, said) from None
    for index, cell in enumerate(executed.cells):
        for found in cell.get("outputs", []):
            if found.output_type == "error":
                raise _failure(executed, index, f"kept an error in its output: {found.ename}")
    return executed


def _failure(notebook: NotebookNode, index: int, error: str, traceback: str = "") -> ChapterFailed:
    cells = [cell for cell in notebook.cells if ERROR_MARKER_TAG not in cell.metadata.get("tags", [])]
    number, heading = position(cells, index)
    first = one_line(cells[index].source, 110)
    return ChapterFailed(error, traceback, cell=f"cell {number} (section {heading!r}, `{first}`)")
