"""Real news logs that the reader has: training and validation part as one, in the order of time.

None of these sets may be passed on: their publishers ask for acceptance of their terms. MIND (Wu et al., ACL
2020; Microsoft Research licence, non-commercial) as read by `lib.data.mind`, EB-NeRD (Ekstra Bladet, for
research) by `lib.data.eb_nerd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lib.data import eb_nerd, mind
from lib.data.dataset import DataUnavailable
from lib.data.news import Articles, ImpressionLog
from lib.data.news_rows import Skipped

#: Folders of the training and the validation part in the data folder, as the sets are unpacked.
FOLDERS = {
    "mind-small": ("MINDsmall_train", "MINDsmall_dev"),
    "mind-large": ("MINDlarge_train", "MINDlarge_dev"),
    "eb-nerd-small": ("ebnerd_small/train", "ebnerd_small/validation"),
    "eb-nerd-large": ("ebnerd_large/train", "ebnerd_large/validation"),
}

FILES = {
    "mind": ("news.tsv", "behaviors.tsv"),
    "eb-nerd": ("../articles.parquet", "behaviors.parquet", "history.parquet"),
}


@dataclass(frozen=True)
class NewsSet:
    """A set as it was read.

    Attributes
    ----------
    name : str
        One of `FOLDERS`.
    log : ImpressionLog
    test : int
        Number of the first impression of its validation part.
    skipped : tuple of Skipped
        What was left out, file by file.
    paths : tuple of Path
        Its files.
    """

    name: str
    log: ImpressionLog
    test: int
    skipped: tuple[Skipped, ...]
    paths: tuple[Path, ...]
    licence = "its publisher's terms for research; not to be passed on"

    def files(self, data_dir: str | Path | None = None) -> tuple[Path, ...]:
        """`paths`, wherever other data are."""
        return self.paths


def load_news(dataset: str, data_dir: str | Path, *, min_word_count: int = 2) -> NewsSet:
    """Read a set from the reader's files.

    Parameters
    ----------
    dataset : str
        One of `FOLDERS`.
    data_dir : path
        Where its folders lie. Unlike elsewhere, a relative path counts from the working directory, and ``~``
        is not expanded.
    min_word_count : int
        Rarer words are left out: of MIND counted over the articles of both parts (there is no time of
        publication), of EB-NeRD over those published before the validation's first impression.

    Raises
    ------
    ValueError
        An unknown set.
    DataUnavailable
        A file is not there; the message says which, and whom to ask for it.
    UnexpectedFormat
        As the readers.
    """
    if dataset not in FOLDERS:
        raise ValueError(f"dataset must be one of {', '.join(FOLDERS)}, got {dataset!r}")
    kind = dataset.rpartition("-")[0]
    folders = [Path(data_dir) / name for name in FOLDERS[dataset]]
    wanted = dict.fromkeys((folder / name).resolve() for folder in folders for name in FILES[kind])
    if missing := [path for path in wanted if not path.is_file()]:
        raise DataUnavailable(
            f"{dataset}: no {missing[0]}; its terms forbid passing it on: ask its publisher and unpack it "
            f"to {data_dir}, so that it has {' and '.join(FOLDERS[dataset])}"
        )
    read = _mind if kind == "mind" else _eb_nerd
    parts, skipped = read(folders, min_word_count)
    return NewsSet(dataset, parts[0].followed_by(parts[1]), len(parts[0]), skipped, tuple(wanted))


def _mind(folders: list[Path], min_word_count: int) -> tuple[list[ImpressionLog], tuple[Skipped, ...]]:
    articles, skipped = mind.read_news(
        [folder / "news.tsv" for folder in folders], min_word_count=min_word_count
    )
    users: dict[str, int] = {}
    parts = []
    for folder in folders:
        log, report = mind.read_behaviors(folder / "behaviors.tsv", articles, users)
        parts.append(log)
        skipped = (*skipped, report)
    return parts, skipped


def _eb_nerd(folders: list[Path], min_word_count: int) -> tuple[list[ImpressionLog], tuple[Skipped, ...]]:
    articles: Articles
    articles, report = eb_nerd.read_articles(
        folders[0].parent / "articles.parquet",
        min_word_count=min_word_count,
        words_until=eb_nerd.first_impression(folders[1] / "behaviors.parquet"),
    )
    users: dict[int, int] = {}
    parts, skipped = [], (report,)
    for folder in folders:
        log, reports = eb_nerd.read_impressions(folder, articles, users)
        parts.append(log)
        skipped = (*skipped, *reports)
    return parts, skipped
