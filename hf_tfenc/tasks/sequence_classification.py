"""Sequence classification: one label for a text or a pair of texts, several labels, or a number."""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, Features, List, Value
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from ..data import stdlib_tasks
from ..data.collators import EncodedRows, RowLabelCollator, numpy_column, to_device
from ..data.masking import IGNORE_INDEX
from ..data.sources import TEXT_COLUMNS, Column
from ..tokenization import encode_rows
from .labels import SUSPICIOUS, Labels
from .scores import class_scores, confusion_matrix, multi_label_scores, number_scores
from .task import Batch, Measurement, Picture, RowError, Task, digits

if TYPE_CHECKING:
    from ..training.arguments import Arguments

logger = logging.getLogger(__name__)

DRAWN_CLASSES = 100
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
FIRST_TEXTS = (*TEXT_COLUMNS, "sentence1", "text1", "premise", "question", "question1")
SECOND_TEXTS = ("text_pair", "sentence2", "text2", "hypothesis", "question2")
# Names before numbers: a model should say "card_arrival", not 12.
LABELS = ("label_text", "labels_text", "label", "labels", "score", "target", "class", "category", "intent")


class SequenceClassification(Task):
    """The task `sequence-classification`.

    The type of the labels says which of three problems it is: strings and integers are single labels, lists of them
    several, floats numbers to come near to (regression). `--problem_type` says otherwise.
    """

    auto_class = AutoModelForSequenceClassification
    pipeline_tag = "text-classification"
    description = "sequence classification"
    epochs = 4
    reported = {
        "eval_accuracy": "accuracy",
        "eval_macro_f1": "macro F1",
        "eval_micro_f1": "micro F1",
        "eval_matthews_correlation": "Matthews correlation",
        "eval_pearson": "Pearson correlation",
        "eval_spearman": "Spearman correlation",
        "eval_loss": "loss",
    }
    best = ("eval_macro_f1", "eval_spearman", "eval_loss")
    counted = {
        "eval_majority_accuracy": "accuracy of always saying the commonest label",
        "eval_majority_loss": "loss of saying the same of every row",
    }

    problem: str
    labels: Labels

    # --- Rows and batches ---

    @staticmethod
    def columns(args: "Arguments") -> list[Column]:
        """One text or two, and the label."""
        return [
            Column("text", "text", FIRST_TEXTS, args.text_column, "--text_column"),
            Column("text_pair", "text", SECOND_TEXTS, args.text_pair_column, "--text_pair_column", required=False),
            Column("label", "label", LABELS, args.label_column, "--label_column"),
        ]

    @staticmethod
    def built_in() -> DatasetDict:
        """Docstrings, and the package each is from."""
        return stdlib_tasks.stdlib_classification()

    @staticmethod
    def texts(batch: dict[str, list]) -> Iterable[str]:
        """First and second texts."""
        return [*batch["text"], *batch.get("text_pair", [])]

    def encode(self, splits: DatasetDict) -> DatasetDict:
        """Texts to rows of at most `max_seq_length` tokens, labels to numbers; what is longer is cut off, and counted.

        Returns:
            for each split the columns `input_ids`, `length`, `labels`, and `token_type_ids` for pairs where the model
            tells its two texts apart

        Raises:
            RowError: a label that the training split does not have, or that is of the wrong kind.
        """
        train = splits.get("train")
        if train is not None:
            self.problem = self.args.problem_type or problem_type_of(train)
            self._check_kind(train, "train")
            if self.problem != REGRESSION:
                self.labels = Labels.learn(train, "label", "--label_column")
            logger.info("The labels make it a task of %s.", self.problem.replace("_", " "))
        self._settle()
        for split, rows in splits.items():
            self._check_kind(rows, split)
            if self.problem != REGRESSION:
                self.labels.check(rows, "label", split, self.args.max_train_samples)
        self.pairs = any("text_pair" in rows.column_names for rows in splits.values())
        features = {"input_ids": self.id_feature(), "length": Value("int32"), "labels": self._label_feature()}
        if self.pairs:
            segments = self.segments()
            # The pipeline that serves the model asks the tokenizer for what is named here.
            names = ["input_ids", *["token_type_ids"] * segments, "attention_mask"]
            self.tokenizer.model_input_names = names
            if segments:
                features["token_type_ids"] = List(Value("int8"))
        self.segment_ids = "token_type_ids" in features
        names = [] if self.problem == REGRESSION else self.labels.names
        encoded = self.map_rows(splits, self._rows, Features(features), self.problem, names, self.segment_ids)
        self.log_cut(encoded)
        return encoded

    def adopt(self, config: PreTrainedConfig) -> None:
        """Problem and labels of a trained model."""
        self.problem = (
            self.args.problem_type or config.problem_type or (SINGLE if config.num_labels > 1 else REGRESSION)
        )
        self.labels = Labels.of_config(config)
        self._settle()

    def _settle(self) -> None:
        number = {"id2label": {0: "score"}, "label2id": {"score": 0}}
        options = number if self.problem == REGRESSION else self.labels.config_options()
        self.config_options = options | {"problem_type": self.problem}

    def _label_feature(self) -> Any:
        if self.problem == MULTI:
            return List(Value("float32"), length=len(self.labels))
        return Value("float32" if self.problem == REGRESSION else "int64")

    def _rows(self, batch: dict[str, list], indices: list[int], split: str) -> dict[str, list]:
        encoded = encode_rows(
            self.tokenizer,
            batch["text"],
            batch.get("text_pair"),
            truncation=True,
            max_length=self.args.max_seq_length,
            return_attention_mask=False,
            return_token_type_ids=self.segment_ids,
        )
        rows = {"input_ids": encoded["input_ids"], "length": [len(ids) for ids in encoded["input_ids"]]}
        rows["labels"] = [self._label(value) for value in batch["label"]]
        return rows | ({"token_type_ids": encoded["token_type_ids"]} if self.segment_ids else {})

    def _label(self, value: Any) -> Any:
        if self.problem == REGRESSION:
            return float(value)
        if self.problem == SINGLE:
            return self.labels.numbers([value])[0]
        row = np.zeros(len(self.labels), dtype=np.float32)
        row[self.labels.numbers(value)] = 1
        return row

    def _check_kind(self, rows: Dataset, split: str) -> None:
        """Whether the labels are such as the problem asks for. Raises RowError."""
        if self.problem == REGRESSION:
            for row, value in enumerate(rows["label"]):
                if isinstance(value, bool | list | str) or not math.isfinite(value):
                    raise RowError(
                        split, row, f"the label {value!r} is no number, and regression needs one: mend the row."
                    )
        elif isinstance(rows.features["label"], List) != (self.problem == MULTI):
            value, no = rows[0]["label"], "no" if self.problem == MULTI else "a"
            raise RowError(
                split,
                0,
                f"the label {value!r} is {no} list, which does not go with --problem_type {self.problem}: name another "
                "--label_column, or leave --problem_type out.",
            )

    def collator(self, training: bool) -> RowLabelCollator:
        no_label: dict[str, Any] = {
            SINGLE: np.array(IGNORE_INDEX, dtype=np.int64),
            MULTI: np.full(len(self.config_options["id2label"]), IGNORE_INDEX, dtype=np.float32),
            REGRESSION: np.array(np.nan, dtype=np.float32),
        }
        return RowLabelCollator(self.tokenizer.pad_token_id, self.args.max_seq_length, no_label[self.problem])

    # --- Loss and metrics ---

    @staticmethod
    def count_items(batch: Batch) -> Tensor:
        """Labels of a batch; of several labels a row, each by itself."""
        return ((batch["labels"] != IGNORE_INDEX) & ~batch["labels"].isnan()).sum()

    def measure(self, model: nn.Module, batch: Batch) -> Measurement:
        """Losses, labels and predictions with their probabilities, row by row."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits, labels = model(**inputs).logits.float().cpu().double(), batch["labels"].cpu()
        if self.problem == SINGLE:
            losses = F.cross_entropy(logits, labels, reduction="none")
            probabilities, predictions = logits.softmax(dim=-1).max(dim=-1)
        elif self.problem == MULTI:
            losses = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").mean(dim=-1)
            predictions, labels, probabilities = (logits > 0).byte(), labels.byte(), logits.sigmoid().float()
        else:
            labels, predictions = labels.double(), logits[:, 0]
            losses, probabilities = (predictions - labels).square(), torch.ones_like(labels)
        arrays = {"loss": losses, "label": labels, "prediction": predictions, "probability": probabilities}
        return {name: tensor.numpy() for name, tensor in arrays.items()}

    def metrics(self, measured: Measurement) -> dict[str, float]:
        """The mean loss (nats a label, or the squared error), and the scores that fit the problem."""
        losses, labels, predictions = measured["loss"], measured["label"], measured["prediction"]
        if self.problem == SINGLE:
            scores = class_scores(labels, predictions, len(self.labels))
        elif self.problem == MULTI:
            scores = multi_label_scores(labels, predictions)
        else:
            scores = number_scores(labels, predictions)
        loss = math.fsum(losses) / max(len(losses), 1)
        return {"eval_loss": loss} | {f"eval_{name}": score for name, score in scores.items()}

    def predictions(self, measured: Measurement, source: Dataset, rows: Dataset) -> Iterator[dict[str, Any]]:
        """The predicted `label`, `labels` or `value`, with probabilities, and the `right` one."""
        for row, place in enumerate(np.argsort(measured["row"]).tolist(), 1):
            said, right, probability = (measured[name][place] for name in ("prediction", "label", "probability"))
            if self.problem == REGRESSION:
                yield {"row": row, "value": digits(said), "right": digits(right)}
            elif self.problem == SINGLE:
                label = {"label": self.labels.names[said], "probability": digits(probability)}
                yield {"row": row, **label, "right": self.labels.names[right]}
            else:
                yield {
                    "row": row,
                    "labels": self._names(said),
                    "probabilities": [digits(probability[place]) for place in np.flatnonzero(said)],
                    "right": self._names(right),
                }

    # --- What a model that only counts would reach ---

    def baseline_loss(self, train: Dataset, evaluation: Dataset) -> float:
        """The loss of saying the same for every row: how often each label is, or the mean, in the training split."""
        seen, asked = numpy_column(train, "labels"), numpy_column(evaluation, "labels")
        if self.problem == REGRESSION:
            return float(((asked - seen.mean(dtype=np.float64)) ** 2).mean())
        if self.problem == SINGLE:
            counts = np.bincount(seen, minlength=len(self.labels)) + 1
            return float(-np.log(counts / counts.sum())[asked].mean())
        share = (np.stack(list(seen)).sum(axis=0) + 1) / (len(seen) + 2)
        asked = np.stack(list(asked))
        return float(-np.where(asked > 0, np.log(share), np.log(1 - share)).mean())

    def baselines(self, train: Dataset, evaluation: Dataset) -> dict[str, float]:
        """That loss, and for single labels how often the commonest one is right."""
        result = {"eval_majority_loss": self.baseline_loss(train, evaluation)}
        if self.problem == SINGLE:
            commonest = np.bincount(numpy_column(train, "labels")).argmax()
            result["eval_majority_accuracy"] = float((numpy_column(evaluation, "labels") == commonest).mean())
        return result

    # --- What it learned, to look at ---

    def examples(self, model: nn.Module, evaluation: Dataset, count: int = 5) -> list[str]:
        """Held-out texts, what the model says of them, and what is true."""
        chosen = np.random.default_rng(0).permutation(len(evaluation))[:count]
        rows, collate = EncodedRows(evaluation), self.collator(training=False)
        device = next(model.parameters()).device
        examples = []
        for index in chosen.tolist():
            row = rows[0, index]
            with torch.no_grad():
                measured = self.measure(model, to_device(collate([row]), device))
            ids = row["input_ids"]
            texts = np.split(ids, np.flatnonzero(ids == self.tokenizer.sep_token_id))
            shown = (" ".join(self.tokenizer.decode(part, skip_special_tokens=True).split()) for part in texts)
            text = " | ".join(filter(None, shown))
            text = text if len(text) <= 100 else f"{text[:100]} …"
            said, true = self._named(measured["prediction"][0]), self._named(measured["label"][0])
            examples.append(f"{text}\n    {said}   (right: {true})")
        return examples

    def _named(self, value: Any) -> str:
        if self.problem == REGRESSION:
            return f"{value:.2f}"
        if self.problem == SINGLE:
            return self.labels.names[int(value)]
        return ", ".join(self._names(value)) or "nothing"

    def _names(self, chosen: np.ndarray) -> list[str]:
        """The labels that are 1 in an array (labels,)."""
        return [self.labels.names[place] for place in np.flatnonzero(chosen)]

    def picture(self, model: nn.Module, evaluation: Dataset, measured: Measurement) -> Picture | None:
        """Which class is taken for which, where there are few enough to be seen."""
        if self.problem != SINGLE or len(self.labels) > DRAWN_CLASSES:
            return None
        table = confusion_matrix(measured["label"], measured["prediction"], len(self.labels))
        return Picture("confusion", [str(name) for name in self.config_options["id2label"].values()], table)

    def summary(self, metrics: dict[str, Any]) -> str:
        """The result in a few lines."""
        scores = [f"{meaning} {metrics[name]:.3f}" for name, meaning in self.reported.items() if name in metrics]
        line = "held-out " + " · ".join(scores)
        counting = f"(saying the same of every row: loss {metrics['eval_majority_loss']:.3f}"
        if "eval_majority_accuracy" in metrics:
            counting += f", accuracy {metrics['eval_majority_accuracy']:.3f}"
        return f"{line}\n{counting})"

    @staticmethod
    def usage(where: str, text: str | None = None) -> str:
        asked = json.dumps(text or "Some text.", ensure_ascii=False)
        return f'classify = pipeline("text-classification", "{where}")\nprint(classify({asked}))'


def problem_type_of(rows: Dataset) -> str:
    """What the type of the column `label` says: floats are numbers to come near to, lists several labels.

    Raises:
        RowError: floats are whole numbers, and few different ones, as a table writes classes of which one is missing.
    """
    feature = rows.features["label"]
    if isinstance(feature, List):
        return MULTI
    if not (isinstance(feature, Value) and feature.dtype.startswith(("float", "double"))):
        return SINGLE
    values = np.unique(numpy_column(rows, "label"))
    if len(values) <= SUSPICIOUS and len(values) < len(rows) / 2 and not np.mod(values, 1).any():
        raise RowError(
            "train",
            0,
            f"the label {rows[0]['label']!r} is, as all training labels, a whole number written as a fraction: give "
            f"--problem_type {SINGLE} where they stand for classes, and regression where they are quantities.",
        )
    return REGRESSION
