"""FSDP2 on CPUs: what is saved in pieces comes back, in as many pieces as one likes, and in one."""

import json
from pathlib import Path

import pytest
from launching import Processes

STEPS = 3


def setting(sharded, optim):
    """A small model with its optimizer, cut into pieces or not, and a way to make one step."""
    import torch
    from accelerate import Accelerator
    from torch.distributed.fsdp import fully_shard

    from hf_tfenc import TfEncForMaskedLM
    from hf_tfenc.presets import preset_config
    from hf_tfenc.training.arguments import Arguments
    from hf_tfenc.training.optimization import OPTIMIZERS

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    model = TfEncForMaskedLM(preset_config("modern-tiny", vocab_size=31, **sizes))  # 31: pieces of unequal size
    if sharded:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    optimizer = OPTIMIZERS[optim](model, Arguments(optim=optim, learning_rate=0.01))

    def step(number):
        ids = torch.randint(5, 31, (4, 12), generator=torch.Generator().manual_seed(number))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return accelerator, model, optimizer, step


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def entries(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{entry}": whole(value)
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def save(folder, optim, sharded):
    import torch
    from safetensors.torch import save_file

    from hf_tfenc.tokenization import train_tokenizer
    from hf_tfenc.training.checkpointing import OutputFolder

    accelerator, model, optimizer, step = setting(sharded, optim)
    for number in range(STEPS):
        step(number)
    tokenizer = train_tokenizer(["a text to learn from"] * 3, 300, model_max_length=64)
    output = OutputFolder(Path(folder), accelerator, tokenizer, 2, {})
    assert output.keep(model)
    output.save(STEPS, model, optimizer, {"progress": {}}, 0, required=True)
    expected = entries(model, optimizer) | {name: whole(p.detach()) for name, p in model.named_parameters()}
    losses = [step(STEPS + number) for number in range(2)]
    if accelerator.is_main_process:
        save_file(
            {name: value.contiguous() for name, value in expected.items()}, Path(folder) / "expected.safetensors"
        )
        (Path(folder) / "losses.json").write_text(json.dumps(losses))
    torch.distributed.barrier() if accelerator.num_processes > 1 else None


def load(folder, optim, sharded):
    """Compare each entry, and the steps that follow."""
    import torch
    from safetensors.torch import load_file

    from hf_tfenc import TfEncForMaskedLM
    from hf_tfenc.training.checkpointing import checkpoint_path, verify
    from hf_tfenc.training.state import load_optimizer

    checkpoint = checkpoint_path(Path(folder), STEPS)
    verify(checkpoint)
    _, model, optimizer, step = setting(sharded, optim)
    weights, top = (TfEncForMaskedLM.from_pretrained(path).state_dict() for path in (checkpoint, folder))
    expected = load_file(Path(folder) / "expected.safetensors")
    for name in dict(model.named_parameters()):
        assert weights[name].equal(expected[name]) and top[name].equal(expected[name]), name
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            piece = weights[name]
            if sharded:
                piece = torch.distributed.tensor.distribute_tensor(piece, parameter.device_mesh, parameter.placements)
            parameter.copy_(piece)
    load_optimizer(checkpoint, model, optimizer)
    found = entries(model, optimizer)
    assert found.keys() == {name for name in expected if "/" in name}
    for name, value in found.items():
        assert value.shape == expected[name].shape and value.equal(expected[name]), name
    losses = [step(STEPS + number) for number in range(2)]
    assert losses == pytest.approx(json.loads((Path(folder) / "losses.json").read_text()), rel=1e-5)


@pytest.mark.parametrize("optim", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_a_sharded_checkpoint_comes_back_in_any_number_of_pieces(tmp_path, optim):
    folder = str(tmp_path / "out")
    Processes(save, (folder, optim, True), tmp_path / "save.log", 2).finish()
    checkpoint = tmp_path / "out" / f"checkpoint-{STEPS:06}"
    assert len(list((checkpoint / "optimizer").glob("*.safetensors"))) == 2
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".py"}  # no pickle among them
    for processes, sharded in ((2, True), (3, True), (1, False)):
        Processes(load, (folder, optim, sharded), tmp_path / f"load{processes}.log", processes).finish()


def test_a_whole_checkpoint_can_be_cut_into_pieces(tmp_path):
    folder = str(tmp_path / "out")
    Processes(save, (folder, "adamw", False), tmp_path / "save.log").finish()
    Processes(load, (folder, "adamw", True), tmp_path / "load.log", 2).finish()


def save_with_one_that_cannot(folder):
    """The random numbers of each process are its own to write; the pieces of the optimizer, everybody's together."""
    import errno
    import os

    from hf_tfenc.tokenization import train_tokenizer
    from hf_tfenc.training import checkpointing

    accelerator, model, optimizer, step = setting(True, "adamw")
    step(0)
    if accelerator.process_index == 1:

        def full(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        checkpointing.save_rng = full
    tokenizer = train_tokenizer(["a text to learn from"] * 3, 300, model_max_length=64)
    output = checkpointing.OutputFolder(Path(folder), accelerator, tokenizer, 2, {})
    output.save(1, model, optimizer, {}, 0, required=False)
    assert not checkpointing.checkpoints(Path(folder))


def test_one_process_that_cannot_write_leaves_none_waiting(tmp_path):
    Processes(save_with_one_that_cannot, (str(tmp_path / "out"),), tmp_path / "log", 2).finish()
