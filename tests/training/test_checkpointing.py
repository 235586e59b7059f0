"""Saving: a reader finds the whole old model or the whole new one, whatever happens on the way."""

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.training import checkpointing
from hf_tfenc.training.checkpointing import (
    CheckpointError,
    OutputFolder,
    checkpoint_path,
    checkpoints,
    newest_whole,
    read_state,
    save_model,
    set_aside_newer,
    tidy,
    verify,
    write_text,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def model_of(value, tokenizer):
    model = TfEncForMaskedLM(preset_config("classic-tiny", vocab_size=len(tokenizer), **SIZES))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    return model


def value_in(folder):
    """The one value of all weights of the model that a reader finds there."""
    model = TfEncForMaskedLM.from_pretrained(folder)
    (value,) = {x for parameter in model.parameters() for x in parameter.unique().tolist()}
    return value


@pytest.fixture
def folder(tmp_path, tokenizer):
    """Holds a model of ones and a file of somebody else's."""
    folder = tmp_path / "new" / "folder"
    save_model(model_of(1.0, tokenizer), tokenizer, folder)
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_saved_folder_holds_all_of_a_model_and_nothing_else(folder, tokenizer, texts):
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "configuration_tfenc.py", "model.safetensors", "modeling_tfenc.py", "notes.txt",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert value_in(folder) == 1
    assert AutoTokenizer.from_pretrained(folder)(texts[:5])["input_ids"] == tokenizer(texts[:5])["input_ids"]
    save_model(model_of(2.0, tokenizer), tokenizer, folder)
    assert value_in(folder) == 2 and (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("failing", ["model", "tokenizer", "sync", "replace"])
def test_a_failed_save_leaves_the_old_model(folder, tokenizer, monkeypatch, failing):
    def fail(*_, **__):
        raise OSError("no space left on device")

    new, before = model_of(2.0, tokenizer), sorted(folder.iterdir())
    target, name = {
        "model": (TfEncForMaskedLM, "save_pretrained"),
        "tokenizer": (type(tokenizer), "save_pretrained"),
        "sync": (os, "fsync"),
        "replace": (os, "replace"),
    }[failing]
    monkeypatch.setattr(target, name, fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(new, tokenizer, folder)
    assert sorted(folder.iterdir()) == before and value_in(folder) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_a_whole_model(folder, tokenizer, monkeypatch):
    new, replace, found = model_of(2.0, tokenizer), os.replace, []

    def killed_after(moves):
        """Save in a child that is killed once it has moved that many files. Whether it was."""
        if (child := os.fork()) == 0:
            signal.alarm(30)  # a child that hangs ends by another signal

            def move(source, target):
                nonlocal moves
                if moves == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                moves -= 1
                replace(source, target)

            monkeypatch.setattr(os, "replace", move)
            try:
                save_model(new, tokenizer, folder)
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        return status != 0

    moves = 0
    while killed_after(moves):
        found.append(value_in(folder))
        assert len(AutoTokenizer.from_pretrained(folder)) == len(tokenizer)
        moves += 1
    assert moves >= 4 and set(found) == {1} and value_in(folder) == 2  # the weights come last


def test_files_are_on_the_disk_before_they_are_moved(folder, tokenizer, monkeypatch):
    events, sync, replace = [], checkpointing._sync, os.replace
    monkeypatch.setattr(checkpointing, "_sync", lambda path: events.append(("sync", path.name)) or sync(path))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append(("move", Path(a).name)) or replace(a, b))
    save_model(model_of(2.0, tokenizer), tokenizer, folder)
    moved = [name for event, name in events if event == "move"]
    assert moved[-1] == "model.safetensors" and events[-1] == ("sync", folder.name)
    assert all(events.index(("sync", name)) < events.index(("move", moved[0])) for name in moved)


def test_write_text_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_text(path, "old ü")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old ü"
    monkeypatch.undo()
    write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


# --- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path, tokenizer):
    """An output folder that keeps two checkpoints."""
    return OutputFolder(tmp_path / "run", Accelerator(cpu=True), tokenizer, 2, {"options": {"seed": 1}})


@pytest.fixture
def save(output, tokenizer):
    """Saves a checkpoint of a small model, whose weights have the value of its step."""

    def save(step, best_step=0):
        model = model_of(float(step), tokenizer)
        optimizer = torch.optim.AdamW(model.parameters())
        output.save(step, model, optimizer, {"progress": {"global_step": step}}, best_step, required=True)
        return checkpoint_path(output.path, step)

    return save


def names(folder):
    return [path.name for path in checkpoints(folder)]


def test_a_checkpoint_is_whole_and_loads(save):
    checkpoint = save(7)
    verify(checkpoint)
    assert checkpoint.name == "checkpoint-000007" and value_in(checkpoint) == 7
    assert read_state(checkpoint) == {"progress": {"global_step": 7}, "run": {"options": {"seed": 1}}}
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = {path.name: path for path in checkpoint.iterdir() if path.name != "manifest.json"}
    assert manifest.keys() == files.keys()
    for name, path in files.items():
        assert manifest[name]["size"] == path.stat().st_size
        assert manifest[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {path.suffix for path in files.values()} == {".json", ".safetensors", ".py"}  # no pickle among them


def truncate(path):
    os.truncate(path, path.stat().st_size - 10)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pickled(path):
    path.write_bytes(pickle.dumps({"weight": [1.0]}))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", truncate, r"model\.safetensors in .* has \d+ bytes, not \d+"),
        ("optimizer.safetensors", flip, r"optimizer\.safetensors in .* is not what was written: its sha256 differs"),
        ("rng_rank0.safetensors", Path.unlink, r"000002 lacks rng_rank0\.safetensors"),
        ("trainer_state.json", flip, r"trainer_state\.json in"),
        ("model.safetensors", pickled, r"model\.safetensors in"),
        ("optimizer.pt", pickled, r"holds optimizer\.pt, which its manifest\.json does not list"),
        ("pytorch_model.bin", pickled, r"holds pytorch_model\.bin"),
        ("manifest.json", Path.unlink, r"has no readable manifest\.json"),
        ("manifest.json", truncate, r"has no readable manifest\.json"),
    ],
)
def test_damage_is_named_and_the_next_whole_checkpoint_taken(save, caplog, name, damage, said):
    older, newer = save(1), save(2)
    damage(newer / name)
    with pytest.raises(CheckpointError, match=said):
        verify(newer)
    assert newest_whole(newer.parent) == older
    (record,) = caplog.records
    assert re.search(said, record.getMessage()) and "this checkpoint is skipped" in record.getMessage()


def test_hidden_files_of_others_do_no_harm(save):
    (save(1) / ".DS_Store").write_bytes(b"x")
    assert newest_whole(save(2).parent).name == "checkpoint-000002" and newest_whole(save(1).parent) is not None


def test_rotation_keeps_the_newest_and_the_best(save, output):
    for step in (1, 2, 3, 4, 5):
        save(step, best_step=2)
    assert names(output.path) == ["checkpoint-000002", "checkpoint-000004", "checkpoint-000005"]
    save(6, best_step=6)
    assert names(output.path) == ["checkpoint-000005", "checkpoint-000006"]
    save(3, best_step=6)  # of a run that went back: what was just written stays
    assert "checkpoint-000003" in names(output.path)


def test_an_old_checkpoint_goes_only_when_the_new_one_is_whole(save, output, monkeypatch):
    save(1), save(2)
    monkeypatch.setattr(checkpointing, "seal", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(
        OSError, match=r"checkpoint-000003 could not be saved \(no space left\); older checkpoints are"
    ):
        save(3)
    assert names(output.path) == ["checkpoint-000001", "checkpoint-000002"]
    assert not [path for path in output.path.iterdir() if path.name.startswith(".")]


def test_what_a_killed_process_left_is_tidied(save, output):
    whole, replaced = save(1), output.path / ".checkpoint-000002.replaced"
    shutil.copytree(whole, replaced)
    (output.path / ".checkpoint-000003.saving").mkdir()
    (output.path / ".checkpoint-000001.replaced").mkdir()
    (output.path / ".saving-abc").mkdir()
    half = output.path / ".checkpoint-000004.replaced"  # was being removed
    shutil.copytree(whole, half)
    (half / "config.json").unlink()
    tidy(output.path)
    assert sorted(path.name for path in output.path.iterdir()) == ["checkpoint-000001", "checkpoint-000002"]
    verify(output.path / "checkpoint-000002")


def test_newer_checkpoints_step_aside_and_none_is_lost(save, output):
    for _ in range(2):
        save(1), save(2)
        set_aside_newer(output.path, 1)
    assert names(output.path) == ["checkpoint-000001"]
    aside = sorted(path.name for path in output.path.glob("*.set-aside*"))
    assert aside == ["checkpoint-000002.set-aside", "checkpoint-000002.set-aside-2"]
