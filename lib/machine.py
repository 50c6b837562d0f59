"""This machine, as a result should name it: its processor, and how much memory a process took."""

from __future__ import annotations

import platform
import re
import resource
import sys
from pathlib import Path


def processor_name() -> str:
    """Model of the processor, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (
        name := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    ):
        return name[1].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux's own high-water mark where there is one: ``ru_maxrss`` starts from the parent's.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (mark := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return 1024 * int(mark[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
