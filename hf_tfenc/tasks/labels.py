"""Names of labels, and their numbers: learned from the training split, never from another."""

from collections.abc import Iterable
from typing import Any

from datasets import Dataset, List
from transformers import PreTrainedConfig

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
            raise ValueError(
                f"The labels of {total} training rows are of {len(values)} kinds, such as {min(values, key=str)!r}: "
                f"name the column that holds labels with {option}, or, for numbers, give --problem_type regression."
            )
        return cls([name_of(value) for value in sorted(values, key=_order)])

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> "Labels":
        """The labels of a trained model."""
        return cls([config.id2label[number] for number in range(config.num_labels)])

    def numbers(self, values: Iterable[Any], where: str) -> list[int]:
        """The number of each label of a row.

        Raises:
            ValueError: a label that the training split does not have; `where` names split and row.
        """
        names = [name_of(value) for value in values]
        for name in names:
            if name not in self.ids:
                known = ", ".join(self.names[:SHOWN]) + (" ..." if len(self) > SHOWN else "")
                raise ValueError(
                    f"{where}: the label {name!r} is none of those of the training split ({known}): mend the row, "
                    "take it out, or add rows with this label to the training split."
                )
        return [self.ids[name] for name in names]

    def config_options(self) -> dict[str, Any]:
        """What a model's configuration says of them."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": dict(self.ids),
        }


def name_of(value: Any) -> str:
    """The name of a label: the string itself, or a number written without a needless ".0"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value  # numbers before names
