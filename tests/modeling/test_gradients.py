"""The gradient of a step does not depend on how the step is split, and the textbook's own loop trains."""

import pytest
import torch
from accelerate import Accelerator
from corners import HEADS, NO_DROPOUT, build, collate, make_rows, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

from hf_tfenc import TfEncForTokenClassification
from hf_tfenc.tasks import Task
from hf_tfenc.training.trainer import training_step

SPLITS = [(16, 1), (4, 4)]  # rows in a micro-batch, micro-batches in a step


def build_head(head, seed=0):
    model_class, options = HEADS[head]
    return build(model_class, tiny("modern", **NO_DROPOUT | options), seed=seed).train()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(first, second):
    """Each parameter's gradient to 1e-5 of its largest entry.

    A bias under a softmax over positions or choices has a gradient of zero, but for rounding: hence the 1e-6.
    """
    assert first.keys() == second.keys()
    for name, expected in first.items():
        assert expected.any(), name
        bound = 1e-6 + 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(second[name], expected, rtol=0, atol=bound)


def count_items(batch):
    """Labelled tokens or rows; an answer is one item."""
    if "labels" not in batch:
        return torch.tensor(len(batch["input_ids"]))
    return (batch["labels"] != -100).sum()


class Counting:
    """As much of a task as a step asks for."""

    count_items = staticmethod(count_items)
    backward = Task.backward


@pytest.mark.parametrize("head", HEADS)
def test_sixteen_rows_are_four_times_four_in_our_step(head):
    rows, model = make_rows(head), build_head(head)
    if head == "question_answering":  # here an answer may lie outside its row
        for row in rows[::3]:
            row["end_positions"] = torch.tensor(99)
    accelerator, losses, results = Accelerator(cpu=True), [], []
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for size, count in SPLITS:
        batches = [collate(rows[index * size : (index + 1) * size]) for index in range(count)]
        loss, *_ = training_step(accelerator, model, optimizer, batches, Counting())
        losses.append(loss)
        results.append(gradients(model))
    torch.testing.assert_close(*losses)
    assert_equal_gradients(*results)


def test_an_empty_micro_batch_adds_nothing():
    rows, model = make_rows("masked_lm", 4), build_head("masked_lm")
    empty = collate(rows[:1])
    empty["labels"] = torch.full_like(empty["labels"], -100)
    accelerator, results = Accelerator(cpu=True), []
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for batches in ([collate(rows)], [collate(rows), empty, empty]):
        training_step(accelerator, model, optimizer, batches, Counting())
        results.append(gradients(model))
    assert_equal_gradients(*results)


class KeepsGradients(Trainer):
    """transformers' Trainer, without a shuffle; its gradients are read where they are clipped."""

    def _get_train_sampler(self, *args, **kwargs):
        return None

    def _clip_grad_norm(self, model, *args, **kwargs):
        self.kept = gradients(model)
        return super()._clip_grad_norm(model, *args, **kwargs)


@pytest.mark.parametrize("head", HEADS)
def test_sixteen_rows_are_four_times_four_under_transformers_trainer(head, tmp_path):
    results = []
    for size, count in SPLITS:
        arguments = TrainingArguments(
            output_dir=tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=count,
            max_steps=1,
            remove_unused_columns=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = KeepsGradients(build_head(head), arguments, data_collator=collate, train_dataset=make_rows(head))
        trainer.train()
        results.append(trainer.kept)
    assert_equal_gradients(*results)


def test_the_textbook_loop_trains_the_encoder():
    """It learns to say the token before; every line of the loop is as a textbook has it."""
    torch.manual_seed(0)
    lengths = torch.randint(4, 9, (256, 1))
    source = torch.randint(1, 12, (256, 8)).masked_fill(torch.arange(8) >= lengths, 0)
    target = torch.cat([source[:, :1], source[:, :-1]], dim=1).masked_fill(source == 0, 0)
    loader = DataLoader(TensorDataset(source, target), batch_size=16, shuffle=True)
    model = TfEncForTokenClassification(tiny(vocab_size=12, num_labels=12))
    criterion = nn.CrossEntropyLoss(ignore_index=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    averages = []
    for _ in range(10):
        model.train()
        total = 0.0
        for inputs, targets in loader:
            optimizer.zero_grad()
            logits = model(inputs, attention_mask=(inputs != 0).long()).logits
            loss = criterion(logits.view(-1, 12), targets.view(-1))
            loss.backward()
            optimizer.step()
            total += loss.item()
        averages.append(total / len(loader))
    assert averages[-1] < 0.5 * averages[0]
