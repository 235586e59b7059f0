"""Which tokens are masked: a pure function of (seed, epoch, row).

No state and no order enter, so any number of workers and processes, and a run that was killed and resumed, see the
same masks. A row of a given length always has the same number of masks.
"""

from dataclasses import dataclass

import numpy as np

IGNORE_INDEX = -100
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest stay as they are (Devlin et al. 2019, 3.1)


def row_generator(seed: int, epoch: int, row: int) -> np.random.Generator:
    """A random generator of its own for each row of each epoch: Philox, counter-based (Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, row, 0]))


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

    def __call__(self, input_ids: np.ndarray, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs with masks, and labels: the original id where a token was chosen, -100 elsewhere. Both (length,)."""
        inputs, labels = input_ids.astype(np.int64), np.full(len(input_ids), IGNORE_INDEX, dtype=np.int64)
        candidates = np.flatnonzero(~self.is_special[inputs])
        if not len(candidates):
            return inputs, labels
        random = row_generator(self.seed, epoch, row)
        count = max(1, round(self.probability * len(candidates)))
        chosen = random.permutation(candidates)[:count]
        labels[chosen] = inputs[chosen]
        # Drawn for each token: shares rounded row by row would, in short rows, never be 10 %.
        fate = random.random(count)
        replaced = chosen[(fate >= MASKED_SHARE) & (fate < MASKED_SHARE + RANDOM_SHARE)]
        inputs[chosen[fate < MASKED_SHARE]] = self.mask_token_id
        inputs[replaced] = random.choice(np.flatnonzero(~self.is_special), size=len(replaced))
        return inputs, labels
