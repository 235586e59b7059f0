"""Models that only count, to hold a trained one against: tokens by themselves, between neighbours, shared by texts."""

import math
from collections.abc import Callable

import numpy as np

SMOOTHING = 0.1  # pseudo-count of an unseen event
GUESSES = 100_000  # between neighbours at most: a guess may take half a millisecond, and more hardly move the share


class UnigramModel:
    """Token frequencies, add-one smoothed.

    Args:
        counts: (vocab,), how often each token stands in the training text; special tokens 0
    """

    def __init__(self, counts: np.ndarray):
        self.log_probabilities = np.log((counts + 1) / (counts + 1).sum())

    def loss(self, targets: np.ndarray) -> float:
        """Mean cross-entropy of `targets` (tokens,), in nats."""
        return float(-self.log_probabilities[targets].mean())

    def accuracy(self, targets: np.ndarray) -> float:
        """Share of `targets` that are the commonest token."""
        return float((targets == self.log_probabilities.argmax()).mean())


class BigramModel:
    """Guesses a token from the one before and the one after it.

    The guess is the token w with the greatest P(left, w) P(w, right) / P(w), probabilities by counting and smoothed:
    Bayes' rule where the two neighbours are taken as independent given w. A hidden neighbour says nothing.

    Args:
        tokens: (n,), the training text; a pair with a special token on either side counts like any other
        counts: (vocab,), token frequencies
        is_ordinary: (vocab,) bool, tokens that may be guessed
    """

    def __init__(self, tokens: np.ndarray, counts: np.ndarray, is_ordinary: np.ndarray):
        self.vocab_size = len(counts)
        pairs = tokens[:-1].astype(np.int64) * self.vocab_size + tokens[1:]
        self.after = _Table(*np.unique(pairs, return_counts=True), self.vocab_size)
        pairs = tokens[1:].astype(np.int64) * self.vocab_size + tokens[:-1]
        self.before = _Table(*np.unique(pairs, return_counts=True), self.vocab_size)
        self.counts, self.is_ordinary = counts, is_ordinary
        self.fallback = int(np.where(is_ordinary, counts, -1).argmax())

    def guess(self, left: int, right: int, hidden: int) -> int:
        """The likeliest token between `left` and `right`, either of which may be the id of a `hidden` token."""
        score = np.zeros(self.vocab_size)
        seen = False
        for neighbour, table in ((left, self.after), (right, self.before)):
            if neighbour != hidden:
                tokens, counts = table.row(neighbour)
                row = np.full(self.vocab_size, SMOOTHING)
                row[tokens] += counts
                score += np.log(row)
                seen = seen or len(tokens) > 0
        if not seen:
            return self.fallback
        if hidden not in (left, right):
            score -= np.log(self.counts + SMOOTHING)
        return int(np.where(self.is_ordinary, score, -np.inf).argmax())

    def accuracy(self, inputs: np.ndarray, labels: np.ndarray, hidden: int) -> float:
        """Share of labelled positions guessed right, or of `GUESSES` of them, spread evenly.

        Args:
            inputs: (n,), tokens as the encoder sees them, rows one after another
            labels: (n,), the token that belongs there, negative where none is asked for
        """
        positions = np.flatnonzero(labels >= 0)
        positions = positions[:: max(1, math.ceil(len(positions) / GUESSES))]
        inputs = np.pad(inputs, 1, constant_values=hidden)
        right = sum(self.guess(inputs[p], inputs[p + 2], hidden) == labels[p] for p in positions)
        return right / max(len(positions), 1)

    def accuracy_from_left(self, left: np.ndarray, targets: np.ndarray) -> float:
        """Share of `targets` guessed right from the token before each of them alone; both (n,)."""
        hidden = -1
        tokens, inverse = np.unique(left, return_inverse=True)
        guesses = np.array([self.guess(token, hidden, hidden) for token in tokens.tolist()])
        return float((guesses[inverse] == targets).mean())


class _Table:
    """Counts of pairs, by their first token, in sorted arrays: as large as the text, not as the vocabulary squared."""

    def __init__(self, pairs: np.ndarray, counts: np.ndarray, vocab_size: int):
        self.tokens, self.counts = pairs % vocab_size, counts
        self.starts = np.searchsorted(pairs // vocab_size, np.arange(vocab_size + 1))

    def row(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that stood beside `token`, and how often."""
        span = slice(self.starts[token], self.starts[token + 1])
        return self.tokens[span], self.counts[span]


class TfIdf:
    """Texts as weighted counts of their tokens, compared by cosine similarity (Salton & Buckley 1988).

    A token's weight is its count times 1 + ln((1 + texts) / (1 + texts that have it)).

    Args:
        texts: the training texts, each an array of tokens
    """

    def __init__(self, vocab_size: int, texts: list[np.ndarray]):
        have = np.zeros(vocab_size)
        for tokens in texts:
            have[np.unique(tokens)] += 1
        self.rarity = 1 + np.log((1 + len(texts)) / (1 + have))

    def vector(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The different tokens of a text, and their weights, of unit length."""
        different, counts = np.unique(tokens, return_counts=True)
        weights = counts * self.rarity[different]
        return different, weights / max(np.linalg.norm(weights), 1e-12)

    def similarities(self, texts: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """A function of a text's tokens: its similarity to each of `texts`, (texts,)."""
        vectors = [self.vector(tokens) for tokens in texts]
        tokens = np.concatenate([different for different, _ in vectors])
        order = np.argsort(tokens, kind="stable")
        weights = np.concatenate([weights for _, weights in vectors])[order]
        owners = np.repeat(np.arange(len(texts)), [len(different) for different, _ in vectors])[order]
        starts = np.searchsorted(tokens[order], np.arange(len(self.rarity) + 1))

        def similarity(text: np.ndarray) -> np.ndarray:
            result = np.zeros(len(texts))
            for token, weight in zip(*self.vector(text), strict=True):
                having = slice(starts[token], starts[token + 1])
                result[owners[having]] += weight * weights[having]  # a text has each token once here
            return result

        return similarity
