"""Perplexity is measured without dropout, and leaves the model as it was."""

import math

import pytest
import torch

from lib.models.language.language_model import LSTMLanguageModel
from lib.training.language_models import perplexity


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
