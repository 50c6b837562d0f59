"""News recommenders that read content: NRMS, NAML and LSTUR.

NRMS: Wu et al., "Neural News Recommendation with Multi-Head Self-Attention", EMNLP 2019. NAML: Wu et al.,
"Neural News Recommendation with Attentive Multi-View Learning", IJCAI 2019. LSTUR: An et al., "Neural News
Recommendation with Long- and Short-term User Representations", ACL 2019. Each encodes an article from its
text and categories, a user from the articles clicked before, and scores a candidate by the dot product.

A batch names its articles once, however often they were clicked or shown: ``title`` and what else a model
reads hold one row per distinct article, ``candidates`` and ``history`` are indices into these rows. Public
programs encode an article for every place where it occurs.

Sizes are by default those of recommenders-team/recommenders (Microsoft), LSTUR's those of
yusanshi/news-recommendation (MIT licence). Public programs differ in what the papers leave open. Here padding
takes no part: words with index 0 and missing clicks are masked. With `mask_words` False padded words take
part, as they do in both; `from_checkpoint` takes the latter's layout of weights. Neither is the papers'
authors' own program.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.authors import Source, opened, require_fit
from lib.models.recommenders.dot_product_attention import blocked_logit, merge_heads, split_heads
from lib.models.recommenders.news_checkpoints import convolutions_over_words, renamed, table_shape
from lib.models.recommenders.news_scorer import Batch, NewsScorer


class AdditiveAttention(nn.Module):
    """Σ aᵢ xᵢ with a = softmax(qᵀ tanh(W x + b)): (…, L, D) to (…, D).

    Parameters
    ----------
    size
        D.
    query_size
        Length of q.
    """

    def __init__(self, size: int, query_size: int = 200) -> None:
        super().__init__()
        self.linear = nn.Linear(size, query_size)
        self.attention_query_vector = nn.Parameter(torch.empty(query_size).uniform_(-0.1, 0.1))

    def forward(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """``known`` (…, L) bool says what takes part; where nothing does, the result is 0."""
        logits = torch.tanh(self.linear(x)) @ self.attention_query_vector
        if known is None:
            return (torch.softmax(logits, -1).unsqueeze(-2) @ x).squeeze(-2)
        weights = torch.softmax(logits.masked_fill(~known, blocked_logit(x.dtype)), -1) * known
        return (weights.unsqueeze(-2) @ x).squeeze(-2)


class MultiHeadSelfAttention(nn.Module):
    """Self-attention of ``num_heads`` heads without an output projection: (B, L, D) to (B, L, h·d)."""

    def __init__(self, size: int, num_heads: int, head_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.W_Q, self.W_K, self.W_V = (nn.Linear(size, num_heads * head_size) for _ in range(3))

    def forward(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """``known`` (B, L) bool says which positions can be attended to."""
        query, key, value = (
            split_heads(linear(x), self.num_heads) for linear in (self.W_Q, self.W_K, self.W_V)
        )
        mask = None
        if known is not None:
            mask = torch.zeros_like(known, dtype=x.dtype).masked_fill_(~known, blocked_logit(x.dtype))
            mask = mask[:, None, None]
        return merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))


class TextCNN(nn.Module):
    """Words to a vector: convolution over the text, ReLU, additive attention; (n, L, D) to (n, filters)."""

    def __init__(self, size: int, filters: int, window: int, query_size: int, dropout: float) -> None:
        super().__init__()
        if window % 2 == 0:
            raise ValueError(f"window must be odd, so that a text keeps its length; got {window}")
        self.CNN = nn.Conv1d(size, filters, window, padding=window // 2)
        self.additive_attention = AdditiveAttention(filters, query_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, known: Tensor | None = None) -> Tensor:
        if known is not None:  # as the zeros beyond a text's ends
            words = words * known.unsqueeze(-1)
        features = self.dropout(F.relu(self.CNN(words.mT)).mT)
        return self.additive_attention(features, known)


class NewsRecommender(NewsScorer):
    """Scores ⟨user, article⟩ of candidates; subclasses say how articles and users are encoded.

    A batch has, beside what a subclass reads of an article (a row each of the n distinct ones):

    * ``candidates`` (B, C): rows of the candidates, −1 where there is none,
    * ``history`` (B, H): rows of the articles clicked before, oldest first, then −1 where there is none.

    Parameters
    ----------
    num_words
        W; the table of word vectors has W+1 rows.
    word_size
        Length of a word vector.
    dropout
        Of word vectors and of what is made of them, in training.
    word_vectors : Tensor (W+1, word_size), optional
        Pretrained vectors to begin with.
    mask_words
        Whether padded words are left out.
    """

    def __init__(
        self, num_words: int, word_size: int, dropout: float, word_vectors: Tensor | None, mask_words: bool
    ) -> None:
        super().__init__()
        self.word_embedding = word_table(num_words, word_size, word_vectors)
        self.dropout = nn.Dropout(dropout)
        self.mask_words = mask_words

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors (n, L, word_size) of tokens (n, L), and which are words; None if padding takes part."""
        known = tokens != 0 if self.mask_words else None
        return self.dropout(self.word_embedding(tokens)), known

    def encode_user(self, clicked: Tensor, known: Tensor, batch: Batch) -> Tensor:
        """Users (B, D) from the articles they clicked (B, H, D), of which ``known`` (B, H) are there."""
        raise NotImplementedError

    def represent(self, news: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Users (B, D) and candidates (B, C, D) of encoded articles (n, D)."""
        history = batch["history"]
        user = self.encode_user(news[history.clamp(min=0)], history >= 0, batch)
        return user, news[batch["candidates"].clamp(min=0)]

    def score(self, news: Tensor, batch: Batch) -> Tensor:
        """Scores (B, C) from encoded articles (n, D); −∞ where there is no candidate."""
        user, candidates = self.represent(news, batch)
        scores = (candidates @ user.unsqueeze(-1)).squeeze(-1)
        return scores.masked_fill(batch["candidates"] < 0, -torch.inf)


class NRMS(NewsRecommender):
    """NRMS: self-attention over the words of a title, then over the clicked articles.

    Reads ``title`` (n, T), word indices from 1, 0 for padding. O(n·T² + B·H²) memory.

    Parameters
    ----------
    num_words
        W; the table of word vectors has W+1 rows.
    word_size
        Length of a word vector.
    num_heads, head_size
        20 and 20, or 15 and 20 in the layout of `from_checkpoint`.
    query_size
        Length of the queries of additive attention.
    dropout
        Of word vectors and of what is made of them, in training.
    word_vectors : Tensor (W+1, word_size), optional
        Pretrained vectors to begin with.
    mask_words
        Whether padded words are left out.
    """

    def __init__(
        self,
        num_words: int,
        *,
        word_size: int = 300,
        num_heads: int = 20,
        head_size: int = 20,
        query_size: int = 200,
        dropout: float = 0.2,
        word_vectors: Tensor | None = None,
        mask_words: bool = True,
    ) -> None:
        super().__init__(num_words, word_size, dropout, word_vectors, mask_words)
        size = num_heads * head_size
        self.title_self_attention = MultiHeadSelfAttention(word_size, num_heads, head_size)
        self.title_attention = AdditiveAttention(size, query_size)
        self.user_self_attention = MultiHeadSelfAttention(size, num_heads, head_size)
        self.user_attention = AdditiveAttention(size, query_size)

    def encode_news(self, batch: Batch) -> Tensor:
        words, known = self.embed(batch["title"])
        return self.title_attention(self.dropout(self.title_self_attention(words, known)), known)

    def encode_user(self, clicked: Tensor, known: Tensor, batch: Batch) -> Tensor:
        return self.user_attention(self.user_self_attention(clicked, known), known)

    @classmethod
    def from_checkpoint(cls, source: Source, *, num_heads: int = 15) -> NRMS:
        """The weights of a checkpoint of yusanshi/news-recommendation, with its unmasked padding.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such file, or it does not hold this network; the message names the first keys.
        """
        names = {
            "news_encoder.word_embedding": "word_embedding",
            "news_encoder.multihead_self_attention": "title_self_attention",
            "news_encoder.additive_attention": "title_attention",
            "user_encoder.multihead_self_attention": "user_self_attention",
            "user_encoder.additive_attention": "user_attention",
        }
        with opened(source) as held:
            state = renamed(held, names)
            words, word_size = table_shape(state, "word_embedding.weight")
            size = table_shape(state, "title_self_attention.W_Q.weight")[0]
            if size % num_heads:
                raise ValueError(
                    f"num_heads must divide {size}, the length of an article's vector, got {num_heads}"
                )
            query_size = len(state.get("title_attention.attention_query_vector", ()))
            sizes = {"word_size": word_size, "num_heads": num_heads, "head_size": size // num_heads}
            network = cls(words - 1, **sizes, query_size=query_size, mask_words=False)
            return _load(network, state, "NRMS checkpoint")


class NAML(NewsRecommender):
    """NAML: title, abstract, category and subcategory as views of an article, attended to.

    Reads ``title`` (n, T), ``abstract`` (n, S), ``category`` (n,) and ``subcategory`` (n,); 0 is padding or
    unknown. The word table is shared by both texts, the category table by both levels, as in the layout of
    `from_checkpoint`; Microsoft's program has a table for each level.

    Parameters
    ----------
    num_words, num_categories
        Largest index of a word, and of a category of either level.
    filters, window
        Of the convolution over words; 400 and 3, or 300 and 3 in the layout of `from_checkpoint`.
    category_size
        Length of a category's embedding.
    word_size, query_size, dropout, word_vectors, mask_words
        As of `NRMS`.
    """

    def __init__(
        self,
        num_words: int,
        num_categories: int,
        *,
        word_size: int = 300,
        filters: int = 400,
        window: int = 3,
        category_size: int = 100,
        query_size: int = 200,
        dropout: float = 0.2,
        word_vectors: Tensor | None = None,
        mask_words: bool = True,
    ) -> None:
        super().__init__(num_words, word_size, dropout, word_vectors, mask_words)
        self.category_embedding = nn.Embedding(num_categories + 1, category_size)
        texts = {
            name: TextCNN(word_size, filters, window, query_size, dropout) for name in ("title", "abstract")
        }
        self.texts = nn.ModuleDict(texts)
        levels = {name: nn.Linear(category_size, filters) for name in ("category", "subcategory")}
        self.levels = nn.ModuleDict(levels)
        self.view_attention = AdditiveAttention(filters, query_size)
        self.user_attention = AdditiveAttention(filters, query_size)

    def encode_news(self, batch: Batch) -> Tensor:
        views = []
        for name, encoder in self.texts.items():
            views.append(encoder(*self.embed(batch[name])))
        for name, linear in self.levels.items():
            views.append(F.relu(linear(self.category_embedding(batch[name]))))
        return self.view_attention(torch.stack(views, 1))

    def encode_user(self, clicked: Tensor, known: Tensor, batch: Batch) -> Tensor:
        return self.user_attention(clicked, known)

    @classmethod
    def from_checkpoint(cls, source: Source) -> NAML:
        """As `NRMS.from_checkpoint`."""
        text, element = "news_encoder.text_encoders", "news_encoder.element_encoders"
        names = {
            f"{text}.title.word_embedding": "word_embedding",
            f"{text}.abstract.word_embedding": "word_embedding",
            f"{text}.title": "texts.title",
            f"{text}.abstract": "texts.abstract",
            f"{element}.category.embedding": "category_embedding",
            f"{element}.subcategory.embedding": "category_embedding",
            f"{element}.category.linear": "levels.category",
            f"{element}.subcategory.linear": "levels.subcategory",
            "news_encoder.final_attention": "view_attention",
            "user_encoder.additive_attention": "user_attention",
        }
        with opened(source) as held:
            state = renamed(held, names)
            words, word_size = table_shape(state, "word_embedding.weight")
            categories, category_size = table_shape(state, "category_embedding.weight")
            filters, _, window = convolutions_over_words(state, "texts.title.CNN.weight")
            network = cls(
                words - 1,
                categories - 1,
                word_size=word_size,
                filters=filters,
                window=window,
                category_size=category_size,
                query_size=len(state.get("view_attention.attention_query_vector", ())),
                mask_words=False,
            )
            return _load(network, state, "NAML checkpoint")


class LSTUR(NewsRecommender):
    """LSTUR: a recurrent network over the clicks, and a vector of the user's own.

    Reads ``title`` (n, T), ``category`` (n,), ``subcategory`` (n,) and ``user`` (B,), 0 for one who is not
    known. An article is [category; subcategory; title].

    Parameters
    ----------
    num_words, num_categories, num_users
        Largest indices.
    filters, window
        Of the convolution; a category's embedding has the length of ``filters``.
    long_term
        ``"ini"``: the user's vector is the recurrent network's first state. ``"con"``: half of the user's
        representation each.
    user_dropout
        Probability that training does not know a user.
    word_size, query_size, dropout, word_vectors, mask_words
        As of `NRMS`.

    Raises
    ------
    ValueError
        Another ``long_term``, an even window, word vectors of another shape.
    """

    def __init__(
        self,
        num_words: int,
        num_categories: int,
        num_users: int,
        *,
        word_size: int = 300,
        filters: int = 300,
        window: int = 3,
        query_size: int = 200,
        long_term: str = "ini",
        user_dropout: float = 0.5,
        dropout: float = 0.2,
        word_vectors: Tensor | None = None,
        mask_words: bool = True,
    ) -> None:
        super().__init__(num_words, word_size, dropout, word_vectors, mask_words)
        if long_term not in ("ini", "con"):
            raise ValueError(f"long_term must be ini or con, got {long_term!r}")
        size = 3 * filters
        short = size if long_term == "ini" else (size + 1) // 2
        self.category_embedding = nn.Embedding(num_categories + 1, filters)
        self.title = TextCNN(word_size, filters, window, query_size, dropout)
        self.gru = nn.GRU(size, short, batch_first=True)
        self.user_embedding = nn.Embedding(num_users + 1, size if long_term == "ini" else size - short)
        self.long_term, self.user_dropout = long_term, user_dropout

    def encode_news(self, batch: Batch) -> Tensor:
        title = self.title(*self.embed(batch["title"]))
        categories = self.category_embedding(torch.stack([batch["category"], batch["subcategory"]], 1))
        return torch.cat([categories.flatten(1), title], 1)

    def encode_user(self, clicked: Tensor, known: Tensor, batch: Batch) -> Tensor:
        own = self.user_embedding(batch["user"])
        if self.training:
            own = own * (torch.rand(len(own), 1, device=own.device) >= self.user_dropout)
        first = own if self.long_term == "ini" else own.new_zeros(len(own), self.gru.hidden_size)
        states, _ = self.gru(clicked, first[None].contiguous())
        # The state after the last click; clicks come first, padding after them.
        steps = known.sum(1)
        last = states[torch.arange(len(states), device=states.device), (steps - 1).clamp(min=0)]
        short = torch.where(steps[:, None] > 0, last, first)
        return short if self.long_term == "ini" else torch.cat([short, own], 1)

    @classmethod
    def from_checkpoint(cls, source: Source) -> LSTUR:
        """As `NRMS.from_checkpoint`; of the kind ``ini``."""
        names = {
            "news_encoder.word_embedding": "word_embedding",
            "news_encoder.category_embedding": "category_embedding",
            "news_encoder.title_CNN": "title.CNN",
            "news_encoder.title_attention": "title.additive_attention",
            "user_encoder.gru": "gru",
            "user_embedding": "user_embedding",
        }
        with opened(source) as held:
            state = renamed(held, names)
            words, word_size = table_shape(state, "word_embedding.weight")
            categories, _ = table_shape(state, "category_embedding.weight")
            users, _ = table_shape(state, "user_embedding.weight")
            filters, _, window = convolutions_over_words(state, "title.CNN.weight")
            network = cls(
                words - 1,
                categories - 1,
                users - 1,
                word_size=word_size,
                filters=filters,
                window=window,
                query_size=len(state.get("title.additive_attention.attention_query_vector", ())),
                mask_words=False,
            )
            return _load(network, state, "LSTUR checkpoint")


def word_table(num_words: int, word_size: int, word_vectors: Tensor | None) -> nn.Embedding:
    """A trainable table of W+1 word vectors, row 0 for padding.

    Raises
    ------
    ValueError
        ``word_vectors`` of another shape.
    """
    if word_vectors is None:
        return nn.Embedding(num_words + 1, word_size, padding_idx=0)
    if word_vectors.shape != (num_words + 1, word_size):
        shape = tuple(word_vectors.shape)
        raise ValueError(f"word_vectors must be {(num_words + 1, word_size)}, got {shape}")
    return nn.Embedding.from_pretrained(word_vectors.clone(), freeze=False, padding_idx=0)


def _load(network: NewsRecommender, state: Mapping[str, Tensor], whose: str) -> NewsRecommender:
    require_fit(state, network.state_dict(), whose)
    network.load_state_dict(dict(state))
    return network.eval()
