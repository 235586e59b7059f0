"""Entities in BIO tags, and how well they are found (Tjong Kim Sang & De Meulder 2003)."""

from collections.abc import Iterable

Entity = tuple[str, int, int]  # type, first word, one past the last


def are_bio(tags: Iterable[str]) -> bool:
    """Whether tags are of the kinds O, B-type and I-type (IOB2), with at least one beginning."""
    tags = list(tags)
    return any(tag.startswith("B-") for tag in tags) and all(tag == "O" or tag[:2] in ("B-", "I-") for tag in tags)


def entities(tags: list[str]) -> list[Entity]:
    """The entities of one row of tags.

    As in CoNLL's own measure, an I- that continues nothing of its type begins an entity.
    """
    found: list[Entity] = []
    start, kind = 0, ""  # of the entity that the last word belongs to, if any
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        continues = prefix == "I" and kind == name
        if kind and not continues:
            found.append((kind, start, place))
        if not continues:
            start, kind = place, name if prefix in ("B", "I") else ""
    return found


def entity_scores(labels: list[list[str]], predictions: list[list[str]]) -> dict[str, float]:
    """Precision, recall and F1 of entities, of which type and both ends must be right, over all rows of tags."""
    right = predicted = actual = 0
    for row, guess in zip(labels, predictions, strict=True):
        there, claimed = set(entities(row)), set(entities(guess))
        right, predicted, actual = right + len(there & claimed), predicted + len(claimed), actual + len(there)
    return {
        "precision": right / max(predicted, 1),
        "recall": right / max(actual, 1),
        "f1": 2 * right / max(predicted + actual, 1),
    }
