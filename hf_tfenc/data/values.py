"""What the values of a row may be, kind by kind: a value becomes what a task gets, or is refused with a reason."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from datasets import List, Value

Kind = Literal["text", "label", "words", "tags", "number"]


class BadValue(ValueError):
    """What is wrong with a value, to follow "the column holds ...,"."""


@dataclass(frozen=True)
class Reader:
    """How the values of one column of the source are read: each becomes what the task gets, or is refused."""

    column: str
    kind: str
    type: str  # of the values that result: a type of `datasets`, in front of it "list " for a list of them
    names: tuple[str, ...] | None = None  # of a class label
    untyped: bool = False
    tag_type: str | None = None  # that most tags have, where they may differ

    @property
    def feature(self) -> Any:
        element = Value(self.type.removeprefix("list "))
        return List(element) if self.type.startswith("list ") else element

    def __call__(self, value: Any) -> Any:
        if self.kind == "text":
            return _text(value)
        if self.kind == "words":
            return _words(value)
        if self.kind == "tags":
            return self._tags(value)
        if self.kind == "number":
            return _number(_typed(value) if self.untyped else value)
        return self._label(value)

    def _label(self, value: Any) -> Any:
        found = _typed(value) if self.untyped and self.type != "string" else _named(value, self.names)
        kind = _label_type(found)
        if kind is None:
            raise BadValue("not a label")
        if self.type == "float64" and kind in ("float64", "int64"):
            return float(found)
        if kind == self.type or (kind == "list" and self.type.startswith("list ")):
            if isinstance(found, list) and len(set(found)) < len(found):
                raise BadValue(
                    "in which a label stands twice; it is a list of the row's labels, not of a mark for each"
                )
            return found
        raise BadValue(f"where most rows hold {LABEL_TYPES[self.type]}")

    def _tags(self, value: Any) -> list[str]:
        if not isinstance(value, list):
            raise BadValue("not a list of tags")
        tags = []
        for number, tag in enumerate(value, 1):
            named = _named(tag, self.names)
            kind = _label_type(named)
            if kind not in TAG_TYPES:
                raise BadValue(f"where tag {number} is {shown(tag)}")
            if self.tag_type in TAG_TYPES and kind != self.tag_type:
                raise BadValue(f"where tag {number} is {shown(tag)}, and most tags are {TAG_TYPES[self.tag_type]}")
            tags.append(str(named))
        return tags


LABEL_TYPES = {
    "bool": "true or false",
    "int64": "an integer",
    "float64": "a number",
    "string": "a string",
    "list int64": "a list of integers",
    "list string": "a list of strings",
}
TAG_TYPES = {"string": "strings", "int64": "integers"}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadValue("not a string")
    if not value.strip():
        raise BadValue("which has no text")
    return value


def _words(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise BadValue("not a list of words")
    for number, word in enumerate(value, 1):
        if not isinstance(word, str) or not word:
            raise BadValue(f"where word {number} is {shown(word)}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise BadValue("not a number")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _named(value: Any, names: tuple[str, ...] | None) -> Any:
    """The names of class labels; None for -1, which stands for no label."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(element, names) for element in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _typed(cell: Any) -> Any:
    """The number that a cell of a table of strings shows, or the string. 007 is no number."""
    text = cell.strip() if isinstance(cell, str) else ""
    if re.fullmatch(r"[+-]?(0|[1-9][0-9]{,17})", text):  # longer than a 64-bit integer is a name
        return int(text)
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) and not re.match(
        r"[+-]?(0[0-9]|[0-9]{19})", text
    ):
        return float(text)
    return cell


def _label_type(value: Any) -> str | None:
    """The type of a label, "list" for an empty list, None for what is no label."""
    if isinstance(value, list):
        types = {_label_type(element) for element in value}
        return "list" if not types else f"list {types.pop()}" if types in ({"int64"}, {"string"}) else None
    if isinstance(value, float):
        return "float64" if math.isfinite(value) else None
    if isinstance(value, str):
        return "string" if value.strip() else None
    if isinstance(value, bool):
        return "bool"
    return "int64" if isinstance(value, int) and abs(value) < 2**63 else None


def commonest_label_type(values: Iterable[Any], reader: Reader) -> str | None:
    """The type that most labels have, integers counting as numbers; None where no value is a label."""
    counts: Counter[str] = Counter()
    for value in values:
        counts[_label_type(_typed(value) if reader.untyped else _named(value, reader.names)) or ""] += 1
    del counts[""]
    if counts["float64"]:
        counts["float64"] += counts.pop("int64", 0)
    empty_lists = counts.pop("list", 0)
    if not counts.total():
        return "list string" if empty_lists else None
    return counts.most_common(1)[0][0]


def shown(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"
