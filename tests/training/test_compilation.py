"""Compiled training: CUDA graphs where they can be, and gradients that outlive a micro-batch."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_tfenc.training import compilation
from hf_tfenc.training.arguments import Arguments, OptionError
from hf_tfenc.training.compilation import check_compilation, compile_for_training

GRAPHS = {"packing": "packed", "torch_compile": True, "torch_compile_mode": "reduce-overhead"}


@pytest.mark.parametrize(
    ("device", "processes", "said"),
    [
        ("cpu", 1, r"^CUDA graphs are for a GPU, and this run is on cpu: choose --torch_compile_mode default\.$"),
        ("cuda", 2, r"^CUDA graphs are for one process, and there are 2: choose --torch_compile_mode default\.$"),
    ],
)  # fmt: skip
def test_cuda_graphs_are_for_one_gpu(device, processes, said):
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    check_compilation(Arguments(torch_compile=True), accelerator)
    with pytest.raises(OptionError, match=said):
        check_compilation(Arguments(**GRAPHS), accelerator)


@pytest.mark.parametrize("options", [GRAPHS, GRAPHS | {"torch_compile_mode": "default"}, {"torch_compile": True}])
def test_gradients_of_micro_batches_are_added_up(options, monkeypatch):
    """Also where a graph writes the later ones to where the earlier ones lie, as CUDA graphs do."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, mode, dynamic: compile(model, dynamic=dynamic, backend="aot_eager")
    )
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    model = compile_for_training(plain, Arguments(**options))
    first, second = torch.randn(2, 5, 4)
    for x in (first, second):
        plain(x).square().sum().backward()
    expected = [parameter.grad for parameter in plain.parameters()]
    plain.zero_grad()

    model(first).square().sum().backward()
    lying = [parameter.grad for parameter in plain.parameters()]
    loss = model(second).square().sum()
    if options == GRAPHS:
        for gradient in lying:
            gradient.fill_(torch.nan)
    loss.backward()
    for parameter, right in zip(plain.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, right)


def test_the_mode_is_handed_on(monkeypatch):
    asked = []
    monkeypatch.setattr(compilation.torch, "compile", lambda model, **options: asked.append(options) or model)
    for options in (GRAPHS, {"torch_compile": True}):
        compile_for_training(nn.Linear(1, 1), Arguments(**options))
    assert asked == [{"dynamic": False, "mode": "reduce-overhead"}, {"dynamic": None, "mode": "default"}]
