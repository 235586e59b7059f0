"""Causal language modelling: predict each next token from those before it."""

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Value
from tokenizers import processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from ..data.collators import LabelRow, PaddedCollator, Row, numpy_column
from ..data.masking import IGNORE_INDEX
from ..tokenization import encode_rows
from .count_models import BigramModel, UnigramModel
from .language_modeling import EVALUATION_SEED, LanguageModeling
from .task import Batch, Measurement

if TYPE_CHECKING:
    from ..training.arguments import Arguments

logger = logging.getLogger(__name__)

PROMPT, CONTINUATION = 12, 16  # tokens of an example


class CausalLM(LanguageModeling):
    """The task `causal-lm`.

    A row is the tokenizer's first special token and as much text as fits; the end of a text is its last special token,
    once. The tokenizer is saved so that it puts nothing behind a prompt, which `generate` goes on from.
    """

    auto_class = AutoModelForCausalLM
    pipeline_tag = "text-generation"
    description = "causal language modelling"
    epochs = 3
    reported = {
        "eval_accuracy": "next-token accuracy",
        "eval_loss": "loss, nats a token",
        "eval_perplexity": "perplexity",
        "eval_loss_per_byte": "loss, nats a byte",
    }
    counted = {
        "eval_bigram_accuracy": "accuracy of the token that most often follows the one before",
        "eval_unigram_accuracy": "accuracy of the commonest token",
        "eval_unigram_loss": "loss of the frequencies of tokens",
    }
    config_options = {"is_causal": True, "sparse_prediction": False}

    def __init__(self, args: "Arguments", tokenizer: PreTrainedTokenizerBase):
        super().__init__(args, tokenizer)
        self.start = first_of(tokenizer.bos_token_id, tokenizer.cls_token_id)
        self.end = first_of(tokenizer.eos_token_id, tokenizer.sep_token_id)
        if self.end is not None:
            self.is_special[self.end] = False  # it is predicted like any other
        prompt_only(tokenizer, self.start)
        if args.model_name_or_path is not None:
            config = AutoConfig.from_pretrained(args.model_name_or_path, trust_remote_code=False)
            if not getattr(config, "is_causal", False):
                logger.info(
                    "%s looks both ways; causal-lm sets is_causal, and from here on no token sees a later one.",
                    args.model_name_or_path,
                )

    # --- Rows and batches ---

    def encode(self, splits: DatasetDict) -> DatasetDict:
        """Text to windows of at most `max_seq_length` tokens; nothing is dropped, and each token is predicted once, but
        for a text's first where the tokenizer has no token that begins one.

        Returns:
            for each split the columns `input_ids` (narrow integers), `length`, and `source`, the row of the split
            that the window is from
        """
        return self.map_rows(splits, self._windows, self.features(), self.start, self.end)

    def features(self) -> Features:
        return Features({"input_ids": self.id_feature(), "length": Value("int32"), "source": Value("int32")})

    def _windows(self, batch: dict[str, list], indices: list[int], split: str) -> dict[str, list]:
        encoded = encode_rows(
            self.tokenizer,
            batch["text"],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # of texts longer than the model, which windows are for
        )["input_ids"]
        start, end = ([] if token is None else [token] for token in (self.start, self.end))
        capacity = self.args.max_seq_length - len(start)
        overlap = 1 - len(start)  # what nothing stands before is predicted by the window before
        windows, sources = [], []
        for text, index in zip(encoded, indices, strict=True):
            ids = text + end
            places = range(0, max(len(ids) - overlap, bool(ids)), capacity - overlap)
            cut = [start + ids[place : place + capacity] for place in places]
            windows += cut
            sources += [index] * len(cut)
        return {"input_ids": windows, "length": [len(ids) for ids in windows], "source": sources}

    def label_row(self, training: bool) -> LabelRow:
        return predict_next

    def collator(self, training: bool) -> PaddedCollator:
        return PaddedCollator(
            self.tokenizer.pad_token_id, predict_next, self.args.max_seq_length, prediction_positions=False
        )

    def measure(self, model: nn.Module, batch: Batch) -> Measurement:
        """Losses over the tokens of one evaluation batch."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        rows, places = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
        return self.token_losses(logits[rows, places], labels[rows, places], rows, len(labels))

    # --- What a model that only counts would reach ---

    def baseline_loss(self, train: Dataset, evaluation: Dataset) -> float:
        """Cross-entropy of the unigram model on the evaluation tokens, in nats."""
        _, counts = self.training_tokens(train)
        return UnigramModel(counts).loss(self._pairs(evaluation)[1])

    def baselines(self, train: Dataset, evaluation: Dataset) -> dict[str, float]:
        """What the commonest token reaches, and the one that most often follows the token before."""
        tokens, counts = self.training_tokens(train)
        left, targets = self._pairs(evaluation)
        return {
            "eval_unigram_loss": UnigramModel(counts).loss(targets),
            "eval_unigram_accuracy": UnigramModel(counts).accuracy(targets),
            "eval_bigram_accuracy": BigramModel(tokens, counts, ~self.is_special).accuracy_from_left(left, targets),
        }

    def _pairs(self, evaluation: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Each predicted token of the rows, second, and the token before it, first: both (tokens,)."""
        rows = list(numpy_column(evaluation, "input_ids"))
        left, right = np.concatenate([ids[:-1] for ids in rows]), np.concatenate([ids[1:] for ids in rows])
        return left.astype(np.int64), right.astype(np.int64)

    # --- What it learned, to look at ---

    def examples(self, model: nn.Module, evaluation: Dataset, count: int = 5) -> list[str]:
        """Held-out beginnings, and how the model goes on: the likeliest token, again and again."""
        examples: list[str] = []
        rows = evaluation.with_format("numpy", columns=["input_ids"])
        device = next(model.parameters()).device
        for index in np.random.default_rng(EVALUATION_SEED).permutation(len(rows)).tolist():
            ids = torch.from_numpy(rows[index]["input_ids"].astype(np.int64))[None]
            if ids.shape[1] < PROMPT + CONTINUATION:
                continue
            said = model.generate(  # type: ignore[operator]
                ids[:, :PROMPT].to(device),
                attention_mask=torch.ones(1, PROMPT, dtype=torch.long, device=device),
                max_new_tokens=CONTINUATION,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.end,
            )[0, PROMPT:]
            prompt, said, there = (
                " ".join(self.tokenizer.decode(part, skip_special_tokens=True).split())
                for part in (ids[0, :PROMPT], said, ids[0, PROMPT : PROMPT + CONTINUATION])
            )
            examples.append(f"{prompt} → {said}\n    (text: {there})")
            if len(examples) == count:
                break
        return examples

    def summary(self, metrics: dict[str, Any]) -> str:
        """The result in a few lines."""
        return (
            f"{self.result_line(metrics)}\n"
            f"next-token accuracy {metrics['eval_accuracy']:.3f}   "
            f"(counting alone: commonest token {metrics['eval_unigram_accuracy']:.3f}, "
            f"after the one before {metrics['eval_bigram_accuracy']:.3f})"
        )

    @staticmethod
    def usage(where: str, text: str | None = None) -> str:
        asked = json.dumps(text or "Return a new", ensure_ascii=False)
        return f'write = pipeline("text-generation", "{where}")\nprint(write({asked}))'


def predict_next(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """A row's tokens, twice: the model itself compares each position with the token after it. Nothing predicts the first."""
    ids = row["input_ids"].astype(np.int64)
    labels = ids.copy()
    labels[:1] = IGNORE_INDEX
    return ids, labels


def prompt_only(tokenizer: PreTrainedTokenizerBase, start: int | None) -> None:
    """Have the tokenizer put `start` before a text and nothing behind it, so that what it gives can be gone on from."""
    if start is None:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
        return
    token = tokenizer.convert_ids_to_tokens(start)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B:1", special_tokens=[(token, start)]
    )


def first_of(*ids: int | None) -> int | None:
    """The first id that there is."""
    return next((token for token in ids if token is not None), None)
