"""Every task on a little data of its own, and a model small enough to run in a test."""

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from hf_tfenc.data.batching import EvaluationBins
from hf_tfenc.data.collators import EncodedRows
from hf_tfenc.presets import preset_config
from hf_tfenc.tasks import join

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
# Every head of one task, and of tasks that have more than one kind of data, each kind.
CASES = ["mlm", "causal-lm", "single", "multi", "regression", "tagging", "bio", "pairs", "triplets", "scored"]
TASK_OF = {
    "single": "sequence-classification",
    "multi": "sequence-classification",
    "regression": "sequence-classification",
    "tagging": "token-classification",
    "bio": "token-classification",
    "pairs": "embedding",
    "triplets": "embedding",
    "scored": "embedding",
}


def rows_of(case, texts):
    """Rows as a source would give them."""
    words = [text.split()[1:] for text in texts]
    kinds = {
        "single": {"text": texts, "label": ["cat" if "cat" in t else "dog" if "dog" in t else "none" for t in texts]},
        "multi": {"text": texts, "label": [[a for a in ("cat", "dog", "fox") if a in t] for t in texts]},
        "regression": {"text": texts, "label": [t.count("the") / 2 for t in texts]},
        "tagging": {"words": words, "tags": [[w[0].upper() for w in row] for row in words]},
        "bio": {"words": words, "tags": [[bio(row, i) for i in range(len(row))] for row in words]},
        "pairs": {"anchor": texts, "positive": [" ".join(reversed(t.split())) for t in texts]},
        "scored": {"anchor": texts, "positive": texts[::-1], "score": [float(len(t) % 6) for t in texts]},
    }
    kinds["triplets"] = kinds["pairs"] | {"negative": texts[::-1]}
    return Dataset.from_dict(kinds.get(case, {"text": texts}))


def bio(words, place):
    if words[place] in ("cat", "dog", "fox"):
        return "B-animal" if place == 0 or words[place - 1] not in ("the", "small", "old") else "I-animal"
    if words[place] in ("small", "old") or (words[place] == "the" and words[place + 1 : place + 2] == ["cat"]):
        return "B-animal"
    return "O"


def make_model(task, seed=0, preset="modern-tiny", **options):
    torch.manual_seed(seed)
    sizes = SIZES | {"vocab_size": len(task.tokenizer), "initializer_range": 0.2}
    return task.auto_class.from_config(preset_config(preset, **sizes | task.config_options | options)).eval()


def measured(task, model, rows, batch_size=8, processes=1):
    """What is measured of a model, as if by some processes."""
    lengths, parts = rows.with_format("numpy")["length"][:], []
    for process in range(processes):
        bins = EvaluationBins(lengths, batch_size, process, processes)
        loader = DataLoader(EncodedRows(rows), batch_sampler=bins, collate_fn=task.collator(training=False))
        with torch.no_grad():
            # A bin without rows stands in for none, so that all processes have as many.
            parts += [
                {"row": np.array([row for _, row in bin]), **task.measure(model, batch)}
                for bin, batch in zip(bins, loader, strict=True)
                if bin
            ]
    return join(parts)


def evaluate(task, model, rows, **split):
    """Metrics of a model, as if by some processes."""
    return task.metrics(measured(task, model, rows, **split))


def batch_of(task, rows, indices, training=True):
    return task.collator(training)(EncodedRows(rows).__getitems__([(0, index) for index in indices]))
