"""Made-up news logs in the real files of MIND, EB-NeRD and Adressa, with all columns and their types.

Clicks have no reason. EB-NeRD's columns are from memory of its public description.
"""

import io
import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY = 86_400
CATEGORIES = {"news": ["newsus", "newspolitics"], "sports": ["football_nfl", "golf"], "finance": ["markets"]}
WORDS = ["the", "a", "of", "to", "in", "police", "game", "market", "team", "city", "storm", "vote", "court"]


def _title(draw: np.random.Generator, words: int = 9) -> str:
    drawn = [str(word) for word in draw.choice(WORDS, words)] + [f"name{draw.integers(40)}"]
    return " ".join(drawn).capitalize()


def _stamp(seconds: int) -> str:
    """As MIND writes times: 11/9/2019 8:05:22 AM."""
    when = datetime.fromtimestamp(seconds, UTC)
    hour, half = when.hour % 12 or 12, "AM" if when.hour < 12 else "PM"
    return f"{when.month}/{when.day}/{when.year} {hour}:{when:%M:%S} {half}"


def _labels(draw: np.random.Generator, shown: int) -> np.ndarray:
    clicked = np.zeros(shown, bool)
    clicked[draw.choice(shown, draw.integers(1, 3), replace=False)] = True
    return clicked


