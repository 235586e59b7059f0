"""How well the right texts are found among all candidates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

QUERIES_AT_ONCE = 256  # so that memory does not grow with their number times that of the candidates
CUT = 10  # of NDCG

Candidates = list[list[int]]  # for each query some of them


@dataclass
class Rankings:
    """The ranks, from 1, of the right candidates of each query, and the mean cross-entropy of finding them."""

    ranks: list[list[int]]
    loss: float

    def scores(self) -> dict[str, float]:
        """Accuracy (the first is right), mean reciprocal rank of the first right one, and NDCG@10, over the queries."""
        count = max(len(self.ranks), 1)
        return {
            "accuracy": sum(ranks[0] == 1 for ranks in self.ranks) / count,
            "mrr": math.fsum(1 / ranks[0] for ranks in self.ranks) / count,
            "ndcg_at_10": math.fsum(map(ndcg, self.ranks)) / count,
        }


def rank(
    similarities: Callable[[slice], np.ndarray], relevant: Candidates, ignored: Candidates, temperature: float
) -> Rankings:
    """Rank the candidates of each query, a tie always to the disadvantage of the right one.

    Args:
        similarities: some queries -> (queries, candidates)
        relevant: the right ones, at least one for each query
        ignored: others that are not wrong either
        temperature: similarities are divided by it for the loss, in which other right candidates do not count
    """
    ranks, losses = [], []
    for start in range(0, len(relevant), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        for row, right, neither in zip(similarities(part), relevant[part], ignored[part], strict=True):
            row = row.astype(np.float64)
            best = np.sort(row[right])[::-1]
            others = np.sort(np.delete(row, right + neither))
            before = len(others) - np.searchsorted(others, best, side="left")
            ranks.append([int(wrong) + place for place, wrong in enumerate(before, 1)])
            scaled = others / temperature
            losses += [_cross_entropy(value / temperature, scaled) / len(right) for value in best]
    return Rankings(ranks, math.fsum(losses) / max(len(relevant), 1))


def ndcg(ranks: list[int]) -> float:
    """Normalized discounted cumulative gain over the first ten (Järvelin & Kekäläinen 2002), right or wrong alone."""
    gain = math.fsum(1 / math.log2(1 + place) for place in ranks if place <= CUT)
    return gain / math.fsum(1 / math.log2(1 + place) for place in range(1, min(len(ranks), CUT) + 1))


def _cross_entropy(right: float, others: np.ndarray) -> float:
    top = max(right, others[-1] if len(others) else right)
    return float(top - right + np.log(np.exp(right - top) + np.exp(others - top).sum()))
