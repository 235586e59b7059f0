"""Saving: a reader finds the whole old model or the whole new one, whatever happens on the way."""

import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.training import checkpointing
from hf_tfenc.training.checkpointing import save_model, write_text

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
