"""Entities in BIO tags, by hand and against seqeval."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tfenc.tasks.entities import are_bio, entities, entity_scores

TAGS = st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b", "I-a-b", "B-a-b"])
ROWS = st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=12), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-a I-a O", [("a", 0, 2)]),
        ("B-a B-a I-a", [("a", 0, 1), ("a", 1, 3)]),
        ("O B-a I-b", [("a", 1, 2), ("b", 2, 3)]),
        ("I-a I-a O I-b", [("a", 0, 2), ("b", 3, 4)]),
        ("B-a O I-a", [("a", 0, 1), ("a", 2, 3)]),
        ("O O B-a", [("a", 2, 3)]),
        ("", []),
    ],
)
def test_entities_by_hand(tags, found):
    assert entities(tags.split()) == found


def test_scores_by_hand():
    labels = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
    predictions = [["B-a", "I-a", "O", "B-a"], ["B-b", "O"]]
    assert entity_scores(labels, predictions) == {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3}
    assert set(entity_scores([["O"]], [["O"]]).values()) == {0}


@given(ROWS)
@settings(deadline=None, max_examples=150)
def test_scores_are_those_of_seqeval(rows):
    seqeval = pytest.importorskip("seqeval.metrics")
    labels, predictions = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    functions = {name: getattr(seqeval, f"{name}_score") for name in ("precision", "recall", "f1")}
    with warnings.catch_warnings(action="ignore"):  # of averages over nothing
        expected = {name: score(labels, predictions) for name, score in functions.items()}
    assert entity_scores(labels, predictions) == pytest.approx(expected)


@given(ROWS)
@settings(deadline=None, max_examples=50)
def test_entities_lie_one_after_another_and_hold_every_tag_but_o(rows):
    for row in rows:
        tags = [tag for tag, _ in row]
        held = [place for _, start, end in entities(tags) for place in range(start, end)]
        assert held == [place for place, tag in enumerate(tags) if tag != "O"]
        assert all({tags[place][2:] for place in range(start, end)} == {kind} for kind, start, end in entities(tags))


def test_what_is_bio():
    assert are_bio(["O", "B-a", "I-a"]) and are_bio(["B-a"])
    assert not are_bio(["NOUN", "VERB"]) and not are_bio(["O", "I-a"]) and not are_bio(["O", "B-a", "S-a"])
