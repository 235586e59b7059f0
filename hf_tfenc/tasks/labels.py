"""Names of labels, and their numbers: learned from the training split, never from another."""

from collections.abc import Iterable
from typing import Any

from datasets import Dataset, List
from transformers import PreTrainedConfig

from .task import RowError

SHOWN = 10  # names in an error message
SUSPICIOUS = 100  # labels; more than this, and hardly a row for each, are no labels


class Labels:
    """Label names in the order of their numbers."""

    def __init__(self, names: list[str]):
        self.names = names
        self.ids = {name: number for number, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def learn(cls, rows: Dataset, column: str, option: str) -> "Labels":
        """The labels of a training split: numbers in their order, names in the alphabet's.

        Raises:
            ValueError: there are fewer than two, or so many that the column holds something else.
        """
        nested = isinstance(rows.features[column], List)
        values: set[Any] = set()
        total = 0
        for batch in rows.select_columns(column).iter(batch_size=1000):
            found = [value for row in batch[column] for value in row] if nested else batch[column]
            values.update(found)
            total += len(found)
        if len(values) < 2:
            only = f"only {next(iter(values))!r}" if values else "no label"
            raise ValueError(f"The training rows have {only} for a label, and two are needed to learn: see {option}.")
        if len(values) > SUSPICIOUS and len(values) > total / 2:
            row, value = next((row, value) for row, value in enumerate(rows[column]) if value != [])
            raise RowError(
                "train",
                row,
                f"the label {value!r} is of {len(values)} kinds in {total} training rows: name the column that holds "
                f"labels with {option}, or, for numbers, give --problem_type regression.",
            )
        return cls([name_of(value) for value in sorted(values, key=_order)])

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> "Labels":
        """The labels of a trained model."""
        return cls([config.id2label[number] for number in range(config.num_labels)])

    def check(self, rows: Dataset, column: str, split: str, limit: int | None = None) -> None:
        """See that these are all labels of a split.

        Args:
            limit: how many training rows were taken at most, the first ones; None for all

        Raises:
            RowError: the first row with one that the training split does not have; all such labels are named.
        """
        unknown: dict[str, int] = {}  # each with its first row
        nested, row = isinstance(rows.features[column], List), 0
        for batch in rows.select_columns(column).iter(batch_size=1000):
            for values in batch[column]:
                for name in map(name_of, values if nested else [values]):
                    if name not in self.ids:
                        unknown.setdefault(name, row)
                row += 1
        if unknown:
            first, *others = unknown
            neither = f", and neither {'is' if len(others) == 1 else 'are'} {_listed(map(repr, others))}"
            raise RowError(
                split,
                unknown[first],
                f"the label {first!r} is none of those of the training split ({_listed(self.names)})"
                f"{neither * bool(others)}: "
                + (
                    "mend the row, take it out, or add rows with this label to the training split."
                    if limit is None
                    else f"--max_train_samples {limit} takes the first training rows alone; take more, or shuffle them."
                ),
            )

    def numbers(self, values: Iterable[Any]) -> list[int]:
        """The number of each label of a row, which `check` has seen."""
        return [self.ids[name_of(value)] for value in values]

    def config_options(self) -> dict[str, Any]:
        """What a model's configuration says of them."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": dict(self.ids),
        }


def name_of(value: Any) -> str:
    """The name of a label: the string itself, or a number written without a needless ".0"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value  # numbers before names
