"""One graph for every head: torch.compile without a break, and torch.export with free shapes."""

import pytest
import torch
from corners import HEADS, NO_DROPOUT, build, collate, make_rows, padding_mask, restarting, tiny, token_ids
from torch.export import Dim, export

from hf_tfenc import TfEncForMaskedLM, TfEncForSequenceClassification, TfEncForTokenClassification, TfEncModel


@pytest.fixture(autouse=True)
def no_graphs_left():
    torch.compiler.reset()


def build_head(head, corner):
    model_class, options = HEADS[head]
    layers = 2 if corner == "modern" else 1  # one of each kind
    return build(model_class, tiny(corner, num_hidden_layers=layers, **NO_DROPOUT | options)).train()


def assert_trains_compiled(model, batch, backend="aot_eager"):
    """The same loss and the same gradients, from one graph."""
    losses, gradients = [], []
    for forward in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        loss = forward(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_in_one_graph(head):
    corner = "modern" if head == "masked_lm" else "classic"
    assert_trains_compiled(build_head(head, corner), collate(make_rows(head, 3)))


@pytest.mark.parametrize("head", ["masked_lm", "single_label"])
def test_packed_rows_train_in_one_graph(head):
    lengths = (5, 1, 6)
    batch = {
        "input_ids": token_ids(1, 12),
        "position_ids": restarting(*lengths),
        "cu_seq_lens_q": torch.tensor([0, 5, 6, 12, 12], dtype=torch.int32),
        "labels": token_ids(1, 12) if head == "masked_lm" else torch.tensor([0, 2, 1, -100]),
    }
    if head == "masked_lm":
        batch["prediction_positions"] = torch.arange(12)
    assert_trains_compiled(build_head(head, "modern"), batch)


@pytest.mark.parametrize("rows", [1, 3])
def test_positions_given_compile_to_the_same_outputs(rows):
    """In a graph no one can look whether positions restart; only a single row can be packed."""
    model = build(TfEncForSequenceClassification, tiny("bert", num_hidden_layers=1, num_labels=3))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids, positions = token_ids(rows, 12), torch.arange(12).expand(rows, 12)
    torch.testing.assert_close(compiled(ids, position_ids=positions).logits, model(ids).logits)
    torch.testing.assert_close(compiled(ids, position_ids=positions[:1]).logits, model(ids).logits)


@pytest.mark.slow
def test_a_masked_language_model_trains_in_one_graph_of_inductor():
    model, batch = build_head("sparse_masked_lm", "modern"), collate(make_rows("masked_lm", 3))
    batch["prediction_positions"] = (batch["labels"].flatten() != -100).nonzero()[:, 0]
    assert_trains_compiled(model, batch, backend="inductor")


@pytest.mark.parametrize(
    "model_class", [TfEncModel, TfEncForMaskedLM, TfEncForSequenceClassification, TfEncForTokenClassification]
)
@pytest.mark.parametrize("corner", ["classic", "modern"])
def test_an_exported_model_takes_any_batch_and_length(corner, model_class):
    model = build(model_class, tiny(corner, num_hidden_layers=2, num_labels=3))
    free = {0: Dim("batch", min=1, max=64), 1: Dim("length", min=2, max=64)}
    example = {"input_ids": token_ids(3, 12), "attention_mask": padding_mask(12, 7, 5)}
    program = export(model, (), example, dynamic_shapes={name: free for name in example})
    for lengths in ((12, 7, 5), (30, 1), (9, 2, 4, 6, 5), (64, 3)):
        inputs = {"input_ids": token_ids(len(lengths), max(lengths)), "attention_mask": padding_mask(*lengths)}
        result, expected = program.module()(**inputs)[0], model(**inputs)[0]
        if result.shape[:2] == inputs["input_ids"].shape:
            result, expected = (x[inputs["attention_mask"].bool()] for x in (result, expected))
        torch.testing.assert_close(result, expected)
