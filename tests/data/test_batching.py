"""Which rows make which batch: every row once, and the same rows in a step however it is split."""

import numpy as np
import pytest

from hf_tfenc.data.batching import EvaluationBins, PaddedBins, TrainingBins, evaluation_bins

LENGTHS = np.random.default_rng(0).integers(4, 128, size=3001)


def padding(bins):
    return sum(LENGTHS[rows].max() * len(rows) - LENGTHS[rows].sum() for rows in bins)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 8 * 64, 8 * 64 + 1, 3001])
@pytest.mark.parametrize(
    "bins_of", [lambda lengths: PaddedBins(8)(lengths, seed=1, epoch=2), lambda lengths: evaluation_bins(lengths, 8)]
)
def test_every_row_is_in_one_bin(rows, bins_of):
    bins = bins_of(LENGTHS[:rows])
    assert sorted(np.concatenate(bins)) == list(range(rows))
    assert len(bins) == -(-rows // 8)
    assert sorted(map(len, bins))[1:] == [8] * (len(bins) - 1)  # one may have fewer


def test_an_epoch_is_a_pure_function():
    def bins(seed, epoch, batch_size=8):
        return [rows.tolist() for rows in PaddedBins(batch_size)(LENGTHS, seed, epoch)]

    first = bins(1, 0)
    np.random.seed(0)
    assert bins(1, 0) == first
    for other in (bins(1, 1), bins(2, 0), bins(2**32 - 1, 10**6)):
        shared = set(map(frozenset, other)) & set(map(frozenset, first))
        assert len(shared) < len(first) / 20  # other company, not the old bins in another order


def test_bins_hold_rows_of_similar_length_in_random_order():
    bins = PaddedBins(8)(LENGTHS, seed=0, epoch=0)
    at_random = np.split(np.random.default_rng(1).permutation(len(LENGTHS)), range(8, len(LENGTHS), 8))
    assert padding(bins) < 0.1 * padding(at_random)
    assert padding(evaluation_bins(LENGTHS, 8)) < padding(bins)
    means = [LENGTHS[rows].mean() for rows in bins]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.15  # neither sorted nor sorted pool by pool


@pytest.mark.parametrize("rows", [3001, 8 * 8 * 3, 5])
def test_a_step_sees_the_same_rows_however_it_is_split(rows):
    def steps(num_processes, accumulation_steps):
        """The rows of each step, and the sizes of all bins in the order of the epoch."""
        samplers = [
            TrainingBins(LENGTHS[:rows], PaddedBins(8), 3, accumulation_steps, process, num_processes)
            for process in range(num_processes)
        ]
        for sampler in samplers:
            sampler.epoch = 5
        bins = [list(sampler) for sampler in samplers]
        assert [len(own) for own in bins] == [len(sampler) for sampler in samplers] == [len(bins[0])] * num_processes
        assert samplers[0].steps(0) * accumulation_steps == len(bins[0])
        per_step = [
            sorted(row for own in bins for micro in own[start : start + accumulation_steps] for row in micro)
            for start in range(0, len(bins[0]), accumulation_steps)
        ]
        return per_step, [len(own[index]) for index in range(len(bins[0])) for own in bins]

    expected, sizes = steps(1, 8)
    assert sorted(pair for rows_of_step in expected for pair in rows_of_step) == [(5, row) for row in range(rows)]
    filled = -(-rows // 8)
    assert all(sizes[:filled]) and not any(sizes[filled:]) and len(sizes) - filled < 8
    for num_processes, accumulation_steps in ((2, 4), (4, 2), (8, 1)):
        assert steps(num_processes, accumulation_steps) == (expected, sizes)


def test_training_bins_follow_their_epoch():
    sampler = TrainingBins(LENGTHS[:100], PaddedBins(8), seed=0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.epoch = 1
    assert list(sampler) != first and {epoch for rows in sampler for epoch, _ in rows} == {1}


@pytest.mark.parametrize("num_processes", [1, 2, 3, 500])
def test_evaluation_sees_every_row_once(num_processes):
    samplers = [EvaluationBins(LENGTHS, 8, process, num_processes) for process in range(num_processes)]
    seen = [pair for sampler in samplers for rows in sampler for pair in rows]
    assert sorted(seen) == [(EvaluationBins.EPOCH, row) for row in range(len(LENGTHS))]
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
    assert max(map(len, samplers)) - min(map(len, samplers)) <= 1
