"""Where the time of whole models goes: kinds of operators, and their shares."""

import pandas as pd
import pytest
import torch

from lib.experiments.facebook_inference_operators import operator_kind, operator_shares, time_operators


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("addmm", "matrix product"),
        ("t", "tensor manipulation"),
        ("tanh", "element-wise"),
        ("mkldnn_convolution", "convolution"),
        ("_slow_conv2d_forward", "convolution"),
        ("mkldnn_rnn_layer", "recurrent layer"),
        ("_embedding_bag_forward_only", "embedding"),
        ("index_select", "embedding"),
        ("add", "element-wise"),
        ("max_pool2d_with_indices", "pooling"),
        ("native_batch_norm", "normalisation"),
        ("as_strided", "tensor manipulation"),
        ("nobody_knows", "other"),
    ],
)
def test_kind_of_an_operator(name, kind):
    assert operator_kind(name) == kind


def test_a_model_is_profiled_in_each_run():
    with torch.no_grad():
        rows = pd.DataFrame(time_operators(batches={"recommendation": 2}, table_rows=10, repeats=2))
    assert set(rows["family"]) == {"recommendation"} and set(rows["repeat"]) == {0, 1}
    assert {"addmm", "_embedding_bag"} <= set(rows["operator"])
    assert (rows["kind"] == rows["operator"].map(operator_kind)).all()
    assert (rows["milliseconds"] >= 0).all() and rows["milliseconds"].sum() > 0


def test_shares_add_up_within_a_model():
    rows = [("a", "x", 1.0), ("a", "x", 2.0), ("a", "y", 1.0), ("b", "y", 5.0)]
    shares = operator_shares(pd.DataFrame(rows, columns=["family", "kind", "milliseconds"]))
    assert shares.to_dict("index") == {"a": {"x": 0.75, "y": 0.25}, "b": {"x": 0.0, "y": 1.0}}


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="no model for 'poetry': expected recommendation, vision, language"):
        time_operators(batches={"poetry": 1})


def test_without_any_model_there_is_nothing_to_time():
    with pytest.raises(ValueError, match="one of the models needs a batch of at least 1"):
        time_operators(batches={})
