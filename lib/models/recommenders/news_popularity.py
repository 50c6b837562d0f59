"""Contextual features in news recommenders: a simple module, deeper uses, and PP-Rec.

The simple module (`ContextualScorer`, `WithContext`) is ours, after the abstract of Cho et al. 2021 (arXiv
2112.14370), which says that theirs is simple and no more; so are the deeper uses of the same features that
it is compared with (`DeepContext`). PP-Rec: Qi et al., "PP-Rec: News Recommendation
with Personalized User Interest and Time-aware News Popularity", ACL 2021 (arXiv 2106.01300), after its
program (github.com/taoqi98/PP-Rec, MIT licence).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.models.recommenders.dot_product_attention import blocked_logit
from lib.models.recommenders.news import MultiHeadSelfAttention, NewsRecommender
from lib.models.recommenders.news_scorer import Batch, NewsScorer


class ContextualScorer(NewsScorer):
    """Scores from contextual features alone: no user, no text. O(1) per candidate.

    Each feature's bucket has an embedding; a network with one hidden layer makes a number of them.
    Reads ``context`` (B, C, F) int64, the buckets of `lib.data.news_context.Buckets`, and ``candidates``.

    Parameters
    ----------
    num_buckets : sequence of int
        Of each of the F features.
    columns : sequence of int, optional
        Which of the F it reads; all if not given.
    embedding_size, hidden_size : int
    """

    def __init__(
        self,
        num_buckets: Sequence[int],
        *,
        columns: Sequence[int] | None = None,
        embedding_size: int = 16,
        hidden_size: int = 32,
    ) -> None:
        super().__init__()
        self.columns = tuple(range(len(num_buckets)) if columns is None else columns)
        self.embeddings = nn.ModuleList(nn.Embedding(num_buckets[c], embedding_size) for c in self.columns)
        self.hidden = nn.Linear(len(self.columns) * embedding_size, hidden_size)
        self.output = nn.Linear(hidden_size, 1)

    def embed(self, context: Tensor) -> Tensor:
        """(B, C, F) buckets to (B, C, F'·E) of the F' columns that are read."""
        columns = [context[..., column] for column in self.columns]
        return torch.cat([table(column) for table, column in zip(self.embeddings, columns, strict=True)], -1)

    def encode_news(self, batch: Batch) -> Tensor:
        """Nothing, (0, 0): no article is read."""
        return self.output.weight.new_zeros(0, 0)

    def score(self, news: Tensor, batch: Batch) -> Tensor:
        """Scores (B, C), whatever the articles say; −∞ where there is no candidate."""
        scores = self.output(torch.relu(self.hidden(self.embed(batch["context"])))).squeeze(-1)
        return scores.masked_fill(batch["candidates"] < 0, -torch.inf)


class WithContext(NewsScorer):
    """A content model whose scores a `ContextualScorer` adds to: s(u, c) + s(context of c).

    The addition cannot change how users or articles are encoded. With the scorer's output weights at 0 it is
    the content model.
    """

    def __init__(self, content: NewsRecommender, context: ContextualScorer) -> None:
        super().__init__()
        self.content, self.context = content, context

    def encode_news(self, batch: Batch) -> Tensor:
        """As the content model."""
        return self.content.encode_news(batch)

    def score(self, news: Tensor, batch: Batch) -> Tensor:
        """Scores (B, C) from encoded articles; −∞ where there is no candidate."""
        return self.content.score(news, batch) + self.context.score(news, batch)


class DeepContext(NewsScorer):
    """A content model with the same buckets used more deeply: what the simple module is compared with.

    * ``"article"``: context is a part of what an article is, s = ⟨u, W [n; e]⟩;
    * ``"gate"``: a gate like PP-Rec's, s = η·⟨u, n⟩ + (1 − η)·s(context) with η = σ(MLP(u));
    * ``"network"``: a network judges all together, s = MLP[u; n; u∘n; e].

    Reads what the content model reads and ``context`` (B, C, F), as `ContextualScorer`.

    Parameters
    ----------
    content : NewsRecommender
    context : ContextualScorer
        Its embeddings are e; its network is used by ``"gate"`` only.
    size : int
        D, length of the content model's vectors.
    fusion : {"article", "gate", "network"}
    hidden_size : int
        Of the networks.

    Raises
    ------
    ValueError
        Another fusion.
    """

    def __init__(
        self,
        content: NewsRecommender,
        context: ContextualScorer,
        size: int,
        *,
        fusion: str,
        hidden_size: int = 128,
    ) -> None:
        super().__init__()
        features = context.hidden.in_features
        networks = {
            "article": lambda: nn.Linear(size + features, size),
            "gate": lambda: _tanh_network(size, (hidden_size, hidden_size // 2)),
            "network": lambda: nn.Sequential(
                nn.Linear(3 * size + features, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1)
            ),
        }
        if fusion not in networks:
            raise ValueError(f"fusion must be one of {', '.join(networks)}, got {fusion!r}")
        self.content, self.context, self.fusion = content, context, fusion
        self.network = networks[fusion]()

    def encode_news(self, batch: Batch) -> Tensor:
        """As the content model."""
        return self.content.encode_news(batch)

    def score(self, news: Tensor, batch: Batch) -> Tensor:
        """Scores (B, C) from encoded articles; −∞ where there is no candidate."""
        user, candidates = self.content.represent(news, batch)
        if self.fusion == "gate":
            share = torch.sigmoid(self.network(user))
            personal = (candidates @ user.unsqueeze(-1)).squeeze(-1)
            scores = share * personal + (1 - share) * self.context.score(news, batch)
        else:
            context = self.context.embed(batch["context"])
            if self.fusion == "article":
                scores = (self.network(torch.cat([candidates, context], -1)) @ user.unsqueeze(-1)).squeeze(-1)
            else:
                users = user.unsqueeze(1).expand_as(candidates)
                together = torch.cat([users, candidates, users * candidates, context], -1)
                scores = self.network(together).squeeze(-1)
        return scores.masked_fill(batch["candidates"] < 0, -torch.inf)


class PPRec(NewsScorer):
    """PP-Rec: popularity predicted from content, recency and click-through rate, in scores and in the user.

    Score = η·⟨u, n⟩ + (1 − η)·(w·ctr + p) with

    * p = (1 − g)·MLP(n′) + g·MLP(recency), g = σ(MLP[n′; recency]), n′ from an encoder of its own,
    * u: self-attention over the clicked articles, pooled by a query of the article and its popularity,
    * η = σ(MLP(u)).

    Reads what the encoders read, ``candidates``, ``history``, and

    * ``ctr`` (B, C) and ``history_ctr`` (B, H): click-through rates in 0…1,
    * ``age`` (B, C): hours since publication.

    Against the program: any encoder of articles, so that it can be compared at equal text (there: words and
    entities that attend to each other, 400-d); age is in hours on both sides (there publication is counted in
    minutes and the impression in hours, so that nearly all ages are clipped to 0); rates are those of the
    caller's regime (there of the previous hour); tanh follows all layers of ``hidden_sizes`` (there the last
    of the three is linear); η has two hidden layers (there the first is computed and overwritten, so that one
    is left); both terms count once (there training doubles them, which changes no ranking but the loss).

    Parameters
    ----------
    encoder, popularity_encoder : NewsRecommender
        Of which `encode_news` is used; not shared.
    size : int
        D, length of their articles' vectors.
    num_heads : int
        Of the users' self-attention; divides ``size``. 20 in the program.
    hidden_sizes : sequence of int
        Of the popularity from content; (256, 256, 128) there.
    ctr_levels, recency_levels, recency_size : int
        Rows of the tables of clicked articles' rates, and of ages in steps of two hours; 200, 1500 and 100
        there.

    Raises
    ------
    ValueError
        ``num_heads`` does not divide ``size``.
    """

    def __init__(
        self,
        encoder: NewsRecommender,
        popularity_encoder: NewsRecommender,
        size: int,
        *,
        num_heads: int = 20,
        hidden_sizes: Sequence[int] = (256, 256, 128),
        ctr_levels: int = 200,
        recency_levels: int = 1500,
        recency_size: int = 100,
    ) -> None:
        super().__init__()
        if size % num_heads:
            raise ValueError(
                f"num_heads must divide {size}, the length of an article's vector, got {num_heads}"
            )
        self.encoder, self.popularity_encoder = encoder, popularity_encoder
        self.content_popularity = _tanh_network(size, hidden_sizes, bias=False)
        self.recency_embedding = nn.Embedding(recency_levels, recency_size)
        self.recency_popularity = _tanh_network(recency_size, (64, 64))
        self.popularity_gate = _tanh_network(size + recency_size, (128, 64))
        self.ctr_weight = nn.Parameter(torch.tensor(19.0))  # as it begins in the program
        self.ctr_embedding = nn.Embedding(ctr_levels, size)
        self.user_self_attention = MultiHeadSelfAttention(size, num_heads, size // num_heads)
        self.pooling = _tanh_network(2 * size, (size,), bias=False)
        self.personal_gate = _tanh_network(size, (128, 64))

    def encode_user(self, clicked: Tensor, known: Tensor, ctr: Tensor) -> Tensor:
        """Users (B, D) from their articles (B, H, D) and these articles' rates (B, H); 0 for no click."""
        attended = self.user_self_attention(clicked, known)
        level = (
            (ctr * self.ctr_embedding.num_embeddings).long().clamp(0, self.ctr_embedding.num_embeddings - 1)
        )
        logits = self.pooling(torch.cat([attended, self.ctr_embedding(level)], -1)).squeeze(-1)
        weights = torch.softmax(logits.masked_fill(~known, blocked_logit(logits.dtype)), -1) * known
        return (weights.unsqueeze(-2) @ attended).squeeze(-2)

    def popularity(self, news: Tensor, batch: Batch) -> Tensor:
        """Popularity of the candidates (B, C) without their rates, from vectors (n, D) of its own encoder."""
        news = news[batch["candidates"].clamp(min=0)]
        level = (batch["age"] // 2).long().clamp(0, self.recency_embedding.num_embeddings - 1)
        recency = self.recency_embedding(level)
        gate = torch.sigmoid(self.popularity_gate(torch.cat([news, recency], -1)))
        predicted = (1 - gate) * self.content_popularity(news) + gate * self.recency_popularity(recency)
        return predicted.squeeze(-1)

    def encode_news(self, batch: Batch) -> Tensor:
        """All articles of a batch by both encoders, (n, 2D)."""
        encoders = (self.encoder, self.popularity_encoder)
        return torch.cat([encoder.encode_news(batch) for encoder in encoders], 1)

    def score(self, news: Tensor, batch: Batch) -> Tensor:
        """Scores (B, C) from articles encoded twice (n, 2D); −∞ where there is no candidate."""
        news, popular = news.chunk(2, 1)
        history, candidates = batch["history"], batch["candidates"]
        user = self.encode_user(news[history.clamp(min=0)], history >= 0, batch["history_ctr"])
        personal = (news[candidates.clamp(min=0)] @ user.unsqueeze(-1)).squeeze(-1)
        share = torch.sigmoid(self.personal_gate(user))
        popularity = self.ctr_weight * batch["ctr"] + self.popularity(popular, batch)
        scores = share * personal + (1 - share) * popularity
        return scores.masked_fill(candidates < 0, -torch.inf)


def _tanh_network(size: int, hidden_sizes: Sequence[int], *, bias: bool = True) -> nn.Sequential:
    """Linear and tanh layers to one number; ``bias`` is of the last."""
    layers: list[nn.Module] = []
    for hidden in hidden_sizes:
        layers += [nn.Linear(size, hidden), nn.Tanh()]
        size = hidden
    return nn.Sequential(*layers, nn.Linear(size, 1, bias=bias))
