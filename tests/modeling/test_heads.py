"""What the heads give beside a loss: logits whole or sparse, tied weights, other outputs, generated text."""

import logging

import pytest
import torch
from corners import CORNERS, HEADS, NO_DROPOUT, VOCAB, build, collate, make_rows, padding_mask, tiny, token_ids

from hf_tfenc import (
    TfEncConfig,
    TfEncForCausalLM,
    TfEncForMaskedLM,
    TfEncForMultipleChoice,
    TfEncForTokenClassification,
    TfEncModel,
)

LANGUAGE_MODELS = ["masked_lm", "causal_lm"]


def gradients(model, **batch):
    """The loss and the gradient of each parameter, in training mode."""
    model.train().zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def build_head(head, corner="classic", **options):
    model_class, own = HEADS[head]
    return build(model_class, tiny(corner, **NO_DROPOUT | own | options))


# --- Sparse prediction -----------------------------------------------------------------------------------------------


def prediction_slots(labels, spare=0):
    """Indices of labelled positions, and slots to spare that point at a position labelled -100."""
    flat = labels.flatten()
    return torch.cat([(flat != -100).nonzero()[:, 0], (flat == -100).nonzero()[:1, 0].expand(spare)])


@pytest.mark.parametrize("slots", [None, 0, 5])
@pytest.mark.parametrize("corner", CORNERS)
def test_sparse_prediction_trains_as_dense(corner, slots):
    batch = collate(make_rows("masked_lm", 6))
    expected, dense = gradients(build_head("masked_lm", corner), **batch)
    if slots is not None:
        batch["prediction_positions"] = prediction_slots(batch["labels"], slots)
    output, sparse = gradients(build_head("masked_lm", corner, sparse_prediction=True), **batch)
    assert expected.logits is not None
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(sparse, dense)


def test_sparse_prediction_trains_a_causal_model_too():
    batch = collate(make_rows("causal_lm", 6))
    expected, dense = gradients(build_head("causal_lm"), **batch)
    output, sparse = gradients(build_head("causal_lm", sparse_prediction=True), **batch)
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("head", LANGUAGE_MODELS)
def test_in_eval_logits_are_whole(head):
    model, batch = build_head(head, sparse_prediction=True), collate(make_rows(head, 3))
    output = model(**batch)
    assert output.logits.shape == (*batch["input_ids"].shape, VOCAB)
    torch.testing.assert_close(output.loss, build_head(head)(**batch).loss)


def test_in_eval_prediction_positions_choose_the_logits():
    model, batch = build_head("masked_lm"), collate(make_rows("masked_lm", 3))
    where = torch.tensor([5, 0, 12])
    whole = model(batch["input_ids"], batch["attention_mask"]).logits.flatten(0, 1)
    chosen = model(batch["input_ids"], batch["attention_mask"], prediction_positions=where)
    torch.testing.assert_close(chosen.logits, whole[where])
    assert chosen.loss is None


# --- Embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", LANGUAGE_MODELS)
def test_the_decoder_is_the_embedding_unless_told_otherwise(head):
    tied, untied = build_head(head), build_head(head, tie_word_embeddings=False)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("size", [VOCAB + 8, VOCAB - 8])
@pytest.mark.parametrize("head", LANGUAGE_MODELS)
def test_resized_embeddings_keep_the_tokens_there_are(head, size, tie_word_embeddings):
    model = build_head(head, tie_word_embeddings=tie_word_embeddings)
    ids, kept = token_ids(2, 9) % (VOCAB - 8), min(size, VOCAB)
    before = model(ids).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    after = model(ids, labels=ids).logits
    assert model.config.vocab_size == size
    assert model.decoder.weight.shape[0] == model.decoder.bias.shape[0] == after.shape[-1] == size
    assert (model.decoder.weight is model.get_input_embeddings().weight) == tie_word_embeddings
    torch.testing.assert_close(after[..., :kept], before[..., :kept])


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("head", HEADS)
def test_embedded_input_equals_ids(head, corner):
    model, batch = build_head(head, corner), collate(make_rows(head, 3))
    embeds = model.get_input_embeddings()(batch["input_ids"])
    expected = model(**batch)
    output = model(**{k: v for k, v in batch.items() if k != "input_ids"}, inputs_embeds=embeds)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output[1], expected[1])


def test_segments_are_zero_where_none_are_given():
    model, ids = build(TfEncModel, tiny("bert")), token_ids(2, 9)
    segments = torch.zeros_like(ids)
    torch.testing.assert_close(model(ids).last_hidden_state, model(ids, token_type_ids=segments).last_hidden_state)
    assert not torch.allclose(model(ids).last_hidden_state, model(ids, token_type_ids=segments + 1).last_hidden_state)


# --- Other outputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_hidden_states_and_a_plain_tuple(head):
    model, batch = build_head(head, "modern"), collate(make_rows(head, 3))
    plain = model(**batch)
    assert plain.hidden_states is None
    assert plain.attentions is None
    output = model(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    length = batch["input_ids"].shape[-1]
    assert all(state.shape[1:] == (length, model.config.hidden_size) for state in output.hidden_states)
    as_tuple = model(**batch, return_dict=False)
    model.config.return_dict = False
    for result in (as_tuple, model(**batch)):
        assert isinstance(result, tuple)
        torch.testing.assert_close(result[0], plain.loss)
        torch.testing.assert_close(result[1], plain[1])


@pytest.mark.parametrize("corner", CORNERS)
def test_the_last_hidden_state_is_the_output(corner):
    output = build(TfEncModel, tiny(corner))(token_ids(2, 9), output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "varlen"])
