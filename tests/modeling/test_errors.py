"""What does not fit the model is one sentence, with the value and the mend."""

import pytest
import torch
from corners import VOCAB, build, padding_mask, restarting, tiny, token_ids

from hf_tfenc import (
    TfEncForCausalLM,
    TfEncForMaskedLM,
    TfEncForMultipleChoice,
    TfEncForQuestionAnswering,
    TfEncForSequenceClassification,
    TfEncForTokenClassification,
    TfEncModel,
)

IDS = token_ids(2, 9)
ROW = token_ids(1, 12)


def assert_refuses(sentence, call, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        call(*args, **kwargs)
    assert str(error.value) == sentence


@pytest.fixture
def bert():
    return build(TfEncModel, tiny("bert"))


# --- Inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [{}, {"input_ids": IDS, "inputs_embeds": torch.zeros(2, 9, 32)}])
def test_ids_or_embeddings(bert, inputs):
    assert_refuses("Give either input_ids or inputs_embeds, not both and not neither.", bert, **inputs)


def test_ids_without_a_batch(bert):
    assert_refuses("input_ids has shape (9,); (batch, length) is expected.", bert, IDS[0])


@pytest.mark.parametrize("rows, length", [(0, 9), (2, 0)])
def test_no_rows_or_no_tokens(bert, rows, length):
    ids = torch.zeros(rows, length, dtype=torch.long)
    sentence = f"The input is empty, ({rows}, {length}): give at least one row of at least one token."
    assert_refuses(sentence, bert, ids, torch.ones_like(ids))
    assert_refuses(sentence, bert, inputs_embeds=torch.zeros(rows, length, 32))


@pytest.mark.parametrize("value, place", [(VOCAB, [0, 0]), (-1, [1, 3])])
def test_ids_outside_the_vocabulary(bert, value, place):
    ids = IDS.clone()
    ids[tuple(place)] = value
    assert_refuses(
        f"input_ids holds {value} at {place}, outside 0 to 95: the tokenizer does not belong to this model.", bert, ids
    )


def test_segments_that_the_model_has_not(bert):
    segments = torch.zeros_like(IDS)
    segments[0, 4] = 2
    sentence = "token_type_ids holds 2 at [0, 4], outside 0 to 1: the model has no such segment."
    assert_refuses(sentence, bert, IDS, token_type_ids=segments)
    classic = build(TfEncModel, tiny())
    classic(IDS, token_type_ids=torch.zeros_like(IDS))
    sentence = "token_type_ids holds 2 at [0, 4], outside 0 to 0: the model has no such segment."
    assert_refuses(sentence, classic, IDS, token_type_ids=segments)


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("shape", [(2, 8), (3, 9), (2, 9, 1), (2, 1, 9, 9)])
def test_shapes_of_what_goes_with_the_ids(bert, name, shape):
    sentence = f"{name} has shape {shape}; (batch, length) = (2, 9) is expected."
    assert_refuses(
        sentence,
        bert,
        IDS,
        **{name: torch.zeros(shape, dtype=torch.long)},
        **({"attention_mask": torch.ones_like(IDS)} if name != "attention_mask" else {}),
    )


@pytest.mark.parametrize("corner", ["classic", "bert"])
def test_a_sequence_longer_than_the_positions(corner):
    model = build(TfEncModel, tiny(corner))
    model(token_ids(1, 64))
    sentence = (
        "A sequence of 65 tokens is longer than max_position_embeddings 64: truncate it, or cut it into windows."
    )
    assert_refuses(sentence, model, token_ids(1, 65))
    sentence = (
        "position_ids holds 64 at [0, 8], outside 0 to 63: max_position_embeddings is 64; use shorter sequences."
    )
    assert_refuses(sentence, model, token_ids(1, 9), position_ids=torch.arange(56, 65)[None])


@pytest.mark.parametrize("options", [{"position_embedding_type": "rotary"}, {"position_embedding_type": "none"}])
def test_rotary_and_no_positions_have_no_longest_sequence(options):
    output = build(TfEncModel, tiny(**options))(token_ids(1, 100))
    assert output.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("corner", ["classic", "bert"])
def test_a_packed_row_may_be_longer_than_its_sequences(corner):
    model, lengths = build(TfEncModel, tiny(corner)), (50, 64, 10)
    row, boundaries = token_ids(1, 124), torch.tensor([0, 50, 114, 124])
    outputs = [model(row, position_ids=restarting(*lengths)), model(row, cu_seq_lens_q=boundaries)]
    torch.testing.assert_close(outputs[0].last_hidden_state, outputs[1].last_hidden_state)
    sentence = (
        "position_ids holds 64 at [0, 64], outside 0 to 63: max_position_embeddings is 64; use shorter sequences."
    )
    assert_refuses(sentence, model, row, cu_seq_lens_q=torch.tensor([0, 65, 124]))


# --- Packed input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "boundaries, runs", [((0, 5, 11), "0 to 11"), ((0, 5, 13), "0 to 13"), ((2, 5, 12), "2 to 12")]
)
def test_boundaries_that_are_not_the_rows(bert, boundaries, runs):
    sentence = f"cu_seq_lens_q runs from {runs}; the packed row has 12 tokens."
    assert_refuses(sentence, bert, ROW, cu_seq_lens_q=torch.tensor(boundaries))


