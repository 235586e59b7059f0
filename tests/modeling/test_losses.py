"""Each head's loss, against the formula written by hand."""

import pytest
import torch
import torch.nn.functional as F
from corners import HEADS, LABELS, NO_DROPOUT, build, collate, make_rows, restarting, tiny, token_ids

from hf_tfenc import (
    TfEncForCausalLM,
    TfEncForMaskedLM,
    TfEncForQuestionAnswering,
    TfEncForSequenceClassification,
    modeling_tfenc,
)
from hf_tfenc.modeling_tfenc import cross_entropy, linear_cross_entropy, squared_error


def head_and_batch(head, corner="classic", count=6):
    model_class, options = HEADS[head]
    return build(model_class, tiny(corner, **NO_DROPOUT | options)), collate(make_rows(head, count))


def mean_of_labelled(logits, labels):
    kept = labels != -100
    return -logits.log_softmax(-1)[kept, labels[kept]].mean()


@pytest.mark.parametrize("head", ["masked_lm", "token_classification", "single_label", "multiple_choice"])
def test_a_class_for_each_item(head):
    model, batch = head_and_batch(head)
    output = model(**batch)
    torch.testing.assert_close(output.loss, mean_of_labelled(output.logits, batch["labels"]))


def test_several_labels_for_each_row():
    model, batch = head_and_batch("multi_label")
    output, labels = model(**batch), batch["labels"]
    p = output.logits.sigmoid()
    torch.testing.assert_close(output.loss, -(labels * p.log() + (1 - labels) * (1 - p).log()).mean())


def test_a_label_left_out_of_several_is_not_counted():
    model, batch = head_and_batch("multi_label")
    whole, labels = model(**batch), batch["labels"].clone()
    labels[0, 1] = labels[2] = -100
    kept = labels != -100
    expected = F.binary_cross_entropy_with_logits(whole.logits[kept], labels[kept])
    torch.testing.assert_close(model(**batch | {"labels": labels}).loss, expected)


@pytest.mark.parametrize("head", ["regression", "regression_of_several"])
def test_regression(head):
    model, batch = head_and_batch(head)
    output = model(**batch)
    torch.testing.assert_close(output.loss, (output.logits.squeeze(-1) - batch["labels"]).square().mean())


def test_regression_takes_one_value_with_and_without_its_own_axis():
    model, batch = head_and_batch("regression")
    column = batch | {"labels": batch["labels"][:, None]}
    torch.testing.assert_close(model(**batch).loss, model(**column).loss)


def test_a_number_of_minus_one_hundred_is_a_number():
    model, batch = head_and_batch("regression")
    batch["labels"][0] = -100.0
    output = model(**batch)
    torch.testing.assert_close(output.loss, (output.logits.squeeze(-1) - batch["labels"]).square().mean())


@pytest.mark.parametrize(
    "num_labels, labels, expected",
    [
        (1, torch.tensor([0.5, 2.0]), "regression"),
        (LABELS, torch.tensor([0, 2]), "single_label"),
        (LABELS, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), "multi_label"),
    ],
)
def test_without_a_problem_type_the_labels_say_what_the_problem_is(num_labels, labels, expected):
    model = build(TfEncForSequenceClassification, tiny(num_labels=num_labels))
    named = build(TfEncForSequenceClassification, tiny(**HEADS[expected].options))
    ids = token_ids(2, 8)
    torch.testing.assert_close(model(ids, labels=labels).loss, named(ids, labels=labels).loss)
    assert model.config.problem_type is None


def test_an_answer_past_the_row_is_left_out():
    model = build(TfEncForQuestionAnswering, tiny())
    ids, start, end = token_ids(3, 8), torch.tensor([0, 2, 8]), torch.tensor([1, 11, 9])
    output = model(ids, start_positions=start, end_positions=end)
    assert output.start_logits.shape == output.end_logits.shape == (3, 8)
    expected = F.cross_entropy(output.start_logits[:2], start[:2]) + F.cross_entropy(output.end_logits[:1], end[:1])
    torch.testing.assert_close(output.loss, expected / 2)
    column = model(ids, start_positions=start[:, None], end_positions=end[:, None])
    torch.testing.assert_close(column.loss, output.loss)


def test_each_token_predicts_the_next():
    model, batch = head_and_batch("causal_lm")
    output = model(**batch)
    expected = mean_of_labelled(output.logits[:, :-1], batch["labels"][:, 1:])
    torch.testing.assert_close(output.loss, expected)


