"""Scores of classes and numbers. All of them are exact in the order of the rows: counts, and sums rounded once."""

import math

import numpy as np

LAST_BITS = 1e-5  # of a float32, as a share of it: a hundred times what it resolves


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """How often label i was called j: (classes, classes), from two arrays (rows,)."""
    pairs = labels.astype(np.int64) * classes + predictions
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def f1(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and recall, class by class; 0 where a class is neither there nor predicted."""
    return 2 * right / np.maximum(predicted + actual, 1)


def class_scores(labels: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracy, macro F1 (over the classes that occur) and Matthews correlation of one class a row, each (rows,).

    Matthews correlation of several classes is Gorodkin's (2004). Micro F1 is the accuracy here.
    """
    table = confusion_matrix(labels, predictions, classes)
    right, actual, predicted = np.diagonal(table), table.sum(axis=1), table.sum(axis=0)
    occurs = (actual + predicted) > 0
    rows, hits = int(table.sum()), int(right.sum())
    # Python's integers: the products of counts of many rows pass 64 bits.
    both, labelled, called = (
        sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))
        for x, y in ((actual, predicted), (actual, actual), (predicted, predicted))
    )
    spread = math.sqrt(rows**2 - labelled) * math.sqrt(rows**2 - called)
    return {
        "accuracy": hits / max(rows, 1),
        "macro_f1": _mean(f1(right, predicted, actual)[occurs]),
        "matthews_correlation": (hits * rows - both) / spread if spread else 0.0,
    }


def multi_label_scores(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Accuracy (rows that are right in every label), macro and micro F1; both arrays (rows, labels) of 0 and 1."""
    labels, predictions = labels.astype(bool), predictions.astype(bool)
    right, predicted, actual = (x.sum(axis=0) for x in (labels & predictions, predictions, labels))
    return {
        "accuracy": float((labels == predictions).all(axis=1).mean()) if len(labels) else 0.0,
        "macro_f1": _mean(f1(right, predicted, actual)),
        "micro_f1": float(f1(right.sum(), predicted.sum(), actual.sum())),
    }


def number_scores(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation of two arrays (rows,).

    Both are 0 where the predictions, of float32, vary in little but their last bits: these depend on how many rows are
    computed at once.
    """
    size = float(np.abs(predictions).max(initial=0))
    if not size or np.std(predictions) < LAST_BITS * size:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": pearson(labels, predictions),
        "spearman": pearson(ranks(labels), ranks(predictions)),
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    x, y = (values.astype(np.float64) - _mean(values) for values in (x, y))
    spread = math.sqrt(math.fsum(x * x)) * math.sqrt(math.fsum(y * y))
    return math.fsum(x * y) / spread if spread else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / max(len(values), 1)
