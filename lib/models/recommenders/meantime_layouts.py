"""Where the MEANTIME authors' files keep the weights of each of their models (commit a9ca2e7).

A layout maps each of their keys to the parameter of ours that holds it, or to the part of one: our
projections are fused, theirs are not. `lib.models.recommenders.meantime_checkpoints` reads and writes by it.
What a file says of the sizes of its model is read here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lib.models.recommenders.meantime_checkpoints import (
    Slot,
    count,
    linear,
    part,
    require,
    rows_of_linear,
    whole,
)

if TYPE_CHECKING:
    from lib.models.recommenders.bert4rec import BERT4Rec
    from lib.models.recommenders.cloze import ClozeHead
    from lib.models.recommenders.marank import MARank
    from lib.models.recommenders.meantime import Meantime
    from lib.models.recommenders.sasrec import SASRec, TiSASRec

#: Prefixes of the authors' keys: of block b, and of the token table, which four of the models have.
BLOCK = "body.transformer_blocks.{}"
TOKENS = "token_embedding.emb.weight"


# --- MEANTIME ---


def meantime_sizes(
    state: Mapping[str, Tensor], absolute: tuple[str, ...], relative: tuple[str, ...]
) -> dict[str, int | str | bool]:
    """Options of `lib.models.recommenders.meantime.Meantime` that a file shows.

    Parameters
    ----------
    state
        From `lib.models.recommenders.meantime_checkpoints.read_state`.
    absolute, relative
        Letters of the kernels, which the file does not name.

    Raises
    ------
    ValueError
        If it is no such file, or has another number of heads than the letters.
    """
    table = "absolute_kernel_embeddings_list.{}.emb.weight"
    bias = BLOCK.format(0) + ".attention.rel_position_bias"
    require(state, {TOKENS: (3, 1), bias: (1, 0, 1, 1), "head.out.0.weight": (1, 1)}, "MEANTIME")
    found = count(state, table), state[bias].shape[1]
    require(state, {table.format(k): (1, 1) for k in range(found[0])}, "MEANTIME")
    if found != (len(absolute), len(relative)):
        raise ValueError(
            f"the checkpoint has {found[0]} absolute and {found[1]} relative heads, "
            f"absolute={'-'.join(absolute)!r} and relative={'-'.join(relative)!r} "
            f"name {len(absolute)} and {len(relative)}"
        )
    rows, hidden_size = state[TOKENS].shape
    sizes = {"num_items": rows - 2, "hidden_size": hidden_size, "num_blocks": count(state, BLOCK + ".")}
    for k, letter in enumerate(absolute):
        if letter != "c":
            sizes.setdefault("num_days" if letter == "d" else "max_length", state[table.format(k)].shape[0])
    return sizes | cloze_head_options(state)


def meantime_layout(model: Meantime) -> dict[str, Slot]:
    """Of MEANTIME."""
    layout = {TOKENS: whole("items.weight")}
    for k in range(len(model.absolute)):
        layout[f"absolute_kernel_embeddings_list.{k}.emb.weight"] = whole(f"tables.{k}.weight")
    for b in range(len(model.blocks)):
        theirs, ours = BLOCK.format(b), f"blocks.{b}"
        layout |= _mixed_attention_layout(model, f"{theirs}.attention", f"{ours}.attention")
        layout |= _cloze_block_layout(theirs, ours)
    return layout | _cloze_head_layout(model.head)


def _mixed_attention_layout(model: Meantime, theirs: str, ours: str) -> dict[str, Slot]:
    size = model.hidden_size // len(model.absolute + model.relative)  # of a head
    layout = {f"{theirs}.rel_position_bias": part(f"{ours}.relative_query", None, slice(None), None)}
    layout |= _projections_layout(f"{theirs}.content_linear_layers", f"{ours}.content", model.hidden_size)
    for k in range(len(model.absolute)):
        query, key = slice(0, size), slice(size, None)
        layout |= rows_of_linear(
            f"{theirs}.abs_position_query_linear_layers.{k}", f"{ours}.absolute.{k}", query
        )
        layout |= rows_of_linear(f"{theirs}.abs_position_key_linear_layers.{k}", f"{ours}.absolute.{k}", key)
    for k in range(len(model.relative)):
        layout |= linear(f"{theirs}.rel_position_key_linear_layers.{k}", f"{ours}.relative.{k}")
    return layout


# --- BERT4Rec, and what it shares with MEANTIME ---


def bert4rec_sizes(state: Mapping[str, Tensor]) -> dict[str, int | str | bool]:
    """Options of `lib.models.recommenders.bert4rec.BERT4Rec` that a file shows; ValueError if it is none."""
    return _sequence_sizes(state, "positional_embedding", "BERT4Rec") | cloze_head_options(state)


def bert4rec_layout(model: BERT4Rec) -> dict[str, Slot]:
    """Of BERT4Rec."""
    layout = {
        TOKENS: whole("items.weight"),
        "positional_embedding.emb.weight": whole("positions.weight"),
        **linear("ln", "norm"),
        **_cloze_head_layout(model.head),
    }
    for b in range(len(model.blocks)):
        theirs, ours = BLOCK.format(b), f"blocks.{b}"
        layout |= _projections_layout(
            f"{theirs}.attention.linear_layers", f"{ours}.attention.projections", model.hidden_size
        )
        layout |= _cloze_block_layout(theirs, ours)
    return layout


def cloze_head_options(state: Mapping[str, Tensor]) -> dict[str, str | bool]:
    """Which head a file has: ``head`` and ``head_layer_norm`` of the models that use one."""
    second = state.get("head.out.2.weight")
    return {
        "head": "dot" if "head.bias" in state else "linear",
        "head_layer_norm": second is not None and second.dim() == 1,
    }


def pop_tied_table(state: dict[str, Tensor]) -> None:
    """Take the dot head's second name of the token table out of a state dict.

    Raises
    ------
    ValueError
        If it is not that table.
    """
    tied = state.pop("head.token_embeddings.weight", None)
    if tied is None:
        return
    for what, one, other in (
        ("shape", tuple(tied.shape), tuple(state[TOKENS].shape)),
        ("type", tied.dtype, state[TOKENS].dtype),
    ):
        if one != other:
            raise ValueError(
                f"head.token_embeddings.weight must be {TOKENS} again, but is of {what} {one}, not {other}"
            )
    if not tied.equal(state[TOKENS]):
        raise ValueError(f"head.token_embeddings.weight must be {TOKENS} again, but holds other numbers")


def _cloze_block_layout(theirs: str, ours: str) -> dict[str, Slot]:
    """Output projection, feed-forward, two layer norms."""
    pairs = {
        "attention.output_linear": "attention.output",
        "feed_forward.w_1": "feed_forward.expand",
        "feed_forward.w_2": "feed_forward.contract",
        "input_sublayer.norm": "attention_norm",
        "output_sublayer.norm": "feed_forward_norm",
    }
    layout: dict[str, Slot] = {}
    for their_name, our_name in pairs.items():
        layout |= linear(f"{theirs}.{their_name}", f"{ours}.{our_name}")
    return layout


def _cloze_head_layout(head: ClozeHead) -> dict[str, Slot]:
    """The cloze head in either of its kinds, the tied table left out (see `pop_tied_table`)."""
    layer_norm = isinstance(head.norm, nn.LayerNorm)
    layout = linear("head.out.0", "head.transform")
    if layer_norm:
        layout |= linear("head.out.2", "head.norm")
    if head.kind == "dot":
        return layout | {"head.bias": part("head.output_bias", None)}
    return layout | linear("head.out.3" if layer_norm else "head.out.2", "head.output")


def _projections_layout(theirs: str, ours: str, hidden_size: int) -> dict[str, Slot]:
    """The authors' projections of queries, keys and values as rows of our fused layer."""
    layout: dict[str, Slot] = {}
    for k in range(3):
        rows = slice(k * hidden_size, (k + 1) * hidden_size)
        layout |= rows_of_linear(f"{theirs}.{k}", ours, rows)
    return layout


