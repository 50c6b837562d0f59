"""Scaled dot-product attention with additive masks, per-head extra logits and cheap dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.models.recommenders.dropout import Dropout, draw_lanes, thin


def blocked_logit(dtype: torch.dtype) -> float:
    """What is added to the logit of a key that must not be attended to.

    The MEANTIME authors *set* such logits to −1e9. Adding half of the lowest finite number does the same,
    since the sum rounds to that number whatever the logit was: a row whose keys are all blocked is uniform,
    never NaN. (Gradients pass through such a row, while a set logit has none; no model's loss reads one.)
    """
    return torch.finfo(dtype).min / 2


def padding_bias(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive key-padding mask (B, 1, 1, T) for tokens (B, T): `blocked_logit` where a token is 0."""
    return _bias(tokens == 0, dtype)[:, None, None]


def causal_bias(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, T, T): keys later than the query, and padded keys, are blocked."""
    future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).triu(1)
    return _bias(future | (tokens == 0)[:, None, None], dtype)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, h·d) to (B, h, T, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, T, d) to (B, T, h·d)."""
    return x.transpose(1, 2).flatten(2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: Dropout, terms: tuple[Tensor, ...] = ()
) -> Tensor:
    """softmax(QKᵀ/√d + terms + bias)·V with dropout on the probabilities.

    Parameters
    ----------
    query, key, value
        (B, h, T, d).
    bias
        Additive mask, broadcastable to (B, h, T, T).
    dropout
        The module, so that training mode is known.
    terms
        Up to h tensors (B, T, T), added to the logits of the last heads.

    Returns
    -------
    Tensor of shape (B, h, T, d).

    Notes
    -----
    Without terms this is PyTorch's fused attention, but for training with dropout on the CPU, where that
    falls back to one Bernoulli draw per probability. On the CPU the rest is one node of the graph that keeps
    the probabilities and two bytes per probability for the dropout: O(B·h·T²) memory.
    """
    p = dropout.p if dropout.training else 0.0
    if query.device.type == "cpu" and (p or terms):
        return _Attention.apply(query, key, value, bias, p, *terms)
    if not terms:
        # Autocast would turn the mask into float16's −∞, which is NaN where every key is blocked.
        bias = bias.clamp(min=blocked_logit(query.dtype)).to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=p)
    return dropout(attention_weights(query, key, bias, terms)) @ value


def attention_weights(query: Tensor, key: Tensor, bias: Tensor, terms: tuple[Tensor, ...] = ()) -> Tensor:
    """The probabilities (B, h, T, T) of `attend`, before dropout."""
    logits = (query * query.shape[-1] ** -0.5) @ key.mT + bias
    if terms:
        first = query.shape[1] - len(terms)
        logits = torch.cat([logits[:, :first], logits[:, first:] + torch.stack(terms, dim=1)], dim=1)
    return torch.softmax(logits, dim=-1)


class _Attention(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, p: float, *terms: Tensor
    ) -> Tensor:
        ctx.scale = query.shape[-1] ** -0.5
        # Heads were split by views: one contiguous copy of each serves four products.
        query = torch.mul(query, ctx.scale, out=query.new_empty(query.shape))
        key, value = key.contiguous(), value.contiguous()
        logits = query @ key.mT
        ctx.heads = range(query.shape[1] - len(terms), query.shape[1])
        for head, term in zip(ctx.heads, terms, strict=True):
            logits[:, head] += term
        weights = torch.softmax(logits.add_(bias), dim=-1)
        lanes = draw_lanes(weights) if p else None
        ctx.p = p
        ctx.save_for_backward(query, key, value, weights, lanes)
        return thin(weights, lanes, p) @ value

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx, grad: Tensor):
        query, key, value, weights, lanes = ctx.saved_tensors
        grad = grad.contiguous()
        grad_value = thin(weights, lanes, ctx.p).mT @ grad
        grad_weights = thin(grad @ value.mT, lanes, ctx.p)
        logits = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_query = (logits @ key).mul_(ctx.scale)
        return grad_query, logits.mT @ query, grad_value, None, None, *(logits[:, head] for head in ctx.heads)


def _bias(blocked: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(blocked.shape, dtype=dtype, device=blocked.device)
    return zeros.masked_fill_(blocked, blocked_logit(dtype))
