"""What the model asks of its kernels, in each form of input: the same as by attention written out."""

import pytest
import torch
from kernel_device import DEVICE, DTYPE, GPU, TOLERANCE

from hf_tfenc import TfEncModel, kernels, modeling_tfenc
from hf_tfenc.presets import preset_config

LENGTHS = (40, 1, 17, 8)
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
DROPOUTS = {f"{part}_dropout": 0.0 for part in ("embedding", "hidden", "attention", "mlp")}


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of a kernel; on a CPU the model is told that it may."""
    called = {"attend": [], "gate": []}

    def attend(*args):
        called["attend"].append(args)
        return kernels.packed_attention(*args)

    def gate(x):
        called["gate"].append(x)
        return kernels.gated_gelu(x)

    class Counted:
        can_attend = staticmethod(kernels.can_attend if GPU else lambda *_: True)
        can_gate = staticmethod(kernels.can_gate if GPU else lambda activation, x: True)
        packed_attention, gated_gelu = staticmethod(attend), staticmethod(gate)

    monkeypatch.setattr(modeling_tfenc, "fused_kernels", Counted)
    return called


def model_of(preset, attention, causal):
    window = {"sliding_window": 4} if preset == "modern-tiny" else {}
    config = preset_config(preset, vocab_size=50, is_causal=causal, pooling="mean", **SIZES, **DROPOUTS, **window)
    torch.manual_seed(0)
    return TfEncModel._from_config(config, attn_implementation=attention).to(DEVICE, DTYPE).train()


def states_and_gradients(model, tokens, *args, **kwargs):
    output = model(*args, **kwargs)
    states = output.last_hidden_state.flatten(0, 1)[tokens]
    directions = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ((states.float() * directions).sum() + output.pooler_output.float().square().sum()).backward()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    return [states.float(), output.pooler_output.float()], gradients


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["padded", "padded on the left", "packed", "packed with bounds", "whole rows"])
@pytest.mark.parametrize("preset", ["bert-tiny", "modern-tiny"])
def test_the_same_states_and_gradients(calls, preset, form, causal):
    lengths = torch.tensor((20, 20, 20) if form == "whole rows" else LENGTHS)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    mask = (mask.flip(1) if form.endswith("left") else mask).to(DEVICE)
    ids = torch.randint(1, 50, mask.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    tokens = mask.flatten()
    expected, expected_gradients = states_and_gradients(model_of(preset, "eager", causal), tokens, ids, mask.long())
    assert not calls["attend"]
    calls["gate"].clear()

    arguments, options = (ids, mask.long()), {}
    if form == "whole rows":
        arguments = (ids,)
    if form.startswith("packed"):
        arguments, tokens = (ids[mask][None],), slice(None)
        options["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None].to(DEVICE)
    if form == "packed with bounds":
        bounds = torch.cat([torch.zeros(1), lengths.cumsum(0), lengths.sum()[None]]).int()  # a slot to spare
        options |= {"cu_seq_lens_q": bounds.to(DEVICE), "max_length_q": 64}
    model = model_of(preset, "varlen", causal)
    found, gradients = states_and_gradients(model, tokens, *arguments, **options)
    if form == "packed with bounds":
        found[1] = found[1][: len(lengths)]
    for one, other in zip(expected, found, strict=True):
        assert (other - one).norm() <= TOLERANCE * one.norm()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= (0.05 if GPU else 1e-4) * gradient.norm() + 1e-4, name

    sees_all = preset == "bert-tiny" and form == "whole rows"  # which is sdpa's
    assert len(calls["attend"]) == (0 if sees_all else model.config.num_hidden_layers)
    assert len(calls["gate"]) == (model.config.num_hidden_layers if preset == "modern-tiny" else 0)
    for layer, (_, rotary, _, _, back, ahead) in zip(model.layers, calls["attend"], strict=False):
        assert (rotary is None) == (preset == "bert-tiny")
        reach = None if layer.layer_type == "full_attention" else 3 if causal else 4
        assert (back, ahead) == (reach, 0 if causal else reach)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_step(calls, backend):
    """One graph with its backward pass; on a GPU `tests/gpu` asks for more."""
    bounds = torch.tensor([0, 40, 41, 64], dtype=torch.int32, device=DEVICE)
    ids = torch.randint(1, 50, (1, 64), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results = []
    for compiled in (False, True):
        model = model_of("modern-tiny", "varlen", False)
        if compiled:
            model.compile(backend=backend, fullgraph=True)
        results.append(states_and_gradients(model, slice(None), ids, cu_seq_lens_q=bounds, max_length_q=64))
    (expected, expected_gradients), (found, gradients) = results
    for one, other in zip(expected, found, strict=True):
        assert (other - one).norm() <= TOLERANCE * one.norm()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= (0.05 if GPU else 1e-4) * gradient.norm() + 1e-4, name


def test_a_compiled_graph_holds_the_kernels(calls):
    called = []

    def backend(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    model = model_of("modern-tiny", "varlen", False)
    model.compile(backend=backend, fullgraph=True)
    bounds = torch.tensor([0, 40, 64], dtype=torch.int32, device=DEVICE)
    model(torch.ones(1, 64, dtype=torch.long, device=DEVICE), cu_seq_lens_q=bounds, max_length_q=64)
    assert called.count("hf_tfenc.packed_attention.default") == called.count("hf_tfenc.gated_gelu.default") == 3


def test_attention_weights_are_asked_of_the_eager_path(calls):
    model = model_of("modern-tiny", "varlen", False).eval()
    assert len(model(torch.ones(2, 7, dtype=torch.long, device=DEVICE), output_attentions=True).attentions) == 3
    assert not calls["attend"]


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_what_they_cannot_goes_another_way(calls):
    model = model_of("modern-tiny", "varlen", False).float()
    assert model(torch.ones(2, 7, dtype=torch.long, device=DEVICE)).last_hidden_state.isfinite().all()
    assert not calls["attend"] and calls["gate"]
