"""Compiled training on a GPU: one graph, started kernel by kernel or as CUDA graphs, and the same losses."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from torch._dynamo.utils import counters

from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.run import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPTIONS = {
    "max_train_samples": 300, "max_eval_samples": 20, "vocab_size": 1000, "packing": "packed", "tokens_per_batch": 512,
    "max_steps": 12, "eval_steps": 6, "logging_steps": 1, "gradient_accumulation_steps": 2,
}  # fmt: skip


def losses(folder, **options):
    torch.compiler.reset()
    counters.clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    run(Arguments(output_dir=str(folder), **OPTIONS, **options))
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "grad_norm" in record]


@pytest.mark.parametrize("options", [{"bf16": True}, {"fp16": True, "optim": "adamw"}], ids=["bf16", "fp16"])
@pytest.mark.parametrize("preset", ["classic-tiny", "modern-tiny"])
def test_cuda_graphs_learn_the_same(preset, options, tmp_path):
    """Over micro-batches that are added up; with dropout in the classic shape, whose draws are others than eager ones."""
    options = options | {"preset": preset, "torch_compile": True}
    launched = losses(tmp_path / "launched", **options)
    assert counters["stats"]["unique_graphs"] == 1
    graphs = losses(tmp_path / "graphs", torch_compile_mode="reduce-overhead", **options)
    assert counters["stats"]["unique_graphs"] == 1 and counters["inductor"]["cudagraph_skips"] == 0
    assert torch._inductor.cudagraph_trees.get_manager(0, create_if_none_exists=False) is not None
    assert len(graphs) == 12 and graphs[-1] < graphs[0]
    assert graphs == pytest.approx(launched, rel=2e-3)
