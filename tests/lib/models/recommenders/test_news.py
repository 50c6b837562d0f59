"""News recommenders against values of an independent program, their textbook way, and invariances."""

import pytest
import torch
from torch import nn

from lib.experiments.news_context_arithmetic import BATCH, filled, public_layouts
from lib.models.recommenders.news import LSTUR, NAML, NRMS, AdditiveAttention
from lib.models.recommenders.news_scorer import clicked_first_loss

MODELS = {"NRMS": NRMS, "NAML": NAML, "LSTUR": LSTUR}


def loaded(name: str):
    options = {"num_heads": 2} if name == "NRMS" else {}
    state = filled(public_layouts()[name])
    count = len({id(tensor) for tensor in state.values()})  # a table that two names share counts once
    torch.set_default_dtype(torch.float64)  # or the weights are rounded
    try:
        return MODELS[name].from_checkpoint({"model_state_dict": state}, **options), count
    finally:
        torch.set_default_dtype(torch.float32)


PARITY = {
    "NRMS": (
        19,
        [0.337264557, 1.131579506],
        [0.2253045, -0.0118177, -0.2804929, -0.2946966, -0.4259985, -0.5962941],
    ),
    "NAML": (22, [0.264991986, 0.188374012], [0.3793673, 0.2101460, 0.1961390, 0.3043729]),
    "LSTUR": (
        12,
        [0.458886438, 0.558296299],
        [
            *(0.4979404, 0.4806376, 0.3982827, 0.2620222, -0.4815655, -0.4976199, -0.4463238, -0.3346199),
            *(0.6965964, 0.7306931, 0.6647347, 0.6135335),
        ],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_values_of_the_independent_program(name):
    tensors, scores, article = PARITY[name]
    network, count = loaded(name)
    assert count == tensors
    assert network(BATCH)[0].tolist() == pytest.approx(
        scores, rel=0, abs=2e-8
    )  # its attention adds 1e-8 to a sum
    assert network.encode_news(BATCH)[0].tolist() == pytest.approx(article, rel=0, abs=6e-8)  # seven digits


def small(name: str, **options):
    torch.manual_seed(0)
    sizes = {"NRMS": (10,), "NAML": (10, 4), "LSTUR": (10, 4, 3)}[name]
    widths = {"num_heads": 2, "head_size": 3} if name == "NRMS" else {"filters": 4}
    network = MODELS[name](*sizes, word_size=6, query_size=4, **widths, **options).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


@pytest.mark.parametrize("name", MODELS)
def test_encoding_an_article_once_is_encoding_it_everywhere(name):
    """The textbook way: every candidate and every click is encoded for itself."""
    network = small(name)
    many = {key: BATCH[key][[0, 2, 3, 1, 0]] for key in ("title", "abstract", "category", "subcategory")}
    apart = many | {"candidates": torch.tensor([[0, 1]]), "history": torch.tensor([[2, 3, 4]])}
    assert torch.equal(network(BATCH | {"user": BATCH["user"]}), network(apart | {"user": BATCH["user"]}))


@pytest.mark.parametrize("name", MODELS)
def test_padding_takes_no_part(name):
    network = small(name)
    before = network(BATCH)
    wider = {key: torch.nn.functional.pad(BATCH[key], (0, 3)) for key in ("title", "abstract")}
    longer = {"history": torch.tensor([[3, 1, 0, -1, -1]]), "candidates": torch.tensor([[0, 2, -1]])}
    after = network(BATCH | wider | longer)
    assert torch.isneginf(after[:, 2]).all()
    assert torch.allclose(after[:, :2], before, atol=1e-12)
    unmasked = small(name, mask_words=False)
    assert not torch.allclose(unmasked(BATCH | wider), unmasked(BATCH), atol=1e-3), "there it does"


@pytest.mark.parametrize("name", MODELS)
def test_who_clicked_nothing_and_what_says_nothing_have_finite_scores_and_gradients(name):
    network = small(name).train()
    batch = BATCH | {"history": torch.full((1, 3), -1), "candidates": torch.tensor([[3, 0]])}
    scores = network(batch)
    assert torch.isfinite(scores).all()
    network.loss(batch).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    network.eval()
    clicked = network.encode_news(batch)[batch["history"].clamp(min=0)]
    user = network.encode_user(clicked, batch["history"] >= 0, batch)
    if name == "LSTUR":
        assert torch.equal(user, network.user_embedding(batch["user"])), "the user's own vector is left"
    else:
        assert not user.any()


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_clicks_matters_to_lstur_alone(name):
    network = small(name)
    turned = network(BATCH | {"history": torch.tensor([[0, 3, 1]])})
    assert torch.allclose(turned, network(BATCH), atol=1e-9) == (name != "LSTUR")


def test_both_ways_of_lstur_to_know_a_user():
    for long_term in ("ini", "con"):
        network = small("LSTUR", long_term=long_term)
        other = network(BATCH | {"user": torch.tensor([1])})
        assert not torch.allclose(other, network(BATCH)), long_term
        clicked = network.encode_news(BATCH)[BATCH["history"].clamp(min=0)]
        user = network.encode_user(clicked, BATCH["history"] >= 0, BATCH)
        assert user.shape == (1, 12)
        forgetful = small("LSTUR", long_term=long_term, user_dropout=1.0, dropout=0.0).train()
        assert torch.equal(forgetful(BATCH), forgetful(BATCH | {"user": torch.tensor([1])}))


def test_additive_attention():
    attention = AdditiveAttention(5, 3).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one = torch.tensor([[True, False, False, False], [False] * 4])
    assert torch.allclose(attention(x, one), torch.stack([x[0, 0], torch.zeros(5)]))
    nn.init.zeros_(attention.attention_query_vector)
    assert torch.allclose(attention(x), x.mean(1))


def test_the_loss_with_one_negative_is_logistic():
    scores = torch.randn(
        6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    ).requires_grad_()
    loss = clicked_first_loss(scores)
    assert torch.allclose(loss, torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]).mean())
    assert torch.autograd.gradcheck(clicked_first_loss, scores)
    missing = torch.cat([scores, torch.full((6, 1), -torch.inf)], 1)
    assert torch.equal(clicked_first_loss(missing), loss), "a candidate that is not there costs nothing"


