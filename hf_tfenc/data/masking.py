"""Which tokens are masked: a pure function of (seed, epoch, row).

No state and no order enter, so any number of workers and processes, and a run that was killed and resumed, see the
same masks. A row of a given length always has the same number of masks, and with whole words or spans at most that
number, fewer only where no word left is short enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

IGNORE_INDEX = -100
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest stay as they are (Devlin et al. 2019, 3.1)
SPAN_LENGTHS = np.arange(1, 11)  # in words, geometric with p = 0.2 up to 10: 3.8 on average (Joshi et al. 2020, 3.1)
SPAN_SHARES = 0.8**SPAN_LENGTHS / (0.8**SPAN_LENGTHS).sum()
SPANS_TRIED = 4  # for each word of a row


def row_generator(seed: int, epoch: int, row: int) -> np.random.Generator:
    """A random generator of its own for each row of each epoch: Philox, counter-based (Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, row, 0]))


def masked_tokens(candidates: int, probability: float) -> int:
    """How many of a row's ordinary tokens are masked; at least one is."""
    return max(1, round(probability * candidates))


@dataclass(frozen=True)
class TokenMasking:
    """BERT's masking: a chosen token becomes the mask token (80 %), a random one (10 %), or stays (10 %).

    Args:
        seed: of the run.
        probability: share of a row's ordinary tokens that are chosen; at least one token is.
        mask_token_id: the id that stands for a hidden token.
        is_special: (vocab,) bool; such tokens are never chosen, and never put in at random.
    """

    seed: int
    probability: float
    mask_token_id: int
    is_special: np.ndarray

    @cached_property
    def ordinary(self) -> np.ndarray:
        """The ids of all ordinary tokens."""
        return np.flatnonzero(~self.is_special)

    def __call__(
        self, input_ids: np.ndarray, epoch: int, row: int, word_starts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs with masks, and labels: the original id where a token was chosen, -100 elsewhere. Both (length,).

        Args:
            word_starts: (length,) bool, tokens that begin a word; where it is None, each does
        """
        inputs, labels = input_ids.astype(np.int64), np.full(len(input_ids), IGNORE_INDEX, dtype=np.int64)
        candidates = np.flatnonzero(~self.is_special[inputs])
        if not len(candidates):
            return inputs, labels
        random = row_generator(self.seed, epoch, row)
        count = masked_tokens(len(candidates), self.probability)
        chosen, unit = self.choose(candidates, count, random, word_starts)
        labels[chosen] = inputs[chosen]
        # Drawn for each unit: shares rounded row by row would, in short rows, never be 10 %.
        fate = random.random(unit[-1] + 1)[unit]
        replaced = chosen[(fate >= MASKED_SHARE) & (fate < MASKED_SHARE + RANDOM_SHARE)]
        inputs[chosen[fate < MASKED_SHARE]] = self.mask_token_id
        inputs[replaced] = random.choice(self.ordinary, size=len(replaced))
        return inputs, labels

    def label_row(self, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The same for an encoded row."""
        return self(row["input_ids"], row["epoch"], row["row"], row.get("word_starts"))

    def choose(
        self, candidates: np.ndarray, count: int, random: np.random.Generator, word_starts: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of the places `candidates` are masked, and for each the number of the unit that shares its fate."""
        return random.permutation(candidates)[:count], np.arange(count)


class WholeWordMasking(TokenMasking):
    """All sub-words of a chosen word are masked, each with a fate of its own, as in BERT's whole-word models."""

    def choose(
        self, candidates: np.ndarray, count: int, random: np.random.Generator, word_starts: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        words = split_words(candidates, word_starts)
        chosen: list[int] = []
        for index in random.permutation(len(words)):
            if len(chosen) + len(words[index]) <= count:
                chosen += words[index]
            if len(chosen) == count:
                break
        return _places(chosen or words[0][:count])


class SpanMasking(TokenMasking):
    """SpanBERT's masking (Joshi et al. 2020): spans of whole words, of geometric length; a span has one fate."""

    def choose(
        self, candidates: np.ndarray, count: int, random: np.random.Generator, word_starts: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        words = split_words(candidates, word_starts)
        tries = SPANS_TRIED * len(words)
        lengths = random.choice(SPAN_LENGTHS, size=tries, p=SPAN_SHARES).tolist()
        chosen: list[int] = []
        units: list[int] = []
        masked: set[int] = set()
        starts = random.integers(len(words), size=tries).tolist()
        for unit, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            for index in range(start, min(start + length, len(words))):
                if index in masked or len(chosen) + len(words[index]) > count:
                    break
                masked.add(index)
                chosen += words[index]
                units += [unit] * len(words[index])
            if len(chosen) == count:
                break
        return _places(chosen or words[0][:count], units)


MASKINGS: dict[str, type[TokenMasking]] = {
    "token": TokenMasking,
    "whole-word": WholeWordMasking,
    "span": SpanMasking,
}


def split_words(places: np.ndarray, word_starts: np.ndarray | None) -> list[list[int]]:
    """The places of ordinary tokens word by word. A special token between two of them ends a word."""
    if word_starts is None:
        return [[place] for place in places.tolist()]
    begins = word_starts[places].astype(bool)
    begins[1:] |= np.diff(places) > 1
    return [part.tolist() for part in np.split(places, np.flatnonzero(begins[1:]) + 1)]


def _places(chosen: list[int], units: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    return np.array(chosen), np.array(units) if units else np.arange(len(chosen))
