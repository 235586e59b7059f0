"""Which tokens are masked: a pure function of (seed, epoch, row), and BERT's shares."""

import numpy as np
import pytest

from hf_tfenc.data.batching import EvaluationBins
from hf_tfenc.data.masking import IGNORE_INDEX, TokenMasking

VOCAB, MASK = 1000, 4
SPECIAL = np.arange(VOCAB) < 5
ROW = np.concatenate([[2], np.random.default_rng(0).integers(5, VOCAB, 62), [3]])


def masking(seed=0, probability=0.15):
    return TokenMasking(seed, probability, MASK, SPECIAL)


def test_masks_depend_on_seed_epoch_and_row_alone():
    def masked(seed, epoch, row):
        return [array.tolist() for array in masking(seed)(ROW, epoch, row)]

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (2**32 - 1, EvaluationBins.EPOCH, 10**9)]
    results = [masked(*key) for key in keys]
    np.random.seed(0)
    assert [masked(*key) for key in reversed(keys)] == results[::-1]
    assert len({str(labels) for _, labels in results}) == len(keys)


@pytest.mark.parametrize("probability", [0.01, 0.15, 0.4])
@pytest.mark.parametrize("length", [1, 2, 10, 62])
def test_count_is_fixed_by_length(length, probability):
    row = np.concatenate([[2], ROW[1 : length + 1], [3]])
    counts = {(masking(0, probability)(row, 0, index)[1] >= 0).sum() for index in range(20)}
    assert counts == {max(1, round(probability * length))}


@pytest.mark.parametrize("length", [6, 20, 62])  # in short rows too, where shares of the count would be rounded away
def test_shares_are_those_of_bert(length):
    row = np.concatenate([[2], ROW[1 : length + 1], [3]])
    inputs, labels = map(np.array, zip(*(masking()(row, 0, index) for index in range(20_000 // length)), strict=True))
    chosen = labels >= 0
    hidden, kept = inputs[chosen] == MASK, inputs[chosen] == labels[chosen]
    assert hidden.mean() == pytest.approx(0.8, abs=0.03)
    assert kept.mean() == pytest.approx(0.1, abs=0.03)
    assert (~hidden & ~kept).mean() == pytest.approx(0.1, abs=0.03)
    where = chosen[:, 1:-1].mean(axis=0)  # every place alike
    assert where.min() > 0.5 * where.mean() and where.max() < 2 * where.mean()


def test_labels_are_the_original_ids_and_the_rest_stays():
    given = ROW.astype(np.uint16)
    inputs, labels = masking(probability=0.5)(given, 0, 0)
    chosen = labels != IGNORE_INDEX
    assert (given == ROW).all() and inputs.dtype == labels.dtype == np.int64
    assert (labels[chosen] == ROW[chosen]).all() and (inputs[~chosen] == ROW[~chosen]).all()


def test_special_tokens_are_neither_chosen_nor_put_in():
    row, is_special = np.array([2, 1, 5, 1, 6, 3, 0, 0]), np.arange(8) < 5
    seen = set()
    for index in range(1000):
        inputs, labels = TokenMasking(0, 0.9, MASK, is_special)(row, 0, index)
        assert set(np.flatnonzero(labels >= 0)) == {2, 4}
        seen |= set(inputs[[2, 4]])
    assert seen == {MASK, 5, 6, 7}


def test_a_row_of_special_tokens_alone_is_left_as_it_is():
    inputs, labels = masking()(np.array([2, 3]), 0, 0)
    assert inputs.tolist() == [2, 3] and labels.tolist() == [IGNORE_INDEX] * 2
