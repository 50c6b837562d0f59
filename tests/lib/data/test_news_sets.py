"""News logs by name: format-true folders of MIND and EB-NeRD, and what is missing in them."""

from datetime import UTC, datetime

import numpy as np
import pytest

from lib.data.dataset import DataUnavailable, UnexpectedFormat
from lib.data.news_context import ContextFeatures
from lib.data.news_sets import FOLDERS, load_news
from tests.news_files import write_eb_nerd, write_mind


@pytest.fixture(params=FOLDERS)
def dataset(request, tmp_path):
    """A set by its name, whose folders are in `tmp_path`."""
    name = FOLDERS[request.param][0]
    if request.param.startswith("mind"):
        write_mind(tmp_path, name.removesuffix("_train"))
    else:
        write_eb_nerd(tmp_path, name.removesuffix("/train"))
    return request.param


def test_both_parts_on_one_axis(dataset, tmp_path):
    news = load_news(dataset, tmp_path, min_word_count=1)
    train, test = news.log.between(0, news.test), news.log.between(news.test, len(news.log))
    assert (news.name, len(train), len(test)) == (dataset, 240, 80)
    assert len(news.skipped) == (4 if "mind" in dataset else 5)
    assert not any(report.count for report in news.skipped)
    begin = datetime(2019, 11, 15, tzinfo=UTC) if "mind" in dataset else datetime(2023, 5, 25, 5, tzinfo=UTC)
    assert train.time[-1] < begin.timestamp() <= test.time[0]
    assert np.isin(test.user, train.user).all() and news.log.user.max() == 25
    assert test.history_begin.min() >= train.history_end.max(), "histories stay with their part"
    assert (test.recent_history(np.arange(80), 5) > 0).any()
    shown = ContextFeatures.of(news.log).shown[news.log.offsets[news.test] :]
    assert shown.sum() > ContextFeatures.of(test).shown.sum(), "the training is known at the test"
    assert all(path.is_file() for path in news.files(tmp_path)) and "not to be passed on" in news.licence


def test_rare_words_have_no_number(dataset, tmp_path):
    every, common = (load_news(dataset, tmp_path, min_word_count=count).log.articles for count in (1, 20))
    assert set(common.words) < set(every.words) and {"the", "police"} < set(common.words)
    assert load_news(dataset, tmp_path, min_word_count=10**6).log.articles.words == ()


def test_damaged_rows_are_told(tmp_path):
    write_mind(tmp_path)
    with (tmp_path / "MINDsmall_dev/behaviors.tsv").open("a") as file:
        file.write("81\tU1\t11/15/2019 9:00:00 AM\t\tN1-1 N999-0\n")
    news = load_news("mind-small", tmp_path)
    assert str(news.skipped[-1]) == "behaviors.tsv: 1 of 81 lines skipped (line 81: no article 'N999')"


@pytest.mark.parametrize("lost", ["MINDsmall_train/news.tsv", "MINDsmall_dev/behaviors.tsv"])
def test_what_is_missing_is_named(tmp_path, lost):
    write_mind(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(DataUnavailable, match=f"mind-small: no .*{lost}; its terms forbid") as caught:
        load_news("mind-small", tmp_path)
    message = str(caught.value)
    assert message.isprintable() and "it has MINDsmall_train and MINDsmall_dev" in message


def test_wrong_sets_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of mind-small, mind-large, .* got 'mind'"):
        load_news("mind", tmp_path)
    with pytest.raises(DataUnavailable, match="eb-nerd-large: no .*ebnerd_large/articles.parquet"):
        load_news("eb-nerd-large", tmp_path)
    write_eb_nerd(tmp_path)
    behaviors = tmp_path / "ebnerd_small/validation/behaviors.parquet"
    behaviors.write_bytes(behaviors.read_bytes()[:-10])
    with pytest.raises(UnexpectedFormat, match=r"validation/behaviors.parquet .*a part of a file"):
        load_news("eb-nerd-small", tmp_path)
