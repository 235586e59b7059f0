"""Scores, against scikit-learn's and scipy's."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tfenc.tasks.scores import class_scores, multi_label_scores, number_scores, ranks

metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

CLASSES = 4
pairs = st.lists(st.tuples(*[st.integers(0, CLASSES - 1)] * 2), min_size=1, max_size=30)
numbers = st.lists(st.tuples(*[st.integers(-5, 5).map(lambda n: n / 2)] * 2), min_size=2, max_size=30)
several = st.lists(st.tuples(*[st.tuples(*[st.booleans()] * 3)] * 2), min_size=1, max_size=20)


@given(pairs)
@settings(deadline=None, max_examples=60)
def test_scores_of_classes(rows):
    labels, predictions = np.array(rows).T
    expected = {
        "accuracy": metrics.accuracy_score(labels, predictions),
        "macro_f1": metrics.f1_score(labels, predictions, average="macro", zero_division=0),
        "matthews_correlation": metrics.matthews_corrcoef(labels, predictions),
    }
    assert class_scores(labels, predictions, CLASSES) == pytest.approx(expected, abs=1e-12)


@given(several)
@settings(deadline=None, max_examples=60)
def test_scores_of_several_labels(rows):
    labels, predictions = np.array(rows).transpose(1, 0, 2)
    expected = {
        "accuracy": metrics.accuracy_score(labels, predictions),
        "macro_f1": metrics.f1_score(labels, predictions, average="macro", zero_division=0),
        "micro_f1": metrics.f1_score(labels, predictions, average="micro", zero_division=0),
    }
    assert multi_label_scores(labels, predictions) == pytest.approx(expected, abs=1e-12)


@given(numbers)
@settings(deadline=None, max_examples=60)
def test_scores_of_numbers(rows):
    x, y = np.array(rows).T
    scores = number_scores(x, y)
    if x.std() == 0 or y.std() == 0:
        assert scores == {"pearson": 0, "spearman": 0}  # scipy has no number for it
    else:
        expected = {"pearson": stats.pearsonr(x, y).statistic, "spearman": stats.spearmanr(x, y).statistic}
        assert scores == pytest.approx(expected, abs=1e-9)
    assert (ranks(x) == stats.rankdata(x)).all()


@given(numbers, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_the_order_of_rows_changes_no_bit(rows, random):
    rows = [(x / 3, y / 7) for x, y in rows]
    shuffled = random.sample(rows, len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert number_scores(*np.array(rows).T) == number_scores(*np.array(shuffled).T)


def test_many_rows_do_not_overflow():
    labels = np.arange(3).repeat(3_000_000)
    assert class_scores(labels, labels, 3) == pytest.approx({"accuracy": 1, "macro_f1": 1, "matthews_correlation": 1})


def test_no_rows_are_no_crash():
    empty = np.zeros(0, dtype=int)
    assert set(class_scores(empty, empty, 3).values()) == {0}
    assert set(number_scores(empty, empty).values()) == {0}
    assert set(multi_label_scores(np.zeros((0, 2)), np.zeros((0, 2))).values()) == {0}
