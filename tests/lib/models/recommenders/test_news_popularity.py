"""Contextual scores: what they are beside a content model, by hand and by what must change nothing."""

import pytest
import torch
from torch import nn

from lib.models.recommenders.news import NRMS
from lib.models.recommenders.news_popularity import ContextualScorer, DeepContext, PPRec, WithContext
from tests.lib.models.recommenders.test_news import BATCH, small

CONTEXT = {
    "context": torch.tensor([[[0, 1], [2, 1]]]),
    "ctr": torch.tensor([[0.1, 0.4]], dtype=torch.float64),
    "history_ctr": torch.tensor([[0.0, 0.25, 1.0]], dtype=torch.float64),
    "age": torch.tensor([[0.0, 3.0]], dtype=torch.float64),
}
FULL = BATCH | CONTEXT


def scorer() -> ContextualScorer:
    torch.manual_seed(1)
    return ContextualScorer([3, 2], embedding_size=2, hidden_size=3).double()


def pp_rec(**options) -> PPRec:
    torch.manual_seed(2)
    return PPRec(small("NRMS"), small("NRMS"), 6, num_heads=2, hidden_sizes=(5, 4), **options).double().eval()


def test_the_contextual_score_by_hand():
    network = scorer()
    first, second = (table.weight for table in network.embeddings)
    for column, (a, b) in enumerate([(0, 1), (2, 1)]):
        hidden = torch.relu(network.hidden(torch.cat([first[a], second[b]])))
        assert torch.allclose(network(FULL)[0, column], network.output(hidden)[0])
    missing = FULL | {"candidates": torch.tensor([[0, -1]])}
    assert torch.isneginf(network(missing)[0, 1]) and torch.isfinite(network.loss(missing))


def test_only_the_columns_asked_for_are_read():
    torch.manual_seed(1)
    network = ContextualScorer([3, 2], columns=[1], embedding_size=2, hidden_size=3).double()
    changed = FULL | {"context": CONTEXT["context"].flip(1) * torch.tensor([1, 0]) + torch.tensor([0, 1])}
    assert torch.equal(network(changed), network(FULL)), "the first column"
    assert not torch.equal(network(FULL | {"context": CONTEXT["context"] * 0}), network(FULL))
    assert len(network.embeddings) == 1 and network.embeddings[0].num_embeddings == 2


@pytest.mark.parametrize("name", ["NRMS", "NAML", "LSTUR"])
def test_the_module_adds_and_changes_nothing_else(name):
    content, context = small(name), scorer()
    both = WithContext(content, context)
    assert torch.allclose(both(FULL), content(FULL) + context(FULL))
    nn.init.zeros_(context.output.weight)
    nn.init.zeros_(context.output.bias)
    assert torch.equal(both(FULL), content(FULL)), "no output weights: the content model"
    nn.init.constant_(context.output.bias, 3.0)
    assert torch.allclose(both.loss(FULL), content.loss(FULL)), "a constant: the same ranking and loss"
    both.loss(FULL).backward()
    grads = [p.grad.clone() for p in content.parameters() if p.grad is not None]
    content.zero_grad()
    content.loss(FULL).backward()
    alone = [p.grad for p in content.parameters() if p.grad is not None]
    assert all(torch.allclose(one, other) for one, other in zip(grads, alone, strict=True))


def test_pp_rec_by_hand():
    network = pp_rec()
    news, own = network.encoder.encode_news(FULL), network.popularity_encoder.encode_news(FULL)
    attended = network.user_self_attention(news[[3, 1, 0]][None], torch.ones(1, 3, dtype=torch.bool))[0]
    levels = network.ctr_embedding(torch.tensor([0, 50, 199]))
    weights = torch.softmax(network.pooling(torch.cat([attended, levels], 1))[:, 0], 0)
    user = weights @ attended
    share = torch.sigmoid(network.personal_gate(user))
    for column, (article, age, ctr) in enumerate([(0, 0, 0.1), (2, 1, 0.4)]):
        recency = network.recency_embedding.weight[age]
        gate = torch.sigmoid(network.popularity_gate(torch.cat([own[article], recency])))
        content, recent = network.content_popularity(own[article]), network.recency_popularity(recency)
        popularity = (1 - gate) * content + gate * recent
        expected = share * (user @ news[article]) + (1 - share) * (network.ctr_weight * ctr + popularity)
        assert torch.allclose(network(FULL)[0, column], expected)
    assert network.ctr_weight == 19 and network.content_popularity[-1].bias is None


def test_pp_rec_where_nothing_was_clicked_and_what_is_old():
    network = pp_rec(recency_levels=2)
    nobody = FULL | {"history": torch.full((1, 3), -1)}
    scores = network(nobody)
    share = torch.sigmoid(network.personal_gate(torch.zeros(6, dtype=torch.float64)))
    popular = network.popularity_encoder.encode_news(nobody)
    expected = (1 - share) * (19 * CONTEXT["ctr"] + network.popularity(popular, nobody))
    assert torch.allclose(scores, expected), "popularity alone"
    old = FULL | {"age": torch.tensor([[2.0, 1e6]], dtype=torch.float64)}
    level_1 = FULL | {"age": torch.tensor([[2.0, 3.0]], dtype=torch.float64)}
    assert torch.equal(network(old), network(level_1)), "ages beyond the table are the oldest"
    padded = FULL | {
        "history": torch.tensor([[3, 1, 0, -1]]),
        "history_ctr": torch.cat([CONTEXT["history_ctr"], torch.ones(1, 1)], 1),
        "candidates": torch.tensor([[0, -1]]),
    }
    assert torch.allclose(network(padded)[0, 0], network(FULL)[0, 0]) and torch.isneginf(
        network(padded)[0, 1]
    )
    network.train().loss(padded).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_number_of_heads_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="num_heads must divide 6, the length of an article's vector, got 4"):
        PPRec(NRMS(3), NRMS(3), 6, num_heads=4)


@pytest.mark.parametrize("fusion", ["article", "gate", "network"])
def test_deeper_uses_are_their_formula_and_none_other(fusion):
    """By hand for one user and candidate, and another fusion gives other scores."""
    content, context = small("NRMS"), scorer()
    network = DeepContext(content, context, 6, fusion=fusion).double().eval()
    news = network.encode_news(FULL)
    user, candidates = content.represent(news, FULL)
    u, n, e = user[0], candidates[0, 0], context.embed(FULL["context"])[0, 0]
    expected = {
        "article": lambda: u @ (network.network.weight @ torch.cat([n, e]) + network.network.bias),
        "gate": lambda: (
            torch.sigmoid(network.network(u)) * (u @ n)
            + (1 - torch.sigmoid(network.network(u))) * context(FULL)[0, 0]
        ),
        "network": lambda: network.network(torch.cat([u, n, u * n, e])),
    }[fusion]()
    assert network(FULL)[0, 0].item() == pytest.approx(expected.item(), abs=1e-12)
    assert network(FULL)[0, 0].item() != pytest.approx((u @ n + context(FULL)[0, 0]).item(), abs=1e-4)


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ValueError, match="fusion must be one of article, gate, network, got 'mean'"):
        DeepContext(small("NRMS"), scorer(), 6, fusion="mean")
