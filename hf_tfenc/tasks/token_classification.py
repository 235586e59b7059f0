"""Token classification: one tag for each word, such as its part of speech or its place in a name."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, Features, List, Value
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedTokenizerBase

from ..data import stdlib_tasks
from ..data.alignment import word_windows
from ..data.collators import EncodedRows, PaddedCollator, Row, numpy_column, to_device
from ..data.masking import IGNORE_INDEX
from ..data.sources import Column
from ..tokenization import encode_rows
from .entities import are_bio, entity_scores
from .labels import Labels
from .task import Batch, Measurement, RowError, Task

if TYPE_CHECKING:
    from ..training.arguments import Arguments

WORDS = ("words", "tokens", "forms")
TAGS = ("tags", "ner_tags", "upos", "pos_tags", "xpos", "labels", "label")
NO_TAG = -1  # what is predicted for a word that the tokenizer drops, where no tag says "nothing"


class TokenClassification(Task):
    """The task `token-classification`.

    A word's first sub-word bears its tag. Metrics are over words: a word that the tokenizer drops (of which it makes no
    sub-word at all) counts as predicted O where there is such a tag, and as wrong where there is none.
    """

    auto_class = AutoModelForTokenClassification
    pipeline_tag = "token-classification"
    description = "token classification"
    epochs = 2
    reported = {
        "eval_accuracy": "accuracy, by the word",
        "eval_f1": "F1 of entities",
        "eval_precision": "precision of entities",
        "eval_recall": "recall of entities",
        "eval_loss": "loss, nats a word",
    }
    best = ("eval_f1", "eval_accuracy")  # the loss begins to rise long before these fall
    counted = {
        "eval_word_tag_accuracy": "accuracy of each word's commonest tag",
        "eval_word_tag_f1": "F1 of entities by each word's commonest tag",
        "eval_word_tag_precision": "precision of entities by each word's commonest tag",
        "eval_word_tag_recall": "recall of entities by each word's commonest tag",
        "eval_word_tag_loss": "loss of the frequencies of tags",
    }

    labels: Labels

    def __init__(self, args: "Arguments", tokenizer: PreTrainedTokenizerBase):
        super().__init__(args, tokenizer)
        self.before, self.after = special_tokens_around(tokenizer)

    # --- Rows and batches ---

    @staticmethod
    def columns(args: "Arguments") -> list[Column]:
        """Lists of words, and of their tags."""
        return [
            Column("words", "words", WORDS, args.text_column, "--text_column"),
            Column("tags", "tags", TAGS, args.label_column, "--label_column"),
        ]

    @staticmethod
    def built_in() -> DatasetDict:
        """Lines of Python, and what kind of token each part is."""
        return stdlib_tasks.stdlib_tagging()

    @staticmethod
    def texts(batch: dict[str, list]) -> Iterable[str]:
        """Words with a space between them."""
        return [" ".join(words) for words in batch["words"]]

    def encode(self, splits: DatasetDict) -> DatasetDict:
        """Words to windows of at most `max_seq_length` tokens, cut between words; nothing is dropped.

        Returns:
            for each split the columns `input_ids` and `length`; for the words of a window `tags` (numbers) and `places`
            (of their first sub-words among the tokens, -1 for a dropped word); `source` and `first_word`: which row
            of the split it is from, and from which of its words on

        Raises:
            RowError: lists of unequal length, or a tag that the training split does not have.
        """
        if "train" in splits:
            self.labels = Labels.learn(splits["train"], "tags", "--label_column")
            self._settle()
        for split, rows in splits.items():
            self.labels.check(rows, "tags", split, self.args.max_train_samples)
        integer = Value("int32")
        features = Features(
            {
                "input_ids": self.id_feature(),
                "length": integer,
                "tags": List(integer),
                "places": List(integer),
                "source": Value("int64"),
                "first_word": integer,
            }
        )
        return self.map_rows(splits, self._windows, features, self.labels.names)

    def adopt(self, config: PreTrainedConfig) -> None:
        """The tags of a trained model."""
        self.labels = Labels.of_config(config)
        self._settle()

    def _settle(self) -> None:
        self.config_options = self.labels.config_options()
        self.no_tag = self.labels.ids.get("O", NO_TAG)

    def _windows(self, batch: dict[str, list], indices: list[int], split: str) -> dict[str, list]:
        spaced = [[" " * (place > 0) + word for place, word in enumerate(words)] for words in batch["words"]]
        pieces = self._pieces({word for words in spaced for word in words})
        windows: dict[str, list] = defaultdict(list)
        for words, tags, index in zip(spaced, batch["tags"], indices, strict=True):
            if len(words) != len(tags):
                raise RowError(
                    split, index, f"{len(words)} words and {len(tags)} tags; a tag for each word is needed."
                )
            numbers = self.labels.numbers(tags)
            capacity = self.args.max_seq_length - len(self.before) - len(self.after)
            for window in word_windows([pieces[word] for word in words], capacity):
                end = window.first_word + len(window.starts)
                windows["input_ids"].append(self.before + window.tokens + self.after)
                windows["length"].append(len(windows["input_ids"][-1]))
                windows["tags"].append(numbers[window.first_word : end])
                windows["places"].append([s + len(self.before) if s >= 0 else -1 for s in window.starts])
                windows["source"].append(index)
                windows["first_word"].append(window.first_word)
        return windows

    def _pieces(self, words: set[str]) -> dict[str, list[int]]:
        """The sub-words of each word by itself, so that no label can shift, whatever a tokenizer makes of a word.

        Words come with the space that stands before them in running text, since many tokenizers write it into the token.
        """
        ordered = sorted(words)
        encoded = encode_rows(
            self.tokenizer,
            ordered,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # of words longer than the model, which windows are for
        )
        return dict(zip(ordered, encoded["input_ids"], strict=True)) if ordered else {}

    def collator(self, training: bool) -> "TaggedCollator":
        return TaggedCollator(self.tokenizer.pad_token_id, self.args.max_seq_length, with_words=not training)

    # --- Loss and metrics ---

    @staticmethod
    def count_items(batch: Batch) -> Tensor:
        """Words of a batch that have a sub-word."""
        return (batch["labels"] != IGNORE_INDEX).sum()

    def measure(self, model: nn.Module, batch: Batch) -> Measurement:
        """Loss, tag and prediction of each word, and which word it is."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits.float().flatten(0, 1).cpu().double()  # (rows * length, tags)
        places, tags = batch["places"].cpu(), batch["tags"].cpu()
        there = places >= 0
        losses = torch.zeros(len(tags), dtype=torch.float64)
        losses[there] = F.cross_entropy(logits[places[there]], tags[there], reduction="none")
        predictions = torch.full_like(tags, self.no_tag)
        predictions[there] = logits[places[there]].argmax(dim=-1)
        arrays = {"loss": losses, "there": there, "tag": tags, "prediction": predictions}
        arrays |= {name: batch[name].cpu() for name in ("source", "word")}
        return {name: tensor.numpy() for name, tensor in arrays.items()}

    def metrics(self, measured: Measurement) -> dict[str, float]:
        """Mean loss in nats a word, accuracy, and for BIO tags precision, recall and F1 of entities."""
        items, words = int(measured["there"].sum()), len(measured["tag"])
        metrics = {"eval_loss": math.fsum(measured["loss"]) / max(items, 1)}
        return metrics | self._scores(measured, measured["prediction"], words)

    def _scores(self, measured: Measurement, predictions: np.ndarray, words: int) -> dict[str, float]:
        scores = {"eval_accuracy": int((measured["tag"] == predictions).sum()) / max(words, 1)}
        if are_bio(self.labels.names):
            rows = self._rows_of_tags(measured, measured["tag"]), self._rows_of_tags(measured, predictions)
            scores |= {f"eval_{name}": score for name, score in entity_scores(*rows).items()}
        return scores

    def _rows_of_tags(self, measured: Measurement, numbers: np.ndarray) -> list[list[str]]:
        """Tags in the order of the words of each row of the source, its windows joined again."""
        order = np.lexsort((measured["word"], measured["source"]))
        starts = np.flatnonzero(np.diff(measured["source"][order])) + 1
        names = [*self.labels.names, "O"]  # the last one stands for NO_TAG
        return [[names[number] for number in row] for row in np.split(numbers[order], starts)]

    def predictions(self, measured: Measurement, source: Dataset, rows: Dataset) -> Iterator[dict[str, Any]]:
        """The `words`, their predicted `tags` (none for a word that the tokenizer drops) and the `right` ones."""
        names = [*self.labels.names, None]  # the last one stands for NO_TAG
        said: list[list[str | None]] = [[None] * len(words) for words in source["words"]]
        for row, word, number in zip(
            *(measured[name].tolist() for name in ("source", "word", "prediction")), strict=True
        ):
            said[row][word] = names[number]
        for row, (tags, of_source) in enumerate(zip(said, source, strict=True), 1):
            yield {"row": row, "words": of_source["words"], "tags": tags, "right": of_source["tags"]}

    # --- What a model that only counts would reach ---

    def baseline_loss(self, train: Dataset, evaluation: Dataset) -> float:
        """The loss of saying for every word how often each tag is in the training split."""
        counts = np.ones(len(self.labels))
        counts += np.bincount(np.concatenate([*numpy_column(train, "tags")]).astype(int), minlength=len(counts))
        asked = np.concatenate([*numpy_column(evaluation, "tags")]).astype(int)
        return float(-np.log(counts / counts.sum())[asked].mean())

    def baselines(self, train: Dataset, evaluation: Dataset) -> dict[str, float]:
        """What is reached by each word's commonest tag in the training split, and the commonest of all for others."""
        seen: dict[str, Counter] = defaultdict(Counter)
        of_all: Counter = Counter()
        for word, tag in self._tagged_words(train):
            seen[word][tag] += 1
            of_all[tag] += 1
        fallback = of_all.most_common(1)[0][0]
        guesses = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
        words, tags = zip(*self._tagged_words(evaluation), strict=True)
        predictions = np.array([guesses.get(word, fallback) for word in words])
        measured = {"tag": np.array(tags), **_which_words(evaluation.with_format("numpy"))}
        scores = self._scores(measured, predictions, len(tags))
        result = {name.replace("eval_", "eval_word_tag_"): score for name, score in scores.items()}
        return {"eval_word_tag_loss": self.baseline_loss(train, evaluation)} | result

    def _tagged_words(self, rows: Dataset) -> Iterable[tuple[str, int]]:
        text: dict[tuple[int, ...], str] = {}
        for row in rows.with_format("python", columns=["input_ids", "places", "tags"]):
            ends = [*row["places"], len(row["input_ids"]) - len(self.after)]
            for place, (start, end) in enumerate(pairwise(ends)):
                if start >= 0 and end < 0:  # the next word is a dropped one
                    end = next(later for later in ends[place + 1 :] if later >= 0)
                pieces = tuple(row["input_ids"][start:end]) if start >= 0 else ()
                if pieces not in text:
                    text[pieces] = self.tokenizer.decode(list(pieces)).strip()
                yield text[pieces], row["tags"][place]

    # --- What it learned, to look at ---

    def examples(self, model: nn.Module, evaluation: Dataset, count: int = 5) -> list[str]:
        """Held-out words with their tags, and the right one beside each that is wrong."""
        rows, collate = EncodedRows(evaluation), self.collator(training=False)
        device = next(model.parameters()).device
        examples = []
        for index in np.random.default_rng(0).permutation(len(evaluation)).tolist():
            row = rows[0, index]
            if not 4 <= len(row["tags"]) <= 30:
                continue
            with torch.no_grad():
                measured = self.measure(model, to_device(collate([row]), device))
            words = [word for word, _ in self._tagged_words(evaluation.select([index]))]
            names = [*self.labels.names, "nothing"]
            tagged = [
                f"{word}/{names[said]}" + (f" (right: {names[true]})" if said != true else "")
                for word, said, true in zip(words, measured["prediction"], measured["tag"], strict=True)
            ]
            examples.append(" ".join(tagged))
            if len(examples) == count:
                break
        return examples

    def summary(self, metrics: dict[str, Any]) -> str:
        """The result in a few lines."""
        line = f"held-out loss {metrics['eval_loss']:.3f} · accuracy {metrics['eval_accuracy']:.3f}"
        counting = f"(each word's commonest tag: accuracy {metrics['eval_word_tag_accuracy']:.3f}"
        if "eval_f1" in metrics:
            line += " · entities: " + " · ".join(
                f"{name} {metrics[f'eval_{name}']:.3f}" for name in ("f1", "precision", "recall")
            )
            counting += f", f1 {metrics['eval_word_tag_f1']:.3f}"
        return f"{line}\n{counting})"

    @staticmethod
    def usage(where: str, text: str | None = None) -> str:
        asked = json.dumps(text or "Ada Lovelace lived in London .", ensure_ascii=False)
        return f'tag = pipeline("token-classification", "{where}", aggregation_strategy="first")\nprint(tag({asked}))'


