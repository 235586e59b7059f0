"""Masked language modelling: hide some tokens, predict them from the others."""

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from tokenizers import Encoding
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from ..command import SCRIPT, training_command
from ..data.batching import EvaluationBins
from ..data.collators import LabelRow, PaddedCollator, numpy_column
from ..data.masking import MASKINGS, TokenMasking, masked_tokens
from ..tokenization import encode_rows
from .count_models import BigramModel, UnigramModel
from .language_modeling import EVALUATION_SEED, LanguageModeling
from .task import WIDGET_TOKENS, Batch, Measurement

if TYPE_CHECKING:
    from ..training.arguments import Arguments


class MaskedLM(LanguageModeling):
    """The task `mlm`.

    Training hides tokens, whole words or spans, as `--mlm_masking` says. Evaluation always hides tokens, the same ones,
    so that runs can be compared.
    """

    auto_class = AutoModelForMaskedLM
    pipeline_tag = "fill-mask"
    description = "masked language modelling"
    epochs = 8
    reported = {
        "eval_accuracy": "masked-token accuracy",
        "eval_loss": "loss, nats a masked token",
        "eval_perplexity": "perplexity",
        "eval_loss_per_byte": "loss, nats a byte of the masked text",
    }
    counted = {
        "eval_bigram_accuracy": "accuracy of a token counted between its two neighbours",
        "eval_unigram_accuracy": "accuracy of the commonest token",
        "eval_unigram_loss": "loss of the frequencies of tokens",
    }
    config_options = {"sparse_prediction": True}

    def __init__(self, args: "Arguments", tokenizer: PreTrainedTokenizerBase):
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "The tokenizer has no mask token, and masked language modelling needs one: "
                "choose another --tokenizer_name, or train one by leaving it out."
            )
        super().__init__(args, tokenizer)
        self.marks_words = args.mlm_masking != "token"

    # --- Rows and batches ---

    def encode(self, splits: DatasetDict) -> DatasetDict:
        """Text to windows of at most `max_seq_length` tokens, special ones included; nothing is dropped.

        Returns:
            for each split the columns `input_ids` (narrow integers), `length`, and `source`, the row of the split
            that the window is from; and `word_starts` (a bit for each token) where masks are of words or spans
        """
        encoded = self.map_rows(splits, self._windows, self.features(), self.marks_words)
        for split, rows in encoded.items():
            batches = (pc.list_flatten(b.column("input_ids")) for b in rows.with_format("arrow").iter(batch_size=1000))
            if len(rows) and all(self.is_special[ids.to_numpy()].all() for ids in batches):
                raise ValueError(
                    f"No token of the {split} split can be masked, for all are special or unknown to the tokenizer: "
                    "choose one that knows the text, such as --tokenizer_type byte-level-bpe."
                )
        return encoded

    def features(self) -> Features:
        features = {"input_ids": self.id_feature(), "length": Value("int32"), "source": Value("int32")}
        if self.marks_words:
            features["word_starts"] = List(Value("bool"))
        return Features(features)

    def _windows(self, batch: dict[str, list], indices: list[int], split: str) -> dict[str, list]:
        encoded = encode_rows(
            self.tokenizer,
            batch["text"],
            truncation=True,
            max_length=self.args.max_seq_length,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        sources = encoded["overflow_to_sample_mapping"]
        windows = {"input_ids": encoded["input_ids"], "length": [len(ids) for ids in encoded["input_ids"]]}
        windows["source"] = [indices[source] for source in sources]
        if self.marks_words:
            windows["word_starts"] = [
                word_starts(window, batch["text"][source])
                for window, source in zip(encoded.encodings, sources, strict=True)
            ]
        return windows

    def predicted(self, length: int) -> int:  # type: ignore[override]
        """How many tokens of a row are masked in training, at most."""
        return masked_tokens(length, self.args.mlm_probability)

    def label_row(self, training: bool) -> LabelRow:
        """Masks, in training those of the run, in evaluation always the same."""
        args = self.args
        kind = MASKINGS[args.mlm_masking] if training else TokenMasking
        return kind(
            seed=args.seed if training else EVALUATION_SEED,
            probability=args.mlm_probability if training else args.eval_mlm_probability,
            mask_token_id=self.tokenizer.mask_token_id,
            is_special=self.is_special,
        ).label_row

    def collator(self, training: bool) -> PaddedCollator:
        return PaddedCollator(self.tokenizer.pad_token_id, self.label_row(training), self.args.max_seq_length)

    def measure(self, model: nn.Module, batch: Batch) -> Measurement:
        """Losses over the masked tokens of one evaluation batch."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        where = batch["prediction_positions"]
        count, length = batch["labels"].shape
        return self.token_losses(model(**inputs).logits, batch["labels"].flatten()[where], where // length, count)

    # --- What a model that only counts would reach ---

    def baseline_loss(self, train: Dataset, evaluation: Dataset) -> float:
        """Cross-entropy of the unigram model on the masked tokens of the evaluation rows, in nats."""
        _, counts = self.training_tokens(train)
        _, labels = self._evaluation_tokens(evaluation)
        return UnigramModel(counts).loss(labels[labels >= 0])

    def baselines(self, train: Dataset, evaluation: Dataset) -> dict[str, float]:
        """What the two count models reach on the evaluation's own masked positions."""
        tokens, counts = self.training_tokens(train)
        inputs, labels = self._evaluation_tokens(evaluation)
        targets = labels[labels >= 0]
        bigram = BigramModel(tokens, counts, ~self.is_special)
        return {
            "eval_unigram_loss": UnigramModel(counts).loss(targets),
            "eval_unigram_accuracy": UnigramModel(counts).accuracy(targets),
            "eval_bigram_accuracy": bigram.accuracy(inputs, labels, self.tokenizer.mask_token_id),
        }

    def _evaluation_tokens(self, evaluation: Dataset) -> tuple[np.ndarray, np.ndarray]:
        label_row = self.label_row(training=False)
        pairs = [
            label_row({"input_ids": ids, "epoch": EvaluationBins.EPOCH, "row": row})
            for row, ids in enumerate(numpy_column(evaluation, "input_ids"))
        ]
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
            f"{self._shown(token)} {probability:.0%}"
            for token, probability in zip(best.tolist(), probabilities.tolist(), strict=True)
        )
        return f"… {left} ____ {right} …\n    {guesses}   (text: {self._shown(target)})"

    def _shown(self, token: int) -> str:
        """A token in quotes, without the space before its word; one of white space as it is."""
        text = self.tokenizer.decode([token])
        return repr(text.strip() or text)

    def summary(self, metrics: dict[str, Any]) -> str:
        """The result in a few lines."""
        return (
            f"{self.result_line(metrics)}\n"
            f"masked-token accuracy {metrics['eval_accuracy']:.3f}   "
            f"(counting alone, on the same positions: commonest token {metrics['eval_unigram_accuracy']:.3f}, "
            f"between its neighbours {metrics['eval_bigram_accuracy']:.3f})"
        )

    @staticmethod
    def usage(where: str, text: str | None = None) -> str:
        asked = (
            'f"Return a new {fill.tokenizer.mask_token}."' if text is None else json.dumps(text, ensure_ascii=False)
        )
        return f'fill = pipeline("fill-mask", "{where}")\nprint(fill({asked}))'

    def widget(self, evaluation: Dataset) -> list[dict[str, Any]]:
        ids = np.asarray(evaluation[0]["input_ids"])[:WIDGET_TOKENS].tolist()
        ids = [token for token in ids if not self.is_special[token]]
        words = [p for p in range(1, len(ids) - 1) if self._is_word(ids[p - 1 : p + 2])] or [len(ids) // 2]
        ids[words[-1] : words[-1] + 1] = [self.tokenizer.mask_token_id]
        return [{"text": " ".join(self.tokenizer.decode(ids).split())}]

    @staticmethod
    def next_steps(folder: str, built_in: bool) -> list[str]:
        train = training_command()
        recipe = [f"{train} --config recipes/classic.yaml"] * (train == SCRIPT)  # the recipes lie beside it
        more = [*recipe, f"{train} --train_file your.txt --output_dir outputs/mine"]
        task = f"{train} --task sequence-classification --model_name_or_path {folder}"
        return [*more * built_in, task + " --train_file your.csv" * (not built_in)]


def word_starts(window: Encoding, text: str) -> list[bool]:
    """Which tokens begin a word: (length,). Special tokens do.

    Words are those of the tokenizer's own pre-tokenizer, cut again at white space, for some tokenizers take a whole
    text for one word.
    """
    starts, previous, word_before = [], (0, 0), None
    for (start, end), word in zip(window.offsets, window.word_ids, strict=True):
        # A token may hold the space before its word, stand behind it, or leave it out; a lone space begins a word.
        space = start > previous[1] or any(text[place : place + 1].isspace() for place in (start, max(start - 1, 0)))
        starts.append(word is None or word != word_before or (space and not text[slice(*previous)].isspace()))
        previous, word_before = (start, end), word
    return starts