# --- SASRec and TiSASRec ---


def sasrec_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Options of `lib.models.recommenders.sasrec.SASRec` that a file shows; ValueError if it is none."""
    return _sequence_sizes(state, "positional_embedding", "SASRec")


def tisasrec_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Options of `lib.models.recommenders.sasrec.TiSASRec` that a file shows; ValueError if it is none."""
    intervals = "relative_time_key_embedding.time_emb.weight"
    sizes = _sequence_sizes(state, "position_key_embedding", "TiSASRec", intervals)
    return sizes | {"max_interval": state[intervals].shape[0] - 1}


def sasrec_layout(model: SASRec) -> dict[str, Slot]:
    """Of SASRec."""
    return _causal_layout(model) | {"positional_embedding.emb.weight": whole("positions.weight")}


def tisasrec_layout(model: TiSASRec) -> dict[str, Slot]:
    """Of TiSASRec."""
    layout = _causal_layout(model)
    for use in ("key", "value"):
        layout[f"position_{use}_embedding.emb.weight"] = whole(f"{use}_position.weight")
        layout[f"relative_time_{use}_embedding.time_emb.weight"] = whole(f"{use}_interval.weight")
    return layout


def _causal_layout(model: SASRec) -> dict[str, Slot]:
    layout = {TOKENS: whole("items.weight"), **linear("body.ln", "norm")}
    for b in range(len(model.blocks)):
        theirs, ours = BLOCK.format(b), f"blocks.{b}"
        attention, size = f"{theirs}.attention.linear_layers", model.hidden_size
        layout |= linear(f"{attention}.0", f"{ours}.query")
        layout |= rows_of_linear(f"{attention}.1", f"{ours}.key_value", slice(0, size))
        layout |= rows_of_linear(f"{attention}.2", f"{ours}.key_value", slice(size, None))
        layout |= linear(f"{theirs}.feed_forward.w_1", f"{ours}.inner")
        layout |= linear(f"{theirs}.feed_forward.w_2", f"{ours}.outer")
        layout |= linear(f"{theirs}.norm1", f"{ours}.attention_norm")
        layout |= linear(f"{theirs}.norm2", f"{ours}.feed_forward_norm")
    return layout


