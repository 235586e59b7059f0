"""The count models, against the obvious way to count."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from hf_tfenc.tasks import count_models
from hf_tfenc.tasks.count_models import SMOOTHING, BigramModel, UnigramModel

VOCAB, HIDDEN = 12, 1
IS_ORDINARY = np.arange(VOCAB) >= 3
# Token 11 never occurs; 2 is special and does.
TOKENS = np.random.default_rng(0).choice([2, *range(3, 11)], p=[0.2, 0.3, *[0.5 / 7] * 7], size=400)
COUNTS = np.where(IS_ORDINARY, np.bincount(TOKENS, minlength=VOCAB), 0)


@pytest.fixture(scope="module")
def bigram():
    return BigramModel(TOKENS.astype(np.uint16), COUNTS, IS_ORDINARY)


def obvious_scores(left, right):
    """What each ordinary token scores between two neighbours."""
    pairs, counts = Counter(pairwise(TOKENS.tolist())), Counter(TOKENS.tolist())
    scores = {}
    for token in np.flatnonzero(IS_ORDINARY).tolist():
        score = 1.0
        if left != HIDDEN:
            score *= pairs[left, token] + SMOOTHING
        if right != HIDDEN:
            score *= pairs[token, right] + SMOOTHING
        if HIDDEN not in (left, right):
            score /= counts[token] + SMOOTHING
        scores[token] = score
    return scores


def test_bigram_model_guesses_the_likeliest_token(bigram):
    for left in range(1, VOCAB):
        for right in range(1, VOCAB):
            guess = bigram.guess(left, right, HIDDEN)
            if {left, right} <= {HIDDEN, 11}:  # nothing is known
                assert guess == COUNTS.argmax() == 3
            else:
                scores = obvious_scores(left, right)
                assert scores[guess] == pytest.approx(max(scores.values()))


def test_bigram_accuracy_is_over_labelled_positions(bigram):
    random = np.random.default_rng(1)
    inputs, labels = TOKENS[:100].copy(), np.full(100, -100)
    chosen = random.choice(100, size=40, replace=False)
    chosen[:2] = 0, 99  # with no neighbour on one side
    labels[chosen], inputs[chosen[::2]] = inputs[chosen], HIDDEN
    around = [HIDDEN, *inputs.tolist(), HIDDEN]
    right = [bigram.guess(around[i], around[i + 2], HIDDEN) == labels[i] for i in range(100) if labels[i] >= 0]
    assert 0 < sum(right) < len(right)
    assert bigram.accuracy(inputs, labels, HIDDEN) == sum(right) / len(right)
    assert bigram.accuracy(inputs, np.full(100, -100), HIDDEN) == 0


def test_bigram_model_beats_the_unigram_model_where_order_matters():
    tokens = np.tile([3, 4, 5, 6], 50)
    counts = np.bincount(tokens, minlength=VOCAB)
    inputs, labels = tokens.copy(), np.full(200, -100)
    labels[1::3], inputs[1::3] = tokens[1::3], HIDDEN
    assert BigramModel(tokens, counts, IS_ORDINARY).accuracy(inputs, labels, HIDDEN) == 1
    assert UnigramModel(counts).accuracy(labels[labels >= 0]) == pytest.approx(0.25, abs=0.02)


def test_unigram_model_is_the_frequencies():
    targets = np.array([3, 3, 7, 11])
    share = {token: (COUNTS[token] + 1) / (COUNTS + 1).sum() for token in range(VOCAB)}
    assert sum(share.values()) == pytest.approx(1)
    assert UnigramModel(COUNTS).loss(targets) == pytest.approx(-np.mean([np.log(share[t]) for t in targets]))
    assert UnigramModel(COUNTS).accuracy(targets) == 0.5


@pytest.mark.parametrize("guesses, made", [(400, 100), (100, 100), (99, 50), (30, 25)])
def test_of_many_positions_some_are_guessed_spread_evenly(bigram, monkeypatch, guesses, made):
    asked = []
    monkeypatch.setattr(count_models, "GUESSES", guesses)
    monkeypatch.setattr(bigram, "guess", lambda left, right, hidden: asked.append(right) or 5)
    labels = np.full(200, -100)
    labels[::2] = np.arange(100)
    right = bigram.accuracy(np.arange(200), labels, HIDDEN)
    assert asked == list(range(1, 200, 2))[:: 100 // made]
    assert right == (labels[::2][:: 100 // made] == 5).mean()
