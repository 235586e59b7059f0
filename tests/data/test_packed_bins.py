"""Rows packed into batches of one shape."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tfenc.data.batching import TrainingBins
from hf_tfenc.data.collators import EncodedRows
from hf_tfenc.data.packing import PackedBins, PackedCollator
from hf_tfenc.presets import preset_config
from hf_tfenc.tasks import TASKS
from hf_tfenc.training.arguments import Arguments

LENGTHS = np.clip(np.exp(np.random.default_rng(0).normal(4, 0.8, 3000)), 3, 128).astype(int)


def third(length):
    return max(1, round(length / 3))


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80),
    tokens=st.integers(40, 200),
    predicted=st.sampled_from([None, third]),
    epoch=st.integers(0, 3),
)
def test_every_row_is_in_one_bin_that_holds_it(lengths, tokens, predicted, epoch):
    lengths = np.array(lengths)
    arrangement = PackedBins.for_rows(lengths, tokens, predicted)
    bins = arrangement(lengths, seed=1, epoch=epoch)
    assert sorted(np.concatenate(bins).tolist()) == list(range(len(lengths)))
    assert len(bins) == arrangement.count(lengths, seed=1, epoch=epoch)
    for rows in bins:
        assert 0 < len(rows) <= arrangement.sequences
        assert lengths[rows].sum() <= tokens
        assert predicted is None or sum(map(third, lengths[rows])) <= arrangement.predictions


@pytest.mark.parametrize("tokens", [1024, 4096, 16384])
def test_bins_are_full(tokens):
    arrangement = PackedBins.for_rows(LENGTHS, tokens, third)
    bins = arrangement(LENGTHS, seed=0, epoch=0)
    fullest = sorted(LENGTHS[rows].sum() / tokens for rows in bins)[1:]  # the rows at the end fill no bin
    assert np.mean(fullest) > 0.99
    assert arrangement.predictions < 1.1 * tokens / 3


def test_an_epoch_is_a_pure_function():
    def bins(seed, epoch):
        return [rows.tolist() for rows in PackedBins.for_rows(LENGTHS, 2048)(LENGTHS, seed, epoch)]

    assert bins(1, 0) == bins(1, 0)
    assert len({str(bins(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_an_epoch_whose_bins_differ_from_the_next_ones(processes):
    for epoch in range(3):
        seen = []
        for process in range(processes):
            sampler = TrainingBins(LENGTHS, PackedBins.for_rows(LENGTHS, 4096), 7, 2, process, processes)
            sampler.begin(epoch)
            assert sampler.steps(epoch) * 2 == len(sampler) == len(list(sampler))
            seen += [row for rows in sampler for row in rows]
        assert sorted(seen) == [(epoch, row) for row in range(len(LENGTHS))]


@pytest.fixture(params=["mlm", "causal-lm"])
def packed_task(request, tokenizer, texts):
    """The task, its rows, and how they are packed and collated."""
    options = {"task": request.param, "max_seq_length": 32, "packing": "packed", "tokens_per_batch": 100}
    task = TASKS[request.param](Arguments(**options), copy.deepcopy(tokenizer))  # the task may change it
    encoded = task.encode(DatasetDict(train=Dataset.from_dict({"text": texts[:60]})))["train"]
    return task, encoded, *task.training_batches(encoded.with_format("numpy")["length"][:])


def batches_of(packed_task):
    """The batches of an epoch, each with the rows in it; the last one is empty."""
    _, encoded, arrangement, collate = packed_task
    sampler = TrainingBins(encoded.with_format("numpy")["length"][:], arrangement, seed=3)
    rows = EncodedRows(encoded)
    return [(rows.__getitems__(indices), collate(rows.__getitems__(indices))) for indices in [*sampler, []]]


def test_all_batches_have_the_same_shape(packed_task):
    batches = [batch for _, batch in batches_of(packed_task)]
    assert len(batches) > 5
    shapes = [
        {name: value.shape if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for batch in batches
    ]
    assert shapes.count(shapes[0]) == len(shapes)
    assert batches[0]["input_ids"].shape == (1, 100)


def test_a_packed_row_holds_its_rows_one_after_another(packed_task):
    task = packed_task[0]
    for rows, batch in batches_of(packed_task):
        bounds = batch["cu_seq_lens_q"].tolist()
        assert bounds[0] == 0 and bounds[-1] == 100 and bounds == sorted(bounds)
        labelled = 0
        for row, start, end in zip(rows, bounds, bounds[1:], strict=False):
            inputs, labels = task.label_row(training=True)(row)
            assert batch["input_ids"][0, start:end].tolist() == inputs.tolist()
            assert batch["labels"][0, start:end].tolist() == labels.tolist()
            assert batch["position_ids"][0, start:end].tolist() == list(range(end - start))
            labelled += (labels != -100).sum()
        filled = bounds[len(rows)]
        assert (batch["input_ids"][0, filled:] == task.tokenizer.pad_token_id).all()
        assert (batch["labels"] != -100).sum() == labelled == task.count_items(batch)
        assert task.count_tokens(batch) == filled == sum(len(row["input_ids"]) for row in rows)
        assert np.diff(bounds).max() <= 32 and batch["position_ids"].max() < 32
        if "prediction_positions" in batch:
            where = batch["prediction_positions"]
            assert (batch["labels"][0, where] != -100).sum() == labelled
            assert set((batch["labels"][0] != -100).nonzero()[:, 0].tolist()) <= set(where.tolist())


@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
def test_the_loss_is_that_of_padded_rows(packed_task, attention):
    task = packed_task[0]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    options = {f"{part}_dropout": 0.0 for part in ("embedding", "hidden", "attention", "mlp")} | task.config_options
    torch.manual_seed(0)
    config = preset_config("modern-tiny", vocab_size=len(task.tokenizer), **sizes, **options)
    model = task.auto_class.from_config(config, attn_implementation=attention).train()
    for rows, batch in [*batches_of(packed_task)[:2], *batches_of(packed_task)[-1:]]:
        padded = task.collator(training=True)(rows)
        expected = model(**padded, num_items_in_batch=7).loss
        torch.testing.assert_close(model(**batch, num_items_in_batch=7).loss, expected)


@pytest.mark.parametrize("name", ["mlm", "causal-lm"])
def test_rows_of_one_length_are_a_batch_as_they_are(tokenizer, name):
    """On a CPU by sdpa and its masks, on a GPU by kernels that need none."""
    options = {"task": name, "max_seq_length": 16, "packing": "packed", "tokens_per_batch": 64}
    task = TASKS[name](Arguments(**options), copy.deepcopy(tokenizer))
    random = np.random.default_rng(0)
    rows = [{"input_ids": random.integers(5, 200, 16), "epoch": 0, "row": row} for row in range(3)]
    bins, collate = task.training_batches(np.full(30, 16))
    whole = collate(rows)
    assert whole["input_ids"].shape == whole["labels"].shape == (4, 16)
    assert not {"position_ids", "cu_seq_lens_q", "max_length_q"} & set(whole)
    assert task.count_tokens(whole) == 48 and (whole["labels"][3] == -100).all()
    packed = PackedCollator(replace(bins, row_length=None), collate.pad_token_id, collate.label_row, 16)(rows)
    assert torch.equal(packed["labels"].flatten(), whole["labels"].flatten())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = preset_config("modern-tiny", vocab_size=len(task.tokenizer), sliding_window=4, **sizes)
    torch.manual_seed(0)
    model = task.auto_class.from_config(config).train()
    torch.testing.assert_close(model(**whole).loss, model(**packed).loss)
    assert task.training_batches(np.array([16, 15]))[0].row_length is None
