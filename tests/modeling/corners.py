"""Tiny models in the three corners, with weights that hide nothing, and rows for each head."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hf_tfenc import (
    TfEncConfig,
    TfEncForCausalLM,
    TfEncForMaskedLM,
    TfEncForMultipleChoice,
    TfEncForQuestionAnswering,
    TfEncForSequenceClassification,
    TfEncForTokenClassification,
)
from hf_tfenc.presets import preset_config

VOCAB, LABELS, CHOICES = 96, 3, 2
SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,  # heads of 16 features, the least that flex_attention takes on a CPU
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
CORNERS = ("classic", "bert", "modern")
NO_DROPOUT = {f"{part}_dropout": 0.0 for part in ("embedding", "hidden", "attention", "mlp", "classifier")}


def tiny(corner: str = "classic", **options: Any) -> TfEncConfig:
    """A tiny configuration of a corner; ModernBERT's local window is short, so that short rows reach past it."""
    window = {"sliding_window": 4} if corner == "modern" else {}
    return preset_config(f"{corner}-tiny", **SIZE | window | options)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter, biases and norms too: what is zero or one by default would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if id(parameter) in norms else 0.0, 0.2, generator=generator)
    return model


def build(model_class: Any, config: TfEncConfig, attention: str = "sdpa", seed: int = 0) -> Any:
    """A model of random weights in eval mode."""
    model = randomize(model_class(config), seed).eval()
    model.set_attn_implementation(attention)
    return model


def token_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padding_mask(*lengths: int, left: bool = False) -> torch.Tensor:
    """1 for tokens, 0 for padding: (rows, the longest)."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return mask.flip(1) if left else mask


def restarting(*lengths: int) -> torch.Tensor:
    """The positions of a packed row: (1, tokens)."""
    return torch.cat([torch.arange(length) for length in lengths])[None]


class Head(NamedTuple):
    """A head class with the options of one of its problems."""

    model_class: Any
    options: dict[str, Any] = {}


HEADS = {
    "masked_lm": Head(TfEncForMaskedLM),
    "sparse_masked_lm": Head(TfEncForMaskedLM, {"sparse_prediction": True}),
    "causal_lm": Head(TfEncForCausalLM),
    "single_label": Head(TfEncForSequenceClassification, {"num_labels": LABELS}),
    "multi_label": Head(
        TfEncForSequenceClassification, {"num_labels": LABELS, "problem_type": "multi_label_classification"}
    ),
    "regression": Head(TfEncForSequenceClassification, {"num_labels": 1}),
    "regression_of_several": Head(
        TfEncForSequenceClassification, {"num_labels": LABELS, "problem_type": "regression"}
    ),
    "token_classification": Head(TfEncForTokenClassification, {"num_labels": LABELS}),
    "question_answering": Head(TfEncForQuestionAnswering),
    "multiple_choice": Head(TfEncForMultipleChoice),
}


def make_rows(head: str, count: int = 16, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Rows of unequal lengths with unequal numbers of labels, as one head takes them, not yet padded."""
    generator = torch.Generator().manual_seed(seed)

    def random(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    rows = []
    for index in range(count):
        length = 4 + int(random(9))
        ids = 1 + random(VOCAB - 1, *((CHOICES, length) if head == "multiple_choice" else (length,)))
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        hidden = random(3, length) > 0  # two tokens in three have no label
        if head in ("masked_lm", "sparse_masked_lm"):
            row["labels"] = ids.masked_fill(hidden, -100)
        elif head == "causal_lm":
            row["labels"] = ids.masked_fill(torch.arange(length) < index % 3, -100)  # a prompt is not learned
        elif head == "token_classification":
            row["labels"] = random(LABELS, length).masked_fill(hidden, -100)
        elif head == "multi_label":
            row["labels"] = random(2, LABELS).float()
        elif head == "regression":
            row["labels"] = torch.randn((), generator=generator)
        elif head == "regression_of_several":
            row["labels"] = torch.randn(LABELS, generator=generator)
        elif head == "question_answering":
            row |= {"start_positions": random(length), "end_positions": random(length)}
        else:
            row["labels"] = random(CHOICES if head == "multiple_choice" else LABELS)
        rows.append({name: tensor.squeeze(0) if tensor.shape == (1,) else tensor for name, tensor in row.items()})
    return rows


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest; labels of tokens with -100."""

    def stack(name: str) -> torch.Tensor:
        tensors, fill = [row[name] for row in rows], -100 if name == "labels" else 0
        if tensors[0].dim() == 0:
            return torch.stack(tensors)
        longest = max(tensor.shape[-1] for tensor in tensors)
        return torch.stack([F.pad(tensor, (0, longest - tensor.shape[-1]), value=fill) for tensor in tensors])

    return {name: stack(name) for name in rows[0]}
