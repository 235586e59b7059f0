"""Masked language modelling: hide some tokens, predict them from the others."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.fingerprint import Hasher
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from ..data.batching import EvaluationBins
from ..data.collators import IGNORE_INDEX, PaddedCollator
from ..data.masking import TokenMasking
from ..tokenization import encode_rows, token_byte_lengths, tokenizer_digest
from .count_models import BigramModel, UnigramModel

if TYPE_CHECKING:
    from ..training.arguments import Arguments

EVALUATION_SEED = 0  # evaluation masks are the same for every run, so that runs can be compared
BASELINE_TOKENS = 20_000_000  # of training text counted at most; beyond, the counts hardly move and memory does


class MaskedLM:
    """The task `mlm`."""

    auto_class = AutoModelForMaskedLM
    config_options = {"sparse_prediction": True}

    def __init__(self, args: "Arguments", tokenizer: PreTrainedTokenizerBase):
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "The tokenizer has no mask token, and masked language modelling needs one: "
                "choose another --tokenizer_name, or train one by leaving it out."
            )
        self.args, self.tokenizer = args, tokenizer
        self.is_special = np.zeros(len(tokenizer), dtype=bool)
        self.is_special[tokenizer.all_special_ids] = True
        self.bytes_of = torch.from_numpy(token_byte_lengths(tokenizer))

    # --- Rows and batches ---

    def encode(self, splits: DatasetDict) -> DatasetDict:
        """Text to windows of at most `max_seq_length` tokens, special ones included; nothing is dropped.

        Returns:
            for each split the columns `input_ids` (narrow integers) and `length`
        """
        ids = Value("uint16" if len(self.tokenizer) <= 2**16 else "int32")
        features = Features({"input_ids": List(ids), "length": Value("int32")})
        return DatasetDict(
            {
                split: rows.map(
                    self._windows,
                    batched=True,
                    remove_columns=rows.column_names,
                    features=features,
                    new_fingerprint=self._fingerprint(rows),
                    desc=f"Tokenizing {split}",
                )
                for split, rows in splits.items()
            }
        )

    def _windows(self, batch: dict[str, list]) -> dict[str, list]:
        encoded = encode_rows(
            self.tokenizer,
            batch["text"],
            truncation=True,
            max_length=self.args.max_seq_length,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return {"input_ids": encoded, "length": [len(ids) for ids in encoded]}

    def _fingerprint(self, rows: Dataset) -> str:
        # By hand, because a tokenizer keeps the truncation it was last called with, and would hash differently.
        return Hasher.hash(
            ["windows", 1, rows._fingerprint, tokenizer_digest(self.tokenizer), self.args.max_seq_length]
        )

    def collator(self, training: bool) -> PaddedCollator:
        args = self.args
        masking = TokenMasking(
            seed=args.seed if training else EVALUATION_SEED,
            probability=args.mlm_probability if training else args.eval_mlm_probability,
            mask_token_id=self.tokenizer.mask_token_id,
            is_special=self.is_special,
        )
        return PaddedCollator(self.tokenizer.pad_token_id, masking, args.max_seq_length)

    # --- Loss and metrics ---

    @staticmethod
    def count_items(batch: dict[str, Tensor]) -> Tensor:
        """Masked tokens of a batch: what the loss is a mean over."""
        return (batch["labels"] != IGNORE_INDEX).sum()

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
        """Sums over the masked tokens of one evaluation batch."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float()  # (masked tokens, vocab)
        labels = batch["labels"].flatten()[batch["prediction_positions"]]
        return {
            "loss": F.cross_entropy(logits, labels, reduction="sum").item(),
            "items": len(labels),
            "correct": (logits.argmax(dim=-1) == labels).sum().item(),
            "bytes": self.bytes_of[labels.cpu()].sum().item(),
        }

    @staticmethod
    def metrics(sums: dict[str, float]) -> dict[str, float]:
        """Metrics from those sums over a whole split."""
        items = max(sums["items"], 1)
        return {
            "eval_loss": sums["loss"] / items,
            "eval_perplexity": float(np.exp(min(sums["loss"] / items, 700))),
            "eval_accuracy": sums["correct"] / items,
            "eval_loss_per_byte": sums["loss"] / max(sums["bytes"], 1),
        }

    # --- What a model that only counts would reach ---

    def baseline_loss(self, train: Dataset, evaluation: Dataset) -> float:
        """Cross-entropy of the unigram model on the masked tokens of the evaluation rows, in nats."""
        _, counts = self._counts(train)
        _, labels = self._evaluation_tokens(evaluation)
        return UnigramModel(counts).loss(labels[labels >= 0])

    def baselines(self, train: Dataset, evaluation: Dataset) -> dict[str, float]:
        """What the two count models reach on the evaluation's own masked positions."""
        tokens, counts = self._counts(train)
        inputs, labels = self._evaluation_tokens(evaluation)
        targets = labels[labels >= 0]
        bigram = BigramModel(tokens, counts, ~self.is_special)
        return {
            "eval_unigram_loss": UnigramModel(counts).loss(targets),
            "eval_unigram_accuracy": UnigramModel(counts).accuracy(targets),
            "eval_bigram_accuracy": bigram.accuracy(inputs, labels, self.tokenizer.mask_token_id),
        }

    def _counts(self, train: Dataset) -> tuple[np.ndarray, np.ndarray]:
        chunks, total = [], 0
        for batch in train.with_format("numpy", columns=["input_ids"]).iter(batch_size=1000):
            chunks += list(batch["input_ids"])
            total += sum(map(len, batch["input_ids"]))
            if total >= BASELINE_TOKENS:
                break
        tokens = np.concatenate(chunks).astype(np.int64)
        counts = np.bincount(tokens, minlength=len(self.is_special))
        return tokens, np.where(self.is_special, 0, counts)

    def _evaluation_tokens(self, evaluation: Dataset) -> tuple[np.ndarray, np.ndarray]:
        label_row = self.collator(training=False).label_row
        rows = evaluation.with_format("numpy", columns=["input_ids"])["input_ids"]
        pairs = [label_row(ids, EvaluationBins.EPOCH, index) for index, ids in enumerate(rows)]
        return np.concatenate([inputs for inputs, _ in pairs]), np.concatenate([labels for _, labels in pairs])

    # --- What it learned, to look at ---

    def examples(self, model: nn.Module, evaluation: Dataset, count: int = 5) -> list[str]:
        """Held-out passages, each with one word hidden, and what the model would put there."""
        chosen: list[str] = []
        rows = evaluation.with_format("numpy", columns=["input_ids"])
        for index in np.random.default_rng(EVALUATION_SEED).permutation(len(rows)):
            ids = rows[int(index)]["input_ids"].astype(np.int64)
            words = [p for p in range(8, len(ids) - 8) if self._is_word(ids[p - 1 : p + 2].tolist())]
            if words:
                chosen.append(self._fill(model, ids, words[len(words) // 2]))
            if len(chosen) == count:
                break
        return chosen

    def _is_word(self, ids: list[int]) -> bool:
        """Whether the second of three tokens is a word by itself."""
        before, word, after = ids
        text = self.tokenizer.decode([word]).strip()
        if len(text) < 4 or not text.isalpha():
            return False
        alone = re.compile(rf"(?<!\w){text}(?!\w)")
        return all(alone.search(self.tokenizer.decode(pair)) for pair in ([before, word], [word, after]))

    def _fill(self, model: nn.Module, ids: np.ndarray, position: int) -> str:
        target, hidden = int(ids[position]), ids.copy()
        hidden[position] = self.tokenizer.mask_token_id
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(hidden)[None].to(device)).logits[0, position]
        probabilities, best = logits.float().softmax(dim=-1).topk(3)
        around = hidden[max(1, position - 12) : position], hidden[position + 1 : min(len(ids) - 1, position + 9)]
        left, right = (" ".join(self.tokenizer.decode(part).split()) for part in around)
        guesses = ", ".join(
            f"{self.tokenizer.decode([token]).strip()!r} {probability:.0%}"
            for token, probability in zip(best.tolist(), probabilities.tolist(), strict=True)
        )
        return f"… {left} ____ {right} …\n    {guesses}   (text: {self.tokenizer.decode([target]).strip()!r})"

    @staticmethod
    def summary(metrics: dict[str, Any]) -> str:
        """The result in a few lines."""
        return (
            f"held-out loss {metrics['eval_loss']:.3f} · perplexity {metrics['eval_perplexity']:.1f} · "
            f"loss per byte {metrics['eval_loss_per_byte']:.3f}\n"
            f"masked-token accuracy {metrics['eval_accuracy']:.3f}   "
            f"(counting alone, on the same positions: commonest token {metrics['eval_unigram_accuracy']:.3f}, "
            f"between its neighbours {metrics['eval_bigram_accuracy']:.3f})"
        )
