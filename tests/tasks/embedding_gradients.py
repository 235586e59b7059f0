"""Run by test_embedding.py in one process or two: prints the loss and the gradient of some steps, as JSON."""

import json

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from hf_tfenc import TfEncModel
from hf_tfenc.presets import preset_config
from hf_tfenc.tasks.embedding import Embedding, TextsCollator
from hf_tfenc.tokenization import train_tokenizer
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.trainer import training_step

BINS = {"whole": [4, 4, 4, 4], "uneven": [4, 1, 3, 0]}  # rows of the micro-batches of a step, of all processes

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
tokenizer = train_tokenizer(["some words to begin with"] * 3, 280, model_max_length=64)
result = {}
for scored in (False, True):
    for name, sizes in BINS.items():
        set_seed(0)
        sizes_of_model = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = TfEncModel(preset_config("modern-tiny", vocab_size=280, initializer_range=0.2, **sizes_of_model))
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0))
        task = Embedding(Arguments(task="embedding"), tokenizer)
        task.scored = scored

        random, collate = np.random.default_rng(0), TextsCollator(0, 64, ("anchor", "positive"))
        rows = []
        for row in range(sum(sizes)):
            texts = {part: random.integers(5, 280, size=random.integers(3, 20)) for part in ("anchor", "positive")}
            rows.append(texts | {"row": row} | ({"score": row / 16} if scored else {}))
        if not scored:
            rows[3]["positive"] = rows[0]["positive"]
        starts = np.cumsum([0, *sizes])
        bins = [rows[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        own = [collate(rows) for rows in bins[accelerator.process_index :: accelerator.num_processes]]
        if scored:
            own = [{"score": torch.zeros(1)} | batch for batch in own]
        step = training_step(accelerator, model.train(), optimizer, own, task)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        result[f"{name} {scored}"] = {
            "loss": step.loss.item(), "items": step.items.item(), "gradient": [*gradient[::97].tolist(), gradient.norm().item()],
        }  # fmt: skip
if accelerator.is_main_process:
    print(json.dumps(result))
accelerator.end_training()
