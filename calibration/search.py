"""Budget search: the fewest of the most sensitive layers kept as exported so that a loss on held-out inputs holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    kept: int  # the most sensitive so many layers were left as exported
    loss: float


@dataclass(frozen=True)
class SearchResult:
    """The fewest layers to keep.

    Attributes:
        layers: how many there are.
        kept: those that stay as exported, the most sensitive first.
        loss: with these kept, of ``bits`` bits.
        tried: in the order of trying.
    """

    budget: float
    layers: int
    kept: tuple[str, ...]
    loss: float
    bits: int
    tried: tuple[Tried, ...]


def fewest_kept(
    ranked: Sequence[str], loss: Callable[[frozenset[str]], float], budget: float, bits: int
) -> SearchResult:
    """Bisect over how many of ``ranked`` (the most sensitive first) stay as exported.

    The loss need not fall with every layer that is kept: what is returned was itself measured to be within the budget.
    With all of them kept nothing is quantised, and the loss is 0.
    """
    tried: dict[int, float] = {len(ranked): 0.0}

    def holds(kept: int) -> bool:
        if kept not in tried:
            tried[kept] = loss(frozenset(ranked[:kept]))
        return tried[kept] <= budget

    low, high = (-1, 0) if holds(0) else (0, len(ranked))  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    steps = tuple(Tried(kept, value) for kept, value in tried.items() if kept < len(ranked) or kept == high)
    return SearchResult(budget, len(ranked), tuple(ranked[:high]), tried[high], bits, steps)