@pytest.mark.parametrize("corner", CORNERS)
def test_attention_weights_come_from_the_equal_eager_path(corner, attention, caplog):
    model = build(TfEncModel, tiny(corner), attention)
    ids, mask = token_ids(2, 12), padding_mask(12, 7)
    expected = build(TfEncModel, tiny(corner))(ids, mask).last_hidden_state
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            output = model(ids, mask, output_attentions=True)
    warnings = [record.message for record in caplog.records if "eager path" in record.message]
    assert len(warnings) == (attention != "eager")
    assert all(message.startswith(f"{attention} does not return attention weights") for message in warnings)
    seen = mask.bool()
    torch.testing.assert_close(output.last_hidden_state[seen], expected[seen])
    assert len(output.attentions) == model.config.num_hidden_layers
    for weights in output.attentions:
        assert weights.shape == (2, model.config.num_attention_heads, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert not weights[1, :, :7, 7:].any()


@pytest.mark.parametrize(
    "options, training, reason",
    [
        ({}, False, "has no backward pass on a CPU"),
        ({"attention_dropout": 0.1}, True, "has no attention dropout"),
        ({"num_attention_heads": 4}, None, "needs heads of at least 16 features on a CPU"),
    ],
)
def test_where_flex_attention_cannot_the_eager_path_does(options, training, reason, caplog):
    """With one warning; `training` None is for no gradients at all."""
    model, same = (
        build(TfEncForMaskedLM, tiny("modern", **NO_DROPOUT | options), attention)
        for attention in ("flex_attention", "eager")
    )
    ids, mask = token_ids(2, 12), padding_mask(12, 7)
    results = []
    with caplog.at_level(logging.WARNING), torch.set_grad_enabled(training is not None):
        for _ in range(2):
            for either in (model, same):
                torch.manual_seed(0)
                results.append(either.train(bool(training))(ids, mask).logits)
    torch.testing.assert_close(results[0], results[1])
    warnings = [record.message for record in caplog.records if "eager path" in record.message]
    assert warnings == [f"flex_attention {reason}: attention runs on the equal, slower eager path."]
    assert model.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("head", ["masked_lm", "single_label"])
def test_gradient_checkpointing_gives_the_same_gradients(head, corner, trainable_backend):
    batch = collate(make_rows(head, 4))
    model = build_head(head, corner)
    model.set_attn_implementation(trainable_backend)
    expected, plain = gradients(model, **batch)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    output, checkpointed = gradients(model, **batch)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(checkpointed, plain)


# --- The look-ahead mask and generation ------------------------------------------------------------------------------


def test_a_causal_model_leaves_the_callers_configuration_alone(tmp_path):
    config = tiny("modern")
    model = TfEncForCausalLM(config)
    assert model.config.is_causal
    assert not config.is_causal
    model.save_pretrained(tmp_path)
    assert TfEncConfig.from_pretrained(tmp_path).is_causal
    ids = token_ids(1, 9)
    encoder = TfEncModel.from_pretrained(tmp_path).eval()
    changed = torch.cat([ids[:, :-1], ids[:, -1:] % 90 + 1], dim=1)
    torch.testing.assert_close(encoder(ids).last_hidden_state[:, :-1], encoder(changed).last_hidden_state[:, :-1])


GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("corner", CORNERS)
def test_generation_is_the_likeliest_token_again_and_again(corner):
    model, ids = build(TfEncForCausalLM, tiny(corner)), token_ids(1, 5)
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, model(expected).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(ids, **GREEDY), expected)


@pytest.mark.parametrize("corner", CORNERS)
def test_generation_from_a_padded_batch_is_that_of_each_row(corner, trainable_backend):
    model = build(TfEncForCausalLM, tiny(corner), trainable_backend)
    mask = padding_mask(8, 3, 5, left=True)
    ids = token_ids(3, 8) * mask
    together = model.generate(ids, attention_mask=mask, **GREEDY)
    for row in range(3):
        alone = model.generate(ids[row : row + 1, mask[row].bool()], **GREEDY)
        assert torch.equal(together[row, 8:], alone[0, -6:])


def test_generation_samples_and_searches_with_beams():
    model, ids = build(TfEncForCausalLM, tiny()), token_ids(2, 5)
    sampled = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=True, pad_token_id=0
    )
    searched = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=3, **GREEDY)
    assert sampled.shape == (2, 9)
    assert searched.shape == (2, 11)


def test_only_the_causal_model_generates():
    assert TfEncForCausalLM.can_generate()
    assert not any(each.can_generate() for each in (TfEncModel, TfEncForMaskedLM, TfEncForTokenClassification))


# --- Shapes ----------------------------------------------------------------------------------------------------------


def test_multiple_choice_scores_each_choice_by_itself():
    model = build(TfEncForMultipleChoice, tiny("modern"))
    ids = token_ids(2, 3, 9)
    logits = model(ids).logits
    assert logits.shape == (2, 3)
    torch.testing.assert_close(model(ids[:, [2, 0]]).logits, logits[:, [2, 0]])


def test_pooling_none_gives_no_pooled_vector():
    output = build(TfEncModel, tiny(pooling="none"))(token_ids(2, 9))
    assert output.pooler_output is None


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("left", [False, True])
def test_pooling_reads_the_first_token_or_the_mean_of_tokens(pooling, left):
    model = build(TfEncModel, tiny(pooling=pooling))
    mask = padding_mask(9, 4, left=left)
    output = model(token_ids(2, 9), mask)
    for row in range(2):
        tokens = output.last_hidden_state[row, mask[row].bool()]
        torch.testing.assert_close(output.pooler_output[row], tokens[0] if pooling == "cls" else tokens.mean(0))


def test_trainer_shifts_the_labels_of_a_causal_model_as_it_smooths_them():
    """It goes by the name of the class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert "TfEncForCausalLM" in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