@pytest.mark.parametrize("ids, mask", [(IDS, None), (ROW, torch.ones_like(ROW))])
def test_boundaries_go_with_one_row_and_no_mask(bert, ids, mask):
    sentence = "cu_seq_lens_q describes a packed row: give one row, (1, tokens), and no attention_mask."
    assert_refuses(sentence, bert, ids, mask, cu_seq_lens_q=torch.tensor([0, 4, ids.shape[1]]))


@pytest.mark.parametrize("rows", [1, 2])
def test_several_rows_whose_positions_restart(bert, rows):
    positions = restarting(4, 5).expand(rows, 9)
    sentence = (
        f"position_ids ({rows}, 9) restart within a row; packed input is one row, (1, tokens). "
        "For padded rows pass attention_mask."
    )
    assert_refuses(sentence, bert, IDS, position_ids=positions)
    bert(IDS, torch.ones_like(IDS), position_ids=positions)


@pytest.mark.parametrize("packed", [{"position_ids": restarting(5, 7)}, {"cu_seq_lens_q": torch.tensor([0, 5, 12])}])
@pytest.mark.parametrize("name", ["TfEncForQuestionAnswering", "TfEncForMultipleChoice", "generate()"])
def test_what_takes_padded_input_only(name, packed):
    sentence = f"{name} takes padded input only: give (batch, length) with attention_mask, not a packed row."
    if name == "generate()":
        model = build(TfEncForCausalLM, tiny())
        assert_refuses(sentence, model.generate, ROW, max_new_tokens=1, **packed)
    elif name == "TfEncForQuestionAnswering":
        assert_refuses(sentence, build(TfEncForQuestionAnswering, tiny()), ROW, **packed)
    else:
        packed = {key: value[None] if key == "position_ids" else value for key, value in packed.items()}
        assert_refuses(sentence, build(TfEncForMultipleChoice, tiny()), ROW[None], **packed)


def test_choices_have_an_axis_of_their_own():
    model = build(TfEncForMultipleChoice, tiny())
    sentence = "TfEncForMultipleChoice takes (batch, choices, length) input, padded."
    for inputs in ({"input_ids": IDS}, {"inputs_embeds": torch.zeros(2, 9, 32)}, {}):
        assert_refuses(sentence, model, **inputs)


# --- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_class, limit", [(TfEncForMaskedLM, VOCAB), (TfEncForCausalLM, VOCAB), (TfEncForTokenClassification, 3)]
)
def test_labels_of_tokens(model_class, limit):
    model = build(model_class, tiny(num_labels=3))
    for value in (limit, -1, -101):
        labels = IDS % 3
        labels[0, 1] = value
        place = [0, 0] if model_class is TfEncForCausalLM else [0, 1]  # where the label's token is predicted
        sentence = f"labels holds {value} at {place}, outside 0 to {limit - 1}: give classes, or -100 to leave out."
        assert_refuses(sentence, model, IDS, labels=labels)
    with pytest.raises(ValueError, match=r"^labels has shape \(2, 8\); .* = \(2, 9\) is expected\.$"):
        model(IDS, labels=IDS[:, :8] % 3)


def test_labels_of_sequences():
    ids = token_ids(4, 9)
    model = build(TfEncForSequenceClassification, tiny(num_labels=3))
    sentence = "labels holds 3 at [2], outside 0 to 2: give classes, or -100 to leave out."
    assert_refuses(sentence, model, ids, labels=torch.tensor([0, 1, 3, 2]))
    sentence = "labels has shape (3,); the shape of the logits without the classes = (4,) is expected."
    assert_refuses(sentence, model, ids, labels=torch.tensor([0, 1, 2]))
    sentence = "labels has shape (4, 2); (rows, labels) = (4, 3) is expected."
    assert_refuses(sentence, model, ids, labels=torch.zeros(4, 2))
    regression = build(TfEncForSequenceClassification, tiny(num_labels=1))
    sentence = "labels has shape (3, 1); (rows, values) = (4, 1) is expected."
    assert_refuses(sentence, regression, ids, labels=torch.zeros(3))
    several = build(TfEncForSequenceClassification, tiny(num_labels=2, problem_type="regression"))
    sentence = "labels has shape (4,); (rows, values) = (4, 2) is expected."
    assert_refuses(sentence, several, ids, labels=torch.zeros(4))