def test_published_sizes():
    """Parameters of yusanshi/news-recommendation at MIND-small's sizes, shared tables counted once."""
    with torch.device("meta"):
        networks = {
            21_955_400: NRMS(70_975, num_heads=15, head_size=20),
            22_163_100: NAML(70_975, 274, filters=300),
            71_572_300: LSTUR(70_975, 274, 50_000),
        }
    for count, network in networks.items():
        assert sum(parameter.numel() for parameter in network.parameters()) == count, type(network).__name__


def test_pretrained_word_vectors():
    vectors = torch.randn(11, 6)
    network = NRMS(10, word_size=6, num_heads=2, head_size=3, word_vectors=vectors)
    assert torch.equal(network.word_embedding.weight, vectors) and network.word_embedding.weight.requires_grad
    with pytest.raises(ValueError, match=r"word_vectors must be \(11, 6\), got \(10, 6\)"):
        NRMS(10, word_size=6, word_vectors=vectors[:-1])


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_something_else_is_refused(name):
    state = filled(public_layouts()[name])
    load = MODELS[name].from_checkpoint
    options = {"num_heads": 2} if name == "NRMS" else {}
    with pytest.raises(ValueError, match="there is no matrix word_embedding.weight"):
        load({"weight": torch.zeros(2, 2)}, **options)
    with pytest.raises(ValueError, match=f"this is no {name} checkpoint: unexpected other"):
        load(state | {"other": torch.zeros(1)}, **options)
    some = next(key for key in state if key.endswith("bias"))
    with pytest.raises(ValueError, match=f"this is no {name} checkpoint: missing .*bias"):
        load({key: value for key, value in state.items() if key != some}, **options)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="num_heads must divide 6"):
        NRMS.from_checkpoint(filled(public_layouts()["NRMS"]), num_heads=4)
    with pytest.raises(ValueError, match="window must be odd"):
        NAML(10, 4, window=4)
    with pytest.raises(ValueError, match="long_term must be ini or con"):
        LSTUR(10, 4, 3, long_term="both")
    state = filled(public_layouts()["NAML"])
    key = "news_encoder.text_encoders.title.word_embedding.weight"
    with pytest.raises(ValueError, match="is not the table that it shares"):
        NAML.from_checkpoint(state | {key: state[key] + 1})
