"""Who sees whom: windows, the look-ahead mask, padding, on every backend."""

import pytest
import torch
import torch.nn.functional as F
from corners import CORNERS, HEADS, NO_DROPOUT, build, collate, make_rows, padding_mask, tiny, token_ids

from hf_tfenc import TfEncForQuestionAnswering, TfEncForSequenceClassification, TfEncModel

LENGTH, WINDOW = 12, 3
LAYERS = [
    ("full_attention", False),
    ("full_attention", True),
    ("sliding_attention", False),
    ("sliding_attention", True),
]


def allowed(layer_type, is_causal, length=LENGTH):
    """The mask by its definition, token by token: (queries, keys)."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            if layer_type == "full_attention":
                mask[query, key] = not is_causal or key <= query
            elif is_causal:
                mask[query, key] = query - WINDOW < key <= query  # the last WINDOW tokens, itself included
            else:
                mask[query, key] = abs(query - key) <= WINDOW
    return mask


def one_layer(layer_type, is_causal, backend, **options):
    config = tiny(
        position_embedding_type="none",
        num_hidden_layers=1,
        layer_types=[layer_type],
        sliding_window=WINDOW,
        is_causal=is_causal,
        **options,
    )
    return build(TfEncModel, config, backend)


def seen(model, ids, **inputs):
    """Change each token in turn and look where the output changes: (queries, keys)."""
    before = model(ids, **inputs).last_hidden_state[0]
    columns = []
    for key in range(ids.shape[1]):
        changed = ids.clone()
        changed[0, key] = ids[0, key] % 90 + 1
        columns.append(((model(changed, **inputs).last_hidden_state[0] - before).abs() > 1e-5).any(dim=-1))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("layer_type, is_causal", LAYERS)
def test_a_token_sees_exactly_what_the_definition_says(backend, layer_type, is_causal):
    model = one_layer(layer_type, is_causal, backend)
    assert torch.equal(seen(model, token_ids(1, LENGTH)), allowed(layer_type, is_causal))


@pytest.mark.parametrize("layer_type, is_causal", LAYERS)
def test_nobody_sees_padding(backend, layer_type, is_causal):
    model = one_layer(layer_type, is_causal, backend)
    mask = padding_mask(9, LENGTH)[:1]
    expected = allowed(layer_type, is_causal)
    expected[:, 9:] = False
    assert torch.equal(seen(model, token_ids(1, LENGTH), attention_mask=mask)[:9], expected[:9])


@pytest.mark.parametrize("layer_type, is_causal", LAYERS)
def test_nobody_sees_another_packed_sequence(backend, layer_type, is_causal):
    model = one_layer(layer_type, is_causal, backend)
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5]])
    expected = torch.block_diag(*[allowed(layer_type, is_causal, length).float() for length in (5, 1, 6)]).bool()
    assert torch.equal(seen(model, token_ids(1, LENGTH), position_ids=position_ids), expected)


@pytest.mark.parametrize("corner", CORNERS)
def test_nothing_after_a_position_changes_it_under_the_look_ahead_mask(backend, corner):
    model = build(TfEncModel, tiny(corner, is_causal=True), backend)
    ids, other = token_ids(2, 20), token_ids(2, 20, seed=1)
    changed = torch.cat([ids[:, :11], other[:, 11:]], dim=1)
    before, after = model(ids).last_hidden_state, model(changed).last_hidden_state
    torch.testing.assert_close(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("corner", CORNERS)
def test_what_stands_under_padding_changes_nothing(backend, corner, pooling, left):
    config = tiny(corner, pooling=pooling, num_labels=3)
    model = build(TfEncForSequenceClassification, config, backend)
    ids, other, mask = token_ids(3, 20), token_ids(3, 20, seed=1), padding_mask(20, 7, 13, left=left)
    changed = torch.where(mask.bool(), ids, other)
    torch.testing.assert_close(model(ids, mask).logits, model(changed, mask).logits)
    assert not torch.allclose(model(ids).logits, model(changed).logits)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
def test_padded_equals_unpadded(backend, corner, is_causal, pooling, left):
    """Padding on the left goes with the positions that the tokens had without it."""
    model = build(TfEncModel, tiny(corner, is_causal=is_causal, pooling=pooling), backend)
    lengths, mask = (20, 7, 13), padding_mask(20, 7, 13, left=left)
    ids = token_ids(3, 20)
    padded = model(ids * mask, mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for row in range(3):
        alone = model(ids[row : row + 1, mask[row].bool()])
        assert alone.last_hidden_state.shape[1] == lengths[row]
        torch.testing.assert_close(padded.last_hidden_state[row, mask[row].bool()], alone.last_hidden_state[0])
        torch.testing.assert_close(padded.pooler_output[row], alone.pooler_output[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("corner", CORNERS)
def test_padding_to_twice_the_length_leaves_the_loss_unchanged(trainable_backend, corner, head):
    model_class, options = HEADS[head]
    model = build(model_class, tiny(corner, **NO_DROPOUT | options), trainable_backend)
    batch = collate(make_rows(head, 4))
    length = batch["input_ids"].shape[-1]
    wider = {
        name: F.pad(tensor, (0, length), value=-100 if name == "labels" else 0)
        if tensor.shape[-1:] == (length,)
        else tensor
        for name, tensor in batch.items()
    }
    for training in (False, True):
        model.train(training)
        torch.testing.assert_close(model(**wider).loss, model(**batch).loss)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("corner", CORNERS)
def test_a_row_of_padding_alone_gives_finite_outputs_and_gradients(trainable_backend, corner, pooling):
    model = build(TfEncForSequenceClassification, tiny(corner, pooling=pooling, num_labels=3), trainable_backend)
    mask = padding_mask(12, 5)
    mask[1] = 0
    model.train()
    output = model(token_ids(2, 12), mask, labels=torch.tensor([1, 2]))
    output.loss.backward()
    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("part", sorted(NO_DROPOUT))
def test_each_dropout_acts_in_training_and_not_in_eval(part, trainable_backend):
    config = tiny(num_labels=3, **NO_DROPOUT | {part: 0.5})
    model = build(TfEncForSequenceClassification, config, trainable_backend)
    ids = token_ids(2, 12)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.allclose(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("head_transform", ["lm", "all"])
def test_answers_have_a_dropout_where_they_have_a_transform(head_transform):
    """ModernBERT has both, and BERT neither."""
    config = tiny(head_transform=head_transform, **NO_DROPOUT | {"classifier_dropout": 0.5})
    model, ids = build(TfEncForQuestionAnswering, config).train(), token_ids(2, 12)
    assert torch.equal(model(ids).start_logits, model(ids).start_logits) == (head_transform == "lm")


@pytest.mark.parametrize("corner", CORNERS)
def test_without_dropout_training_mode_changes_nothing(corner):
    model = build(TfEncModel, tiny(corner, **NO_DROPOUT))
    ids = token_ids(2, 12)
    before = model(ids).last_hidden_state
    torch.testing.assert_close(model.train()(ids).last_hidden_state, before)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("values", [torch.tensor([2, 1, 3, 0, 0]), torch.tensor([0.5, 0.25, 1, 0, 0])])
def test_what_is_not_zero_in_a_mask_is_a_token(attention, pooling, values):
    model = build(TfEncModel, tiny("modern", pooling=pooling), attention)
    ids, other = token_ids(2, 5), torch.tensor([1, 1, 1, 1, 0]).to(values.dtype)
    found, expected = (model(ids, torch.stack([mask, other])) for mask in (values, (values != 0).to(values.dtype)))
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=0)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)