def _sequence_sizes(state: Mapping[str, Tensor], positions: str, model: str, *needed: str) -> dict[str, int]:
    positions = f"{positions}.emb.weight"
    require(state, {TOKENS: (3, 1)} | dict.fromkeys([positions, *needed], (1, 1)), model)
    rows, hidden_size = state[TOKENS].shape
    return {
        "num_items": rows - 2,
        "hidden_size": hidden_size,
        "max_length": state[positions].shape[0],
        "num_blocks": count(state, BLOCK + "."),
    }


# --- MARank ---


def marank_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Options of `lib.models.recommenders.marank.MARank` that a file shows; ValueError if it is none."""
    tables = ["user_latent_embeddings.weight", "item_context_embeddings.weight"]
    require(state, dict.fromkeys(tables, (2, 1)), "MARank")
    items, hidden_size = state["item_context_embeddings.weight"].shape
    return {
        "num_items": items - 1,
        "num_users": state["user_latent_embeddings.weight"].shape[0] - 1,
        "hidden_size": hidden_size,
        "num_attention_layers": count(state, "ures_linear_layers.{}."),
        "num_linear_layers": count(state, "res_linear_layers.{}."),
    }


def marank_layout(model: MARank) -> dict[str, Slot]:
    """Of MARank."""
    layout = {
        f"{name}_embeddings.weight": whole(f"{name}.weight")
        for name in ("user_latent", "item_latent", "item_context")
    }
    for theirs, ours in (("ures", "user"), ("ires", "item"), ("res", "output")):
        for k in range(len(model.get_submodule(f"{ours}_residuals"))):
            layout |= linear(f"{theirs}_linear_layers.{k}", f"{ours}_residuals.{k}.linear")
    for leaf in ("item", "user", "out"):
        layout |= linear(f"i_att_{leaf}", f"first_pooling.{leaf}")
        for k in range(len(model.poolings)):
            layout |= linear(f"rel_att_{leaf}.{k}", f"poolings.{k}.{leaf}")
    return layout | linear("hid_att", "merge.item") | linear("hid_att_out", "merge.out")
