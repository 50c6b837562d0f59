"""Perplexity is measured without dropout, and leaves the model as it was."""

import math

import pytest
import torch

from lib.models.language.language_model import LSTMLanguageModel
from lib.training.language_models import perplexity, unigram_perplexity


class Watched(LSTMLanguageModel):
    """Remembers its modules' modes at each forward pass; one of them was put into evaluation mode before."""

    def __init__(self, error=None):
        torch.manual_seed(0)
        super().__init__(16, hidden_size=8, dropout=0.5)
        self.seen, self.error = [], error
        self.output.eval()

    def modes(self):
        return [module.training for module in self.modules()]

    def forward(self, tokens, state=None):
        self.seen.append(self.modes())
        assert not torch.is_grad_enabled()
        if self.error:
            raise self.error
        return super().forward(tokens, state)


def test_perplexity_is_measured_in_evaluation_mode_and_gives_each_module_its_mode_back():
    model, tokens = Watched(), torch.arange(210) % 16
    before = model.modes()
    assert len(set(before)) == 2
    value = perplexity(model, tokens, batch_size=2, length=7)
    assert perplexity(model, tokens, batch_size=2, length=7) == value
    assert not any(any(modes) for modes in model.seen) and model.modes() == before
    failing = Watched(KeyError("broken"))
    with pytest.raises(KeyError, match="broken"):
        perplexity(failing, tokens, batch_size=2, length=7)
    assert failing.seen and failing.modes() == before
    torch.nn.init.constant_(model.output.bias, math.nan)
    with pytest.raises(ValueError, match="is nan"):
        perplexity(model, tokens, batch_size=2, length=7)
    assert model.modes() == before


def test_unigram_perplexity_counted_by_hand():
    """Six training tokens of a vocabulary of four: 0 three times, 1 twice, 2 once, 3 never."""
    train, test = torch.tensor([0, 1, 0, 2, 0, 1]), torch.tensor([3, 0, 1, 3, 0])
    chances = {0: 4 / 10, 1: 3 / 10, 3: 1 / 10}  # (n + 1) / (6 + 4)
    expected = math.exp(-sum(math.log(chances[word]) for word in (0, 1, 3, 0)) / 4)  # the first is given
    assert unigram_perplexity(train, test, words=4, batch_size=1, length=4) == pytest.approx(expected)
    assert unigram_perplexity(train, test, words=4, batch_size=1, length=2) == pytest.approx(expected)
    # Three words of the test text in a piece: the last target falls out, as it does for a language model.
    shorter = math.exp(-sum(math.log(chances[word]) for word in (0, 1, 3)) / 3)
    assert unigram_perplexity(train, test, words=4, batch_size=1, length=3) == pytest.approx(shorter)


def test_unigram_perplexity_is_that_of_a_model_that_knows_only_frequencies():
    """A language model without weights but for the output's bias, scored by `perplexity`."""
    torch.manual_seed(0)
    train, test = torch.randint(0, 5, (2000,)) ** 2, torch.randint(0, 5, (500,)) ** 2
    model = LSTMLanguageModel(17, hidden_size=4)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.output.bias.copy_((torch.bincount(train, minlength=17) + 1).log())
    shape = {"batch_size": 3, "length": 20}
    found = unigram_perplexity(train, test, words=17, **shape)
    assert found == pytest.approx(perplexity(model, test, **shape), rel=1e-5)
    assert found < unigram_perplexity(torch.randint(0, 17, (2000,)), test, words=17, **shape)  # another text


def test_words_outside_the_vocabulary_are_refused():
    text = torch.arange(50) % 9
    with pytest.raises(ValueError, match="word numbers must be below 8, got 8"):
        unigram_perplexity(text, text, words=8)
    with pytest.raises(ValueError, match="word numbers must be below 8, got 8"):
        unigram_perplexity(text % 3, text, words=8)