class TaggedCollator(PaddedCollator):
    """A padded batch in which each word's first sub-word bears its tag.

    Args:
        with_words: add to the batch, for all its words one after another, `tags`, `places` (into rows * length, -1 for
            a dropped word), `source` (row of the split) and `word` (its place in that row), each (words,).
    """

    def __init__(self, pad_token_id: int, max_length: int, with_words: bool):
        super().__init__(pad_token_id, tagged_tokens, max_length, prediction_positions=False)
        self.with_words = with_words

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(rows)
        if self.with_words:
            width = batch["input_ids"].shape[1]
            places = [
                np.where(row["places"] >= 0, row["places"] + width * number, -1) for number, row in enumerate(rows)
            ]
            words = {"tags": _joined(row["tags"] for row in rows), "places": _joined(places), **_which_words(rows)}
            batch |= {name: torch.from_numpy(array) for name, array in words.items()}
        return batch


def tagged_tokens(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """A window's tokens, and its tags at the first sub-word of each word, -100 elsewhere; both (length,)."""
    ids, places, tags = (np.asarray(row[name]).astype(np.int64) for name in ("input_ids", "places", "tags"))
    labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
    labels[places[places >= 0]] = tags[places >= 0]
    return ids, labels


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text, and after it. Raises ValueError if it keeps no text."""
    for text in ("a", "x", "0", "."):  # a tokenizer may drop some of them
        alone = encode_rows(tokenizer, [text], add_special_tokens=False)["input_ids"][0]
        framed = encode_rows(tokenizer, [text])["input_ids"][0]
        for start in range(len(framed)):
            if alone and framed[start : start + len(alone)] == alone:
                return framed[:start], framed[start + len(alone) :]
    raise ValueError("The tokenizer keeps neither letters nor digits: choose another --tokenizer_name.")


def _which_words(rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """For each word of some windows the row of the split that it is from, and its place there."""
    sources, words = [], []
    for row in rows:
        sources.append(np.full(len(row["tags"]), row["source"]))
        words.append(np.arange(len(row["tags"])) + row["first_word"])
    return {"source": _joined(sources), "word": _joined(words)}


def _joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([*arrays, np.zeros(0)]).astype(np.int64)
