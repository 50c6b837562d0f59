"""The paper scale of contextual features, dry: files of MIND and EB-NeRD, models of full width, two steps."""

from __future__ import annotations

import pytest

from lib.chapter import per_unit
from lib.data.news_sets import load_news
from lib.experiments.news_context import TRAINED, NewsComparison, Split
from lib.experiments.news_context_logs import news_scores
from lib.experiments.news_context_worlds import by_impression
from lib.ledger.evidence import own_part
from lib.ledger.schema import load_ledger
from lib.ledger.verdicts import judge
from lib.runs.request import resolve
from tests.news_files import write_eb_nerd, write_mind

SIZES = ("word_size", "num_heads", "head_size", "query_size", "dropout", "history_length", "negatives")
FEATURES = ("delay_hours", "window_hours", "alpha", "num_buckets")
FEW = {"batch_size": 8, "learning_rate": 1e-4, "steps": 2, "evaluate_every": 2, "patience": 2}


@pytest.fixture(scope="module")
def asked() -> dict:
    return resolve("news_context", "paper").parameters


@pytest.fixture(scope="module")
def settings(asked) -> dict:
    return {name: asked[name] for name in (*SIZES, *FEATURES)} | FEW


def test_the_scale_has_the_sizes_of_the_public_programs(asked):
    expected = {
        "dataset": "mind-small",
        "word_size": 300,
        "num_heads": 20,
        "head_size": 20,
        "query_size": 200,
    }
    expected |= {
        "history_length": 50,
        "negatives": 4,
        "dropout": 0.2,
        "learning_rate": 1e-4,
        "device": "cuda",
    }
    assert {name: asked[name] for name in expected} == expected


@pytest.mark.parametrize("dataset", ["mind-small", "eb-nerd-small"])
def test_all_arms_from_files_to_verdicts(dataset, tmp_path, settings):
    if dataset == "mind-small":
        write_mind(tmp_path)
    else:
        write_eb_nerd(tmp_path)
    vectors = tmp_path / "glove.txt"
    vectors.write_text("\n".join(f"{word} {' '.join(['0.1'] * 300)}" for word in ("the", "police", "of")))
    news = load_news(dataset, tmp_path)
    found = news_scores(news, [0], settings, str(vectors), lambda name: None)
    handed = by_impression(found, {"AUC": "AUC (news)", "nDCG@10": "nDCG@10 (news)"})
    assert set(TRAINED) <= set(handed["AUC (news)"])
    assert handed["AUC (news)"]["NRMS"].shape == (1, len(news.log) - news.test)
    for claim in ("N1", "N2", "N3"):
        rule = load_ledger("news_context")[claim]
        measured = own_part(rule, per_unit.means(handed))
        verdict = judge(rule, measured, "paper", None, per_unit.spreads(rule, handed)).verdict
        assert verdict in ("inconclusive", "not tested"), claim


def test_models_have_their_published_sizes(tmp_path, settings):
    """A sentence's worth of words beside: 400 numbers an article, 20 heads of 20."""
    write_mind(tmp_path)
    news = load_news("mind-small", tmp_path)
    split = Split(20, news.test - 20, news.test, len(news.log))
    comparison = NewsComparison(news.log, split, **settings)
    words = 300 * (len(news.log.articles.words) + 1)
    attention = 200 * 400 + 200 + 200
    expected = 3 * (300 * 400 + 400) + 3 * (400 * 400 + 400) + 2 * attention
    model = comparison.content_model("NRMS")
    assert sum(p.numel() for p in model.parameters()) - words == expected