def write_mind(
    data_dir: Path,
    name: str = "MINDsmall",
    *,
    articles: int = 80,
    users: int = 25,
    impressions: tuple[int, int] = (240, 80),
    shown: int = 12,
    seed: int = 0,
) -> None:
    """``<name>_train`` (2019-11-09 to -14) and ``<name>_dev`` (-15), unpacked; dev has articles of its own.

    Each has ``news.tsv`` with eight columns, ``behaviors.tsv`` and the embeddings of WikiData's entities.
    """
    draw = np.random.default_rng(seed)
    begin = int(datetime(2019, 11, 9, tzinfo=UTC).timestamp())
    lines = []
    for number in range(1, articles + 1):
        category = str(draw.choice(list(CATEGORIES)))
        title = _title(draw)
        entity = f"Q{draw.integers(1, 30)}"
        entities = [
            {
                "Label": 'A "quoted" name',
                "Type": "P",
                "WikidataId": entity,
                "Confidence": 1.0,
                "OccurrenceOffsets": [0],
                "SurfaceForms": [title.split()[0]],
            }
        ]
        abstract = _title(draw, 20) + "." if draw.random() < 0.95 else ""
        url = f"https://assets.msn.com/labs/mind/A{number:05}.html"
        fields = (category, str(draw.choice(CATEGORIES[category])), title, abstract, url)
        lines.append("\t".join((f"N{number}", *fields, json.dumps(entities), "[]")))
    known = articles * 4 // 5
    places = {"train": (lines[:known], known, 0, 6), "dev": (lines[known // 3 :], articles, 6, 7)}
    for (split, (news, last, first_day, last_day)), count in zip(places.items(), impressions, strict=True):
        folder = Path(data_dir) / f"{name}_{split}"
        folder.mkdir(parents=True)
        (folder / "news.tsv").write_text("\n".join(news) + "\n", encoding="utf-8")
        rows = []
        for number in range(1, count + 1):
            time = begin + int(draw.integers(first_day * DAY, last_day * DAY))
            user = int(draw.integers(1, users + 1))
            past = np.random.default_rng(user)  # a user's history is the same in all rows of a split
            earlier = past.integers(known // 3 + 1, known + 1, past.integers(0, 9))
            candidates = draw.choice(np.arange(known // 3 + 1, last + 1), shown, replace=False)
            pairs = zip(candidates, _labels(draw, shown), strict=True)
            labelled = " ".join(f"N{article}-{int(label)}" for article, label in pairs)
            history = " ".join(f"N{article}" for article in earlier)
            rows.append(f"{number}\tU{user}\t{_stamp(time)}\t{history}\t{labelled}")
        (folder / "behaviors.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        for file, prefix, entries in (("entity", "Q", 30), ("relation", "P", 5)):
            vectors = draw.normal(0, 0.1, (entries, 100))
            text = "".join(
                f"{prefix}{i}\t" + "\t".join(f"{x:.6f}" for x in row) + "\t\n"
                for i, row in enumerate(vectors, 1)
            )
            (folder / f"{file}_embedding.vec").write_text(text)


#: Types of EB-NeRD's columns.
LIST = pa.list_(pa.int32())
TIME = pa.timestamp("us")


def eb_nerd_tables(
    *,
    articles: int = 80,
    users: int = 25,
    impressions: tuple[int, int] = (240, 80),
    shown: int = 12,
    seed: int = 0,
) -> dict[str, pa.Table]:
    """Tables by their paths in a set's folder."""
    draw = np.random.default_rng(seed)
    begin = int(datetime(2023, 5, 18, 5, tzinfo=UTC).timestamp())
    ids = np.sort(draw.choice(np.arange(3_000_000, 9_800_000), articles, replace=False)).astype(np.int32)
    published = np.sort(draw.integers(begin - 30 * DAY, begin + 13 * DAY, articles))
    kinds = ["nyheder", "sport", "underholdning", "krimi"]
    kind = draw.integers(0, len(kinds), articles)
    future = draw.integers(1, 10**6, articles)
    tables = {
        "articles.parquet": pa.table(
            {
                "article_id": pa.array(ids, pa.int32()),
                "title": [_title(draw) for _ in ids],
                "subtitle": [_title(draw, 14) if draw.random() < 0.9 else None for _ in ids],
                "last_modified_time": pa.array((published + 3600) * 10**6, TIME),
                "premium": draw.random(articles) < 0.2,
                "body": [_title(draw, 60) for _ in ids],
                "published_time": pa.array(published * 10**6, TIME),
                "image_ids": pa.array(
                    [[1, 2] if i % 3 else None for i in range(articles)], pa.list_(pa.int64())
                ),
                "article_type": ["article_default"] * articles,
                "url": [f"https://ekstrabladet.dk/{i}" for i in ids],
                "ner_clusters": pa.array([["Søren Ærø"]] * articles, pa.list_(pa.string())),
                "entity_groups": pa.array([["PER"]] * articles, pa.list_(pa.string())),
                "topics": pa.array([["Kriminalitet"]] * articles, pa.list_(pa.string())),
                "category": pa.array(100 + kind, pa.int16()),
                "subcategory": pa.array([[200 + int(k)] if k else [] for k in kind], pa.list_(pa.int16())),
                "category_str": [kinds[k] for k in kind],
                "total_inviews": pa.array(future * 10, pa.int32()),
                "total_pageviews": pa.array(future, pa.int32()),
                "total_read_time": pa.array(future * 30.0, pa.float32()),
                "sentiment_score": pa.array(draw.random(articles), pa.float32()),
                "sentiment_label": ["Neutral"] * articles,
            }
        )
    }
    names = np.sort(draw.choice(np.arange(10_000, 2_700_000), users, replace=False))
    for week, (split, count) in enumerate(zip(("train", "validation"), impressions, strict=True)):
        start = begin + week * 7 * DAY
        time = draw.integers(start, start + 7 * DAY, count)  # not in order
        alive = np.searchsorted(published, time)
        views = [draw.choice(ids[max(0, n - 4 * shown) : n], shown, replace=False) for n in alive]
        clicks = [view[_labels(draw, shown)] for view in views]
        missing = pa.nulls(count, pa.float32())
        tables[f"{split}/behaviors.parquet"] = pa.table(
            {
                "impression_id": pa.array(np.arange(count) + 1000 * week, pa.uint32()),
                "article_id": pa.nulls(count, pa.int32()),
                "impression_time": pa.array(time * 10**6 + 250_000, TIME),
                "read_time": pa.array(draw.random(count) * 60, pa.float32()),
                "scroll_percentage": missing,
                "device_type": pa.array(draw.integers(1, 4, count), pa.int8()),
                "article_ids_inview": pa.array(views, LIST),
                "article_ids_clicked": pa.array(clicks, LIST),
                "user_id": pa.array(draw.choice(names, count), pa.uint32()),
                "is_sso_user": pa.array([False] * count),
                "gender": pa.nulls(count, pa.int8()),
                "postcode": pa.nulls(count, pa.int8()),
                "age": pa.nulls(count, pa.int8()),
                "is_subscriber": pa.array([False] * count),
                "session_id": pa.array(np.arange(count), pa.uint32()),
                "next_read_time": missing,
                "next_scroll_percentage": missing,
            }
        )
        lengths = draw.integers(5, 12, users)
        moments = [np.sort(draw.integers(start - 21 * DAY, start, n)) * 10**6 for n in lengths]
        stamps = [moment.astype("datetime64[us]") for moment in moments]
        read = [draw.choice(ids[: max(8, np.searchsorted(published, start))], n) for n in lengths]
        numbers = [[1.0] * n for n in lengths]
        tables[f"{split}/history.parquet"] = pa.table(
            {
                "user_id": pa.array(names, pa.uint32()),
                "impression_time_fixed": pa.array(stamps, pa.list_(TIME)),
                "scroll_percentage_fixed": pa.array(numbers, pa.list_(pa.float32())),
                "article_id_fixed": pa.array(read, LIST),
                "read_time_fixed": pa.array(numbers, pa.list_(pa.float32())),
            }
        )
    vectors = draw.normal(size=(articles, 300)).astype(np.float32)
    tables["document_vector.parquet"] = pa.table(
        {
            "article_id": pa.array(ids, pa.int32()),
            "document_vector": pa.array(list(vectors), pa.list_(pa.float32())),
        }
    )
    return tables


def write_eb_nerd(data_dir: Path, name: str = "ebnerd_small", *, rows: int = 50, **sizes: object) -> None:
    """The folder of a set, as `eb_nerd_tables`; a row group has ``rows``, so that files have several."""
    for path, table in eb_nerd_tables(**sizes).items():
        file = Path(data_dir) / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, row_group_size=rows)


def adressa_lines(*, days: int = 4, clicks: int = 150, articles: int = 40, users: int = 12, seed: int = 0):
    """The lines of each day's file, by its name; front pages and events without an article among them."""
    draw = np.random.default_rng(seed)
    begin = int(datetime(2017, 1, 1, tzinfo=UTC).timestamp())
    texts = [
        (_title(draw), str(draw.choice(["nyheter|trondheim", "sport|fotball|rbk", "100sport"])))
        for _ in range(articles)
    ]
    files = {}
    for day in range(days):
        lines = []
        around = np.arange(articles)[day * articles // (days + 1) : (day + 2) * articles // (days + 1)]
        for _ in range(clicks):
            time = begin + day * DAY + int(draw.integers(DAY))
            event = {
                "eventId": int(draw.integers(10**9)),
                "userId": f"cx:{draw.integers(users)}",
                "time": time,
            }
            event |= {
                "url": "http://adressa.no",
                "deviceType": "Mobile",
                "city": "trondheim",
                "canonicalUrl": None,
            }
            if draw.random() < 0.8:
                article = int(draw.choice(around))
                title, category = texts[article]
                event |= {"id": f"{article:040x}", "title": title, "category1": category, "activeTime": 12}
            lines.append(json.dumps(event, ensure_ascii=False))
        files[f"{20170101 + day}"] = lines
    return files


def write_adressa(folder: Path, **sizes: int) -> Path:
    """A folder with a file a day."""
    folder.mkdir(parents=True)
    for name, lines in adressa_lines(**sizes).items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def pack_adressa(path: Path, **sizes: int) -> Path:
    """``one_week.tar.gz`` with the same files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, lines in adressa_lines(**sizes).items():
            content = ("\n".join(lines) + "\n").encode()
            member = tarfile.TarInfo(f"one_week/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
