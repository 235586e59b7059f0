"""The package's kernels and torch's varlen kernel against sdpa with masks, in bfloat16: outputs and gradients."""

import pytest
import torch

from hf_tfenc import TfEncForMaskedLM, TfEncModel, modeling_tfenc
from hf_tfenc.presets import preset_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 256}
LENGTHS = {
    "varied": (130, 1, 64, 65, 17, 2),
    "at the window's edge": (63, 64, 65, 66, 129),
    "all alike": (96, 96, 96),
    "one": (1,),
}


def model_of(preset, attention, causal, head=TfEncModel):
    options = {f"{part}_dropout": 0.0 for part in ("embedding", "hidden", "attention", "mlp")}
    window = {"sliding_window": 64} if preset == "modern-tiny" else {}
    config = preset_config(preset, vocab_size=300, is_causal=causal, **SIZES, **options, **window)
    torch.manual_seed(0)
    return head._from_config(config, attn_implementation=attention).cuda().bfloat16()


@pytest.fixture(params=["the package's kernels", "torch's"])
def kernels(request, monkeypatch):
    """Which ones `varlen` takes: a checkpoint's code without the package has torch's."""
    if request.param == "torch's":
        monkeypatch.setattr(modeling_tfenc, "fused_kernels", None)
    else:
        assert modeling_tfenc.fused_kernels is not None


def batch_of(lengths):
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().cuda()
    ids = torch.randint(1, 300, mask.shape, generator=torch.Generator().manual_seed(0)).cuda()
    return ids, mask


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("preset", ["classic-tiny", "bert-tiny", "modern-tiny"])
@pytest.mark.usefixtures("kernels")
def test_padded_rows(preset, lengths, causal):
    assert_like_sdpa(preset, causal, *batch_of(LENGTHS[lengths]))


@pytest.mark.parametrize("preset", ["bert-tiny", "modern-tiny"])
@pytest.mark.usefixtures("kernels")
def test_whole_rows(preset):
    ids, mask = batch_of((96, 96, 96))
    assert_like_sdpa(preset, False, ids, None)
    assert_like_sdpa(preset, False, ids, mask)


def assert_like_sdpa(preset, causal, ids, mask):
    tokens = torch.ones_like(ids).bool() if mask is None else mask.bool()
    outputs, gradients = [], []
    # A normalized state has no gradient of its own size, so its size says nothing.
    directions = torch.randn(1000, 128, generator=torch.Generator().manual_seed(1)).cuda()
    for attention in ("sdpa", "varlen"):
        model = model_of(preset, attention, causal).train()
        states = model(ids, mask).last_hidden_state[tokens]
        (states.float() * directions[: len(states)]).mean().backward()
        outputs.append(states.float())
        gradients.append({name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None})
    assert (outputs[0] - outputs[1]).norm() < 1e-2 * outputs[0].norm()
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() <= 0.05 * expected.norm() + 1e-6, name


@pytest.mark.parametrize("slots", [0, 3])
@pytest.mark.parametrize("preset", ["classic-tiny", "modern-tiny"])
@pytest.mark.usefixtures("kernels")
def test_a_packed_row_equals_padded_ones(preset, slots):
    """Slots to spare at the end are sequences without tokens."""
    lengths = LENGTHS["varied"]
    ids, mask = batch_of(lengths)
    model = model_of(preset, "varlen", False).eval()
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    bounds = torch.cat([bounds, bounds[-1:].expand(slots)]).int().cuda()
    with torch.no_grad():
        packed = model(ids[mask.bool()][None], cu_seq_lens_q=bounds, max_length_q=256).last_hidden_state[0]
        padded = model(ids, mask).last_hidden_state[mask.bool()]
    assert torch.equal(packed, padded)


@pytest.mark.usefixtures("kernels")
def test_a_compiled_step_makes_one_graph():
    model = model_of("modern-tiny", "varlen", False, TfEncForMaskedLM).train()
    compiled = torch.compile(model, dynamic=False, fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for lengths in ((100, 28), (3, 60, 65), (128,)):
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        bounds = torch.cat([bounds, bounds[-1:].expand(4 - len(lengths))]).int().cuda()
        positions = torch.cat([torch.arange(length) for length in lengths])[None].cuda()
        ids = torch.randint(1, 300, (1, 128), device="cuda")
        where = torch.randint(128, (32,), device="cuda")
        batch = {"input_ids": ids, "position_ids": positions, "cu_seq_lens_q": bounds, "max_length_q": 128}
        loss = compiled(**batch, labels=ids, prediction_positions=where).loss
        loss.backward()
        assert abs(loss.item() - model(**batch, labels=ids, prediction_positions=where).loss.item()) < 0.05
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("kernels")
def test_a_compiled_step_has_the_same_gradients():
    model = model_of("modern-tiny", "varlen", False, TfEncForMaskedLM).train()
    ids = torch.randint(1, 300, (4, 128), device="cuda")
    gradients = []
    for forward in (model, torch.compile(model, dynamic=False, fullgraph=True)):
        model.zero_grad()
        forward(ids, labels=ids, prediction_positions=torch.arange(0, 512, 4, device="cuda")).loss.backward()
        gradients.append({name: p.grad.float() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() <= 0.1 * expected.norm() + 1e-6, name


def test_the_same_gradient_bit_for_bit_where_that_is_asked_for(caplog):
    ids, mask = batch_of(LENGTHS["varied"])
    gradients = []
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        for _ in range(3):
            model = model_of("modern-tiny", "varlen", False, TfEncForMaskedLM).train()
            model(ids, mask, labels=ids, prediction_positions=mask.flatten().nonzero()[:, 0]).loss.backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    finally:
        torch.use_deterministic_algorithms(False)
    for others in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(gradients[0], others, strict=True))
    assert not caplog.records  # that anything slower was taken


@pytest.mark.parametrize("why", ["float32", "deterministic"])
def test_where_the_kernel_cannot_the_equal_path_does(why, monkeypatch):
    monkeypatch.setattr(modeling_tfenc, "fused_kernels", None)
    ids, mask = batch_of(LENGTHS["varied"])
    model, same = (model_of("modern-tiny", attention, False).eval() for attention in ("varlen", "sdpa"))
    if why == "float32":
        model, same = model.float(), same.float()
    try:
        torch.use_deterministic_algorithms(why == "deterministic", warn_only=True)
        results = [each(ids, mask).last_hidden_state[mask.bool()].float() for each in (model, same)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert (results[0] - results[1]).norm() < (1e-4 if why == "float32" else 1e-2) * results[1].norm()
