"""One run of one chapter, and many: parameters, identity, execution, the batch."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    sys.exit("Linux or macOS is needed; on Windows its subsystem for Linux (WSL) will do")
