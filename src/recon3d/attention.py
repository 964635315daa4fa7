"""Scaled dot-product attention, by whichever way is fastest where the tensors are.

Shapes: B pairs, H heads, N tokens, C channels of one head.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

_PIECE_BYTES = 4_000_000
"""Of scores that one thread makes before it uses them: they stay in its cache. Measured."""

_KEPT_BYTES = 64_000_000
"""Of scores that a layer keeps for the backward pass; where they are more, the fused kernel."""


def attend(
    query: Float[Tensor, "B H Nq C"],
    key: Float[Tensor, "B H Nk C"],
    value: Float[Tensor, "B H Nk C"],
) -> Float[Tensor, "B H Nq C"]:
    """Return the values averaged with the weights softmax(query key^T / sqrt(C)).

    On processors torch's fused kernel multiplies in fp32 whatever it is given. In bf16, plain
    products of pieces that stay in the cache are 2.5 times as fast; the scores are rounded to bf16.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        if not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)):
            return _in_pieces(query, key, value)
        if query.shape[:-1].numel() * key.shape[-2] * query.itemsize <= _KEPT_BYTES:
            scores = (query * query.shape[-1] ** -0.5) @ key.mT
            return scores.softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def _in_pieces(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    n_pairs, n_heads, n_queries, _ = query.shape
    n_keys = key.shape[-2]
    query = (query * query.shape[-1] ** -0.5).flatten(0, 1)
    key, value = key.flatten(0, 1).mT, value.flatten(0, 1)
    out = torch.empty_like(query)
    # a compiled block cannot ask
    n_threads = 1 if torch.compiler.is_compiling() else torch.get_num_threads()
    rows_at_once = max(1, _PIECE_BYTES * n_threads // (n_keys * query.itemsize))
    heads = max(1, rows_at_once // n_queries)
    for head in range(0, len(query), heads):
        some = slice(head, head + heads)
        for row in range(0, n_queries, rows_at_once):
            rows = slice(row, row + rows_at_once)
            weights = (query[some, rows] @ key[some]).softmax(dim=-1)
            out[some, rows] = weights @ value[some]
    return out.unflatten(0, (n_pairs, n_heads))