def test_labels_of_choices():
    model = build(TfEncForMultipleChoice, tiny())
    sentence = "labels holds 3 at [1], outside 0 to 2: give classes, or -100 to leave out."
    assert_refuses(sentence, model, token_ids(2, 3, 9), labels=torch.tensor([0, 3]))


@pytest.mark.parametrize("name", ["start_positions", "end_positions"])
def test_positions_of_answers(name):
    model = build(TfEncForQuestionAnswering, tiny())
    answers = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    sentence = f"{name} has shape (3,); (batch,) = (2,) is expected."
    assert_refuses(sentence, model, IDS, **answers | {name: torch.tensor([1, 2, 3])})


# --- Configurations that a class cannot take -------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [TfEncForSequenceClassification, TfEncForMultipleChoice])
def test_a_sequence_head_needs_a_pooling(model_class):
    sentence = f"{model_class.__name__} needs one vector a sequence: set pooling to cls or mean, not none."
    assert_refuses(sentence, model_class, tiny(pooling="none"))
    TfEncForTokenClassification(tiny(pooling="none"))


def test_options_changed_since_the_configuration_was_made(tmp_path):
    config = tiny()
    TfEncModel(config).save_pretrained(tmp_path)
    sentence = "layer_types names 3 layers, num_hidden_layers is 2; they must agree."
    assert_refuses(sentence, TfEncModel.from_pretrained, tmp_path, num_hidden_layers=2)
    config.num_attention_heads = 5
    assert_refuses("hidden_size 32 is not divisible by num_attention_heads 5; change either.", TfEncModel, config)


def test_a_mask_of_booleans_or_numbers_is_the_same(bert):
    mask = padding_mask(9, 5)
    expected = bert(IDS, mask).last_hidden_state
    for other in (mask.bool(), mask.float()):
        torch.testing.assert_close(bert(IDS, other).last_hidden_state, expected)


def test_masks_that_are_added_to_scores(bert):
    mask = torch.zeros(2, 9).masked_fill(torch.arange(9) > 5, float("-inf"))
    sentence = (
        "attention_mask holds negative numbers, as masks do that are added to scores: give 1 for a token and 0 for "
        "padding."
    )
    assert_refuses(sentence, bert, IDS, mask)


def test_a_cache_of_a_decoder(bert):
    from transformers import DynamicCache

    sentence = "An encoder has no cache: give all tokens, and no past_key_values."
    assert_refuses(sentence, bert, IDS, past_key_values=DynamicCache())


@pytest.mark.parametrize("shape", [(2, 9, 1), (2, 9, 2, 32)])
def test_shapes_of_embeddings(shape):
    model = build(TfEncModel, tiny())
    expected = (*shape[:2], model.config.hidden_size)
    sentence = f"inputs_embeds has shape {shape}; (batch, length, hidden) = {expected} is expected."
    assert_refuses(sentence, model, inputs_embeds=torch.zeros(shape))


@pytest.mark.parametrize("bounds", [[], [0]])
def test_bounds_of_nothing(bert, bounds):
    sentence = "cu_seq_lens_q has one number or none; it says where each sequence begins, and the end."
    assert_refuses(sentence, bert, IDS[:1], cu_seq_lens_q=torch.tensor(bounds, dtype=torch.int32))


def test_several_labels_are_zeros_and_ones():
    model = build(TfEncForSequenceClassification, tiny(num_labels=3, problem_type="multi_label_classification"))
    labels = torch.tensor([[1.0, 0.0, -100.0], [1.0, -1.0, 0.0]])
    sentence = "labels holds -1.0 at [1, 1], outside 0 to 1: give 0 or 1, or -100 to leave out."
    assert_refuses(sentence, model, IDS, labels=labels)
    assert model(IDS, labels=labels.abs().clamp(max=1)).loss > 0


def test_a_loss_in_parts_has_no_second_derivative():
    """It would be wrong, for the gradient of its logits is not part of the graph."""
    model = build(TfEncForMaskedLM, tiny("modern", sparse_prediction=True)).train()
    embeds = torch.randn(2, 9, model.config.hidden_size, requires_grad=True)
    loss = model(inputs_embeds=embeds, labels=IDS).loss
    with pytest.raises(RuntimeError, match="has no second derivative: leave sparse_prediction"):
        torch.autograd.grad(loss, embeds, create_graph=True)
    torch.autograd.grad(model(inputs_embeds=embeds, labels=IDS).loss, embeds)
