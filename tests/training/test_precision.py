"""bfloat16 throughout, over weights, gradients and optimizer state in float32."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.training.precision import compute_in_bfloat16

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def model_and_batch(preset):
    torch.manual_seed(0)
    dropout = {f"{part}_dropout": 0.0 for part in ("embedding", "hidden", "attention", "mlp")}
    model = TfEncForMaskedLM(preset_config(preset, vocab_size=50, **SIZES, **dropout)).train()
    ids = torch.randint(5, 50, (3, 20))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(20) < torch.tensor([[20], [9], [1]])).long()}
    return model, batch | {"labels": ids.masked_fill(batch["attention_mask"] == 0, -100)}


@pytest.mark.parametrize("preset", ["classic-tiny", "bert-tiny", "modern-tiny"])
def test_all_is_bfloat16_but_the_weights_and_their_gradients(accelerator, preset):
    model, batch = model_and_batch(preset)
    exact = model(**batch).loss
    exact.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    compute_in_bfloat16(accelerator, model)
    prepared = accelerator.prepare(model)
    forward = model.forward
    compute_in_bfloat16(accelerator, model)
    assert model.forward is forward, "cast once, however often it is asked: another function would be compiled anew"
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    loss = prepared(**batch).loss
    loss.backward()
    assert seen == [torch.bfloat16] * 2 and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    for parameter, right in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad - right).norm() < 0.1 * right.norm() + 1e-4


def test_a_compiled_step_has_the_same_gradients(accelerator):
    model, batch = model_and_batch("modern-tiny")
    compute_in_bfloat16(accelerator, model)
    prepared = accelerator.prepare(model)
    batch["prediction_positions"] = (batch["labels"].flatten() != -100).nonzero()[:, 0]
    gradients = []
    for forward in (prepared, torch.compile(prepared, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        forward(**batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(gradient.any() for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 0.05 * one.norm()


def test_without_bfloat16_nothing_changes():
    AcceleratorState._reset_state(reset_partial_state=True)
    model, batch = model_and_batch("bert-tiny")
    before = model(**batch).loss
    compute_in_bfloat16(Accelerator(cpu=True, mixed_precision="no"), model)
    assert torch.equal(model(**batch).loss, before) and "forward" not in vars(model)