def test_no_packed_sequence_predicts_the_next_one():
    model, lengths = build(TfEncForCausalLM, tiny("modern")), (7, 1, 5)
    ids = token_ids(1, sum(lengths))
    output = model(ids, labels=ids, position_ids=restarting(*lengths))
    total = sum(
        F.cross_entropy(model(part).logits[0, :-1], part[0, 1:], reduction="sum") for part in ids.split(lengths, dim=1)
    )
    torch.testing.assert_close(output.loss, total / (sum(lengths) - len(lengths)))


@pytest.mark.parametrize("head", HEADS)
def test_the_count_given_replaces_the_count_of_the_batch(head):
    """`num_items_in_batch`, a number or a tensor: the loss is the sum over items divided by it."""
    model, batch = head_and_batch(head)
    counts = {
        "causal_lm": lambda: (batch["labels"][:, 1:] != -100).sum(),
        "question_answering": lambda: torch.tensor(len(batch["input_ids"])),
    }
    items = counts.get(head, lambda: (batch["labels"] != -100).sum())()
    total = model(**batch).loss * items
    for given in (7, torch.tensor(7)):
        torch.testing.assert_close(model(**batch, num_items_in_batch=given).loss, total / 7)


WITHOUT_LABELS = [head for head in HEADS if "regression" not in head]


@pytest.mark.parametrize("num_items", [None, 0, 5])
@pytest.mark.parametrize("head", WITHOUT_LABELS)
def test_a_batch_with_no_label_gives_zero_and_no_gradient(head, num_items):
    model, batch = head_and_batch(head, "modern")
    for name in ("labels", "start_positions", "end_positions"):
        if name in batch:
            batch[name] = torch.full_like(batch[name], -100)
    loss = model.train()(**batch, num_items_in_batch=num_items).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_regression_of_no_rows_gives_zero():
    assert squared_error(torch.zeros(0, 1), torch.zeros(0), None) == 0


def test_bfloat16_losses_are_computed_in_float32():
    model = build(TfEncForMaskedLM, tiny("modern")).bfloat16()
    ids = token_ids(2, 8)
    output = model(ids, labels=ids)
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32


# --- Without the logits ----------------------------------------------------------------------------------------------


def some_rows(bias):
    torch.manual_seed(0)
    output, x = torch.nn.Linear(16, 300, bias=bias), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(300, (50,))
    labels[::7] = -100
    return output, x, labels


def loss_and_gradients(loss, x, output):
    return [loss.detach(), *torch.autograd.grad(loss, [x, *output.parameters()])]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rows_at_once", [50, 20, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_a_loss_that_never_holds_its_logits_is_the_plain_one(monkeypatch, bias, rows_at_once, compiled):
    monkeypatch.setattr(modeling_tfenc, "LOGITS_AT_ONCE", 300 * rows_at_once)
    output, x, labels = some_rows(bias)
    function = torch.compile(linear_cross_entropy, backend="aot_eager") if compiled else linear_cross_entropy
    result = loss_and_gradients(function(x, output, labels, 7), x, output)
    expected = loss_and_gradients(cross_entropy(output(x), labels, 7), x, output)
    torch.testing.assert_close(result, expected)


def test_its_gradients_are_right_to_the_second_figure_in_bfloat16_and_without_rows_zero():
    output, x, labels = some_rows(True)
    with torch.autocast("cpu", torch.bfloat16):
        result = loss_and_gradients(linear_cross_entropy(x, output, labels, None), x, output)
        none = loss_and_gradients(linear_cross_entropy(x[:0], output, labels[:0], None), x, output)
    expected = loss_and_gradients(cross_entropy(output(x), labels, None), x, output)
    for found, right in zip(result, expected, strict=True):
        assert found.dtype == torch.float32 and (found - right).norm() < 0.02 * right.norm()
    assert not any(gradient.any() for gradient in none)


def test_training_makes_no_tensor_of_all_logits(monkeypatch):
    monkeypatch.setattr(modeling_tfenc, "LOGITS_AT_ONCE", 2000)
    largest = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
            return result

    model = build(TfEncForMaskedLM, tiny("classic", vocab_size=1000, **NO_DROPOUT)).train()
    ids = token_ids(4, 12)
    with Watching():
        model(ids, labels=ids, prediction_positions=torch.arange(40)).loss.backward()
    weights = max(parameter.numel() for parameter in model.parameters())
    assert max(largest) == max(weights, 2000) < 40 * 1000
