"""Embedding: one vector for a text, near to the vectors of texts that mean the same."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Features, Value
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerBase

from ..data import stdlib_tasks
from ..data.collators import Padding, as_tensors, numpy_column, to_device
from ..data.sources import TEXT_COLUMNS, Column
from ..tokenization import encode_rows, vocabulary_size
from .cached_gradients import cached_backward
from .count_models import TfIdf
from .retrieval import QUERIES_AT_ONCE, Candidates, rank
from .scores import number_scores
from .task import Batch, Measurement, Picture, RowError, Task, digits, sum_backward

if TYPE_CHECKING:
    from ..training.arguments import Arguments

logger = logging.getLogger(__name__)

ANCHORS = ("anchor", "query", "question", "sentence1", "text1", "premise", *TEXT_COLUMNS)
POSITIVES = ("positive", "passage", "context", "answer", "sentence2", "text2", "hypothesis", "text_pair")
DRAWN_ROWS = 6
SCORES = ("score", "similarity_score", "similarity", "label", "labels")
PARTS = ("anchor", "positive", "negative")  # the texts of a row, in the order in which a batch has them
BASELINE_QUERIES, BASELINE_ROWS = 2000, 100_000  # asked by the TF-IDF baseline at most, and counted for it


class Embedding(Task):
    """The task `embedding`.

    Rows are pairs (anchor, positive), triplets with a hard negative, or pairs with a score.

    Without scores the loss is the cross-entropy of finding an anchor's positive among all positives and negatives of the
    whole optimizer step, in all micro-batches and processes, by cosine similarity over `--temperature` (van den Oord et
    al. 2018; Henderson et al. 2017). A candidate that is the anchor itself, or a positive of the same anchor in any row,
    is no negative. Gradients are cached (Gao et al. 2021), so memory grows with the micro-batch and not with the batch.

    With scores it is the squared distance between cosine similarity and score (Reimers & Gurevych 2019), scores scaled
    so that those of the training split reach from 0 to 1.
    """

    auto_class = AutoModel
    pipeline_tag = "feature-extraction"
    description = "contrastive learning on pairs of texts, or on their scores"
    epochs = 3
    reported = {
        "eval_accuracy": "retrieval accuracy (the first found is right)",
        "eval_mrr": "mean reciprocal rank",
        "eval_ndcg_at_10": "NDCG@10",
        "eval_spearman": "Spearman correlation",
        "eval_pearson": "Pearson correlation",
        "eval_loss": "loss",
    }
    best = ("eval_mrr", "eval_spearman", "eval_loss")
    counted = {
        "eval_tfidf_accuracy": "retrieval accuracy of TF-IDF",
        "eval_tfidf_mrr": "mean reciprocal rank of TF-IDF",
        "eval_tfidf_ndcg_at_10": "NDCG@10 of TF-IDF",
        "eval_tfidf_spearman": "Spearman correlation of TF-IDF",
    }

    def __init__(self, args: "Arguments", tokenizer: PreTrainedTokenizerBase):
        super().__init__(args, tokenizer)
        self.scored, self.score_range = False, (0.0, 1.0)
        self.token_columns = PARTS[:2]

    # --- Rows and batches ---

    @staticmethod
    def columns(args: "Arguments") -> list[Column]:
        """Two texts, and maybe a hard negative or a score."""
        return [
            Column("anchor", "text", ANCHORS, args.text_column, "--text_column"),
            Column("positive", "text", POSITIVES, args.text_pair_column, "--text_pair_column"),
            Column("negative", "text", ("negative",), args.negative_column, "--negative_column", required=False),
            Column("score", "number", SCORES, args.label_column, "--label_column", required=False),
        ]

    @staticmethod
    def built_in() -> DatasetDict:
        """Functions of the standard library, and their docstrings."""
        return stdlib_tasks.stdlib_pairs()

    @staticmethod
    def texts(batch: dict[str, list]) -> Iterable[str]:
        """The texts of all kinds."""
        return [text for part in PARTS for text in batch.get(part, [])]

    def encode(self, splits: DatasetDict) -> DatasetDict:
        """Texts to at most `max_seq_length` tokens each; what is longer is cut off.

        Returns:
            for each split a column of token ids for each text of a row, `length` (tokens of them all), and `score`
            where there are scores

        Raises:
            RowError: a score that is no number.
            ValueError: splits of different kinds, or scores that are all the same.
        """
        first = splits.get("train", next(iter(splits.values())))
        self.scored = "score" in first.column_names
        self.token_columns = tuple(part for part in PARTS if part in first.column_names)
        if self.scored:
            self.token_columns = PARTS[:2]
        needed = {*self.token_columns, *["score"] * self.scored}
        for split, rows in splits.items():
            if missing := needed - set(rows.column_names):
                raise ValueError(
                    f"{split} has no column {sorted(missing)[0]!r}, which the training split has: give both the same."
                )
        if self.scored and "train" in splits:
            scores = np.array(splits["train"]["score"][:], dtype=np.float64)
            self.score_range = float(scores.min()), float(scores.max())
            if not self.score_range[0] < self.score_range[1]:
                raise ValueError(f"All training scores are {scores[0]}; there is nothing to learn from them.")
            logger.info("Scores go from %g to %g: the higher, the nearer the two texts.", *self.score_range)
            self.config_options = {"task_specific_params": {"embedding": {"score_range": list(self.score_range)}}}
        features = {part: self.id_feature() for part in self.token_columns} | {"length": Value("int32")}
        if self.scored:
            features["score"] = Value("float32")
        encoded = self.map_rows(
            splits, self._rows, Features(features), self.token_columns, self.score_range if self.scored else None
        )
        self.log_cut(encoded)
        return encoded

    def adopt(self, config: PreTrainedConfig) -> None:
        """The range of the scores that a model was trained on; where it had none, scores are taken as they are."""
        kept = (config.task_specific_params or {}).get("embedding", {})
        lowest, highest = kept.get("score_range", self.score_range)
        self.score_range = lowest, highest

    def _rows(self, batch: dict[str, list], indices: list[int], split: str) -> dict[str, list]:
        encoded = {
            part: encode_rows(
                self.tokenizer,
                batch[part],
                truncation=True,
                max_length=self.args.max_seq_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            for part in self.token_columns
        }
        rows: dict[str, list] = dict(encoded)
        rows["length"] = [sum(map(len, ids)) for ids in zip(*encoded.values(), strict=True)]
        if self.scored:
            lowest, highest = self.score_range
            for score, index in zip(batch["score"], indices, strict=True):
                if isinstance(score, str) or not math.isfinite(score):
                    raise RowError(split, index, f"the score {score!r} is no number: mend the row.")
            rows["score"] = [(score - lowest) / (highest - lowest) for score in batch["score"]]
        return rows

    def collator(self, training: bool) -> "TextsCollator":
        return TextsCollator(self.tokenizer.pad_token_id, self.args.max_seq_length, self.token_columns)

    # --- Loss ---

    @staticmethod
    def count_items(batch: Batch) -> Tensor:
        """Rows of a batch."""
        return batch["real"].sum()

    @staticmethod
    def embed(model: nn.Module, batch: Batch) -> Tensor:
        """The unit vectors of a batch's texts: (rows, parts, hidden)."""
        vectors = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        return F.normalize(vectors.float(), dim=-1).unflatten(0, (-1, len(batch["real"]))).transpose(0, 1)

    def backward(self, accelerator: Accelerator, model: nn.Module, batches: list[Batch], items: Tensor) -> Tensor:
        """Gradients of the loss over the whole step: over all micro-batches of all processes."""
        if self.scored:
            divisor = items.clamp(min=1)
            return sum_backward(
                accelerator, model, batches, lambda batch: self.score_errors(model, batch).square().sum() / divisor
            )
        return cached_backward(accelerator, model, batches, self.embed, ("keys", "real"), self.contrastive_loss)

    def score_errors(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cosine similarity less score: (rows,)."""
        vectors = self.embed(model, batch)
        return ((vectors[:, 0] * vectors[:, 1]).sum(dim=-1) - batch["score"]) * batch["real"]

    def contrastive_loss(self, vectors: Tensor, keys: Tensor, real: Tensor) -> Tensor:
        """Mean cross-entropy of an anchor's own positive among all candidates.

        Args:
            vectors: (rows, parts, hidden), of unit length
            keys: (rows, parts), equal where texts are
            real: (rows,), 0 for a row that stands in for an empty bin
        """
        real = real.bool()
        vectors, keys = vectors[real], keys[real]
        if not len(vectors):
            return vectors.sum()
        rows = torch.arange(len(vectors), device=vectors.device)
        candidates = vectors[:, 1:].transpose(0, 1).flatten(0, 1)  # all positives, then all negatives
        texts = keys[:, 1:].T.flatten()
        right = (keys[:, 1, None] == texts) | (keys[:, 0, None] == texts)  # or as good as the anchor itself
        right[:, : len(rows)] |= keys[:, 0, None] == keys[:, 0]  # another positive of the same anchor
        right[rows, rows] = False  # each row's own positive stays
        logits = (vectors[:, 0] @ candidates.T / self.args.temperature).masked_fill(right, -torch.inf)
        return F.cross_entropy(logits, rows)

    # --- Metrics ---

    def measure(self, model: nn.Module, batch: Batch) -> Measurement:
        """The vectors themselves: what is nearest to what is known only when all of them are there."""
        vectors = self.embed(model, batch)
        arrays = {"row": batch["row"], "vectors": vectors, "keys": batch["keys"]}
        arrays |= {"score": batch["score"]} if self.scored else {}
        return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}

    def metrics(self, measured: Measurement) -> dict[str, float]:
        """For pairs how well anchors find their positives among all texts of the split; for scores the correlations.

        `eval_loss` has all candidates of the split, so it does not depend on the batch size, and grows with the split.
        """
        order = np.argsort(measured["row"], kind="stable")
        vectors, keys = measured["vectors"][order], measured["keys"][order]
        if self.scored:
            cosines, scores = cosines_of(vectors), measured["score"][order].astype(np.float64)
            loss = math.fsum((cosines - scores) ** 2) / max(len(scores), 1)
            correlations = number_scores(scores, cosines)
            return {"eval_loss": loss} | {f"eval_{name}": value for name, value in correlations.items()}
        anchors, candidates, relevant, ignored = questions(keys)
        flat = vectors.reshape(-1, vectors.shape[-1])
        found = rank(lambda part: flat[anchors[part]] @ flat[candidates].T, relevant, ignored, self.args.temperature)
        return {"eval_loss": found.loss} | {f"eval_{name}": value for name, value in found.scores().items()}

    def predictions(self, measured: Measurement, source: Dataset, rows: Dataset) -> Iterator[dict[str, Any]]:
        """The `similarity` of anchor and positive, their cosine; beside it the right `score`, scaled from 0 to 1, or the
        `rank` of the positive among all other texts of the split that are no positive of this anchor; a tie counts
        against it.
        """
        order = np.argsort(measured["row"], kind="stable")
        vectors, keys = measured["vectors"][order], measured["keys"][order]
        cosines = cosines_of(vectors)
        if self.scored:
            for row, (cosine, score) in enumerate(zip(cosines, measured["score"][order], strict=True), 1):
                yield {"row": row, "similarity": digits(cosine), "score": digits(score)}
            return
        anchors, candidates, relevant, ignored = questions(keys)
        texts = vectors.reshape(-1, vectors.shape[-1])[candidates]
        query = {key: place for place, key in enumerate(keys.reshape(-1)[anchors].tolist())}
        text = {key: place for place, key in enumerate(keys.reshape(-1)[candidates].tolist())}
        for start in range(0, len(vectors), QUERIES_AT_ONCE):
            similarities = vectors[start : start + QUERIES_AT_ONCE, 0] @ texts.T
            for row, scores in enumerate(similarities, start):
                positive = scores[text[keys[row, 1]]]
                place = query[keys[row, 0]]
                others = np.delete(scores, relevant[place] + ignored[place])
                before = int((others >= positive).sum())
                yield {"row": row + 1, "rank": before + 1, "similarity": digits(cosines[row])}

    # --- What a model that only counts would reach ---

    def baseline_loss(self, train: Dataset, evaluation: Dataset) -> float:
        """Of pairs: all candidates alike. Of scores: the training split's mean for every pair."""
        if self.scored:
            mean = numpy_column(train, "score").mean(dtype=np.float64)
            return float(((numpy_column(evaluation, "score") - mean) ** 2).mean())
        _, candidates, *_ = questions(self._keys(evaluation))
        return math.log(len(candidates))

    def step_baseline(self, baseline_loss: float, rows: int) -> float:
        """Of pairs: all candidates of the step alike, which are fewer than those of the evaluation."""
        return baseline_loss if self.scored else math.log(rows * (len(self.token_columns) - 1))

    def baselines(self, train: Dataset, evaluation: Dataset) -> dict[str, float]:
        """What TF-IDF reaches, on the same tokens: how rare they are is counted in the training rows."""
        train = train.select(range(min(len(train), BASELINE_ROWS)))
        texts_counted = [ids for part in self.token_columns for ids in numpy_column(train, part)]
        counts = TfIdf(vocabulary_size(self.tokenizer), texts_counted)
        texts = np.empty((len(evaluation), len(self.token_columns)), dtype=object)
        for place, part in enumerate(self.token_columns):
            for row, ids in enumerate(numpy_column(evaluation, part)):
                texts[row, place] = ids
        if self.scored:
            cosines = np.array([counts.similarities([b])(a)[0] for a, b in texts])
            return {"eval_tfidf_spearman": number_scores(numpy_column(evaluation, "score"), cosines)["spearman"]}
        anchors, candidates, relevant, ignored = questions(self._keys(evaluation))
        anchors, relevant = anchors[:BASELINE_QUERIES], relevant[:BASELINE_QUERIES]
        flat = texts.reshape(-1)
        similarities = counts.similarities(list(flat[candidates]))
        found = rank(
            lambda part: np.stack([similarities(ids) for ids in flat[anchors[part]]]),
            relevant,
            ignored[:BASELINE_QUERIES],
            self.args.temperature,
        )
        return {f"eval_tfidf_{name}": value for name, value in found.scores().items()}

    def _keys(self, rows: Dataset) -> np.ndarray:
        return np.stack([[text_key(ids) for ids in numpy_column(rows, part)] for part in self.token_columns], axis=1)

    # --- What it learned, to look at ---

    def examples(self, model: nn.Module, evaluation: Dataset, count: int = 5) -> list[str]:
        """Held-out texts, and which of a hundred others is nearest to each."""
        rows, vectors = self._embedded(model, evaluation, 100)
        nearest = (vectors[:, 0] @ vectors[:, 1].T).argmax(dim=-1).tolist()
        return [
            f"{self._shown(rows[row]['anchor'])}\n    nearest: {self._shown(rows[nearest[row]]['positive'])}"
            + ("" if self.scored else "   (right)" if nearest[row] == row else "   (wrong)")
            for row in range(min(count, len(rows)))
        ]

    def picture(self, model: nn.Module, evaluation: Dataset, measured: Measurement) -> Picture:
        """How near some anchors and their positives lie to each other, an anchor beside its positive."""
        rows, vectors = self._embedded(model, evaluation, DRAWN_ROWS)
        names = [self._shown(row[part]) for row in rows for part in ("anchor", "positive")]
        flat = vectors[:, :2].flatten(0, 1)
        return Picture("similarity", names, (flat @ flat.T).cpu().numpy())

    def _embedded(self, model: nn.Module, evaluation: Dataset, count: int) -> tuple[list[dict[str, Any]], Tensor]:
        """Some rows, always the same, and the vectors of their texts: (rows, parts, hidden)."""
        chosen = np.random.default_rng(0).permutation(len(evaluation))[:count].tolist()
        rows = [evaluation.with_format("numpy")[row] | {"row": row, "epoch": 0} for row in chosen]
        device = next(model.parameters()).device
        batch = to_device(self.collator(training=False)(rows), device)
        with torch.no_grad():
            return rows, self.embed(model, batch)

    def _shown(self, ids: np.ndarray) -> str:
        text = " ".join(self.tokenizer.decode(ids, skip_special_tokens=True).split())
        return text if len(text) <= 100 else f"{text[:100]} …"

    def summary(self, metrics: dict[str, Any]) -> str:
        """The result in a few lines."""

        def line(names: dict[str, str]) -> str:
            return " · ".join(f"{what} {metrics[name]:.3f}" for name, what in names.items() if name in metrics)

        return f"held-out {line(self.reported)}\n({line(self.counted)})"

    @staticmethod
    def usage(where: str, text: str | None = None) -> str:
        asked = json.dumps([text or "One text.", "Another one."], ensure_ascii=False)
        return (
            "from transformers import AutoModel, AutoTokenizer\n"
            f'tokenizer, model = AutoTokenizer.from_pretrained("{where}"), AutoModel.from_pretrained("{where}")\n'
            f'texts = tokenizer({asked}, padding=True, return_tensors="pt")\n'
            "print(model(**texts).pooler_output)"
        )


class TextsCollator(Padding):
    """A padded batch of rows of several texts.

    Args:
        pad_token_id, max_length, pad_to_multiple_of: as in `Padding`; `max_length` of each text.
        parts: the columns that the texts are in.
    """

    def __init__(self, pad_token_id: int, max_length: int, parts: tuple[str, ...], pad_to_multiple_of: int = 8):
        super().__init__(pad_token_id, max_length, pad_to_multiple_of)
        self.parts = parts

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (parts * rows, length): the first text of each row, then the second of each.

        `keys` (rows, parts) are equal where texts are, `row` (rows,) is the row of the split, `score` (rows,) its score
        where there is one, and `real` (rows,) is 0 for the row that an empty bin becomes.
        """
        real = np.full(max(len(rows), 1), bool(rows), dtype=np.int64)
        blank = dict.fromkeys(self.parts, np.full(1, self.pad_token_id)) | {"row": -1, "score": 0.0}
        rows = rows or [blank]
        texts = [[row[part] for row in rows] for part in self.parts]
        batch = self.inputs([ids for part in texts for ids in part])
        batch["keys"] = np.array([[text_key(ids) for ids in part] for part in texts]).T.copy()
        batch["row"] = np.array([row["row"] for row in rows])
        if "score" in rows[0]:
            batch["score"] = np.array([row["score"] for row in rows], dtype=np.float32)
        return as_tensors(batch | {"real": real})


def text_key(ids: np.ndarray) -> int:
    """A number of 64 bits that is the same for the same tokens."""
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def questions(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, Candidates, Candidates]:
    """What retrieval asks of a split in which a text may stand more than once.

    Args:
        keys: (rows, parts), equal where texts are

    Returns:
        where in rows * parts each different anchor stands (anchors,), where each different candidate stands
        (candidates,), for each anchor which candidates are right, and the one, if any, that is its own text and so
        neither right nor wrong
    """
    rows, parts = keys.shape
    places = np.arange(rows * parts).reshape(rows, parts)
    _, first = np.unique(keys[:, 0], return_index=True)
    first.sort()
    number = {key: place for place, key in enumerate(keys[first, 0].tolist())}
    flat_keys, flat_places = keys[:, 1:].T.ravel(), places[:, 1:].T.ravel()
    _, kept = np.unique(flat_keys, return_index=True)
    kept.sort()
    candidate = {key: place for place, key in enumerate(flat_keys[kept].tolist())}
    relevant: list[set[int]] = [set() for _ in number]
    for anchor, positive in keys[:, :2].tolist():
        relevant[number[anchor]].add(candidate[positive])
    itself = [
        {candidate[key]} - right if key in candidate else set() for key, right in zip(number, relevant, strict=True)
    ]
    return places[first, 0], flat_places[kept], [sorted(right) for right in relevant], [sorted(own) for own in itself]


def cosines_of(vectors: np.ndarray) -> np.ndarray:
    """The cosine of each row's first text and its second, in float64: (rows,) from unit vectors (rows, parts, hidden)."""
    return (vectors[:, 0].astype(np.float64) * vectors[:, 1]).sum(axis=-1)
