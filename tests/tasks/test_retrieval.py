"""Ranks and their scores, against scikit-learn's and the obvious count."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_tfenc.tasks import retrieval
from hf_tfenc.tasks.retrieval import ndcg, rank

random = np.random.default_rng(0)
SIMILARITIES = random.normal(size=(30, 40)).astype(np.float32)
RELEVANT = [sorted(random.choice(40, size=random.integers(1, 4), replace=False).tolist()) for _ in range(30)]


def ranked(similarities=SIMILARITIES, relevant=RELEVANT, temperature=0.5):
    return rank(lambda part: similarities[part], relevant, [[]] * len(relevant), temperature)


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    truth = np.zeros(SIMILARITIES.shape)
    for row, right in enumerate(RELEVANT):
        truth[row, right] = 1
    scores = ranked().scores()
    assert scores["ndcg_at_10"] == pytest.approx(metrics.ndcg_score(truth, SIMILARITIES, k=10))
    first = [
        min((SIMILARITIES[row] >= SIMILARITIES[row, c]).sum() for c in right) for row, right in enumerate(RELEVANT)
    ]
    assert scores["mrr"] == pytest.approx(np.mean(1 / np.array(first)))
    assert scores["accuracy"] == np.mean([SIMILARITIES[row].argmax() in right for row, right in enumerate(RELEVANT)])


def test_one_right_candidate_each_is_plain_cross_entropy():
    right = random.integers(40, size=30)
    loss = F.cross_entropy(torch.from_numpy(SIMILARITIES) / 0.5, torch.from_numpy(right)).item()
    assert ranked(relevant=right[:, None].tolist()).loss == pytest.approx(loss, rel=1e-6)


def test_ties_count_against_the_model():
    found = ranked(np.ones((2, 5), dtype=np.float32), [[0], [1, 2]])
    assert found.ranks == [[5], [4, 5]] and found.scores()["accuracy"] == 0


def test_memory_is_that_of_a_few_queries(monkeypatch):
    whole = ranked()
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", 7)
    seen = []
    parts = rank(lambda part: seen.append(part) or SIMILARITIES[part], RELEVANT, [[]] * 30, 0.5)
    assert parts == whole and len(seen) == 5


def test_ndcg_by_hand():
    assert ndcg([1]) == 1 and ndcg([3]) == 0.5 and ndcg([11]) == 0
    assert ndcg([1, 2, 12]) == pytest.approx((1 + 1 / np.log2(3)) / (1 + 1 / np.log2(3) + 0.5))
    assert ndcg(list(range(1, 15))) == 1
