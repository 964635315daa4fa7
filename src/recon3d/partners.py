"""For every descriptor of one set the most similar one of another, and the other way round.

Tens of thousands are compared with as many, so finding the largest of all products takes as long as
the products themselves. Only the largest of every block is looked for, and within its block the
best one afterwards.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from recon3d.config import Precision
from recon3d.device import resolve_precision

_BLOCK = 128


def best_partners(
    first: Float[Tensor, "n_i value"], second: Float[Tensor, "n_j value"]
) -> tuple[Int64[Tensor, " n_i"], Int64[Tensor, " n_j"]]:
    """Return of every row of `first` the best row of `second`, and of every one of that the best.

    Best is the largest product. Where the processor has bf16, blocks are told apart in bf16: of
    rows in two blocks that differ by less than its rounding, either may come out.

    Args:
        first: rows of length 1, at least one.
        second: likewise.
    """
    dtype = resolve_precision(Precision.AUTO, torch.device("cpu"))
    n_blocks = -(-len(second) // _BLOCK)
    filled = torch.arange(n_blocks * _BLOCK).clamp_max(len(second) - 1)
    columns = second.to(dtype)[filled].T
    block_of_i = torch.empty(len(first), dtype=torch.int64)
    block_of_j = torch.zeros(len(second), dtype=torch.int64)
    largest = torch.full((len(second),), -torch.inf, dtype=dtype)
    for k, rows in enumerate(torch.arange(len(first)).split(_BLOCK)):
        product = first[rows].to(dtype) @ columns
        block_of_i[rows] = product.unflatten(1, (n_blocks, _BLOCK)).amax(2).argmax(1)
        of_block = product.amax(0)[: len(second)]
        block_of_j.masked_fill_(of_block > largest, k)
        largest = torch.maximum(largest, of_block)
    return _best_of_block(first, second, block_of_i), _best_of_block(second, first, block_of_j)


def _best_of_block(
    rows: Float[Tensor, "row value"],
    others: Float[Tensor, "other value"],
    block: Int64[Tensor, " row"],
) -> Int64[Tensor, " row"]:
    """Return for each row the best of the others that are in its block."""
    best = torch.empty(len(rows), dtype=torch.int64)
    for k in block.unique().tolist():
        own = (block == k).nonzero().flatten()
        first = k * _BLOCK
        best[own] = (rows[own] @ others[first : first + _BLOCK].T).argmax(1) + first
    return best
