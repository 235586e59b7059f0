"""What is refused before long work, in one sentence."""

import collections
import copy
import os
import shutil

import pytest
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from tokenizers import processors

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.training.arguments import Arguments, OptionError
from hf_tfenc.training.machine import make_accelerator
from hf_tfenc.training.preflight import (
    check_attention,
    check_folder,
    check_processes,
    check_rows,
    check_space,
    warn_of_bare_texts,
    warn_of_unknown,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def model(tokenizer):
    config = preset_config(
        "classic-tiny", vocab_size=300, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=12, **SIZES
    )
    return TfEncForMaskedLM(config)


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    check_processes(Accelerator(cpu=True))
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match=r"^2 processes were launched, and this one knows of 1: launch them with"):
        check_processes(accelerator)


def test_unknown_tokens_are_told_of(tokenizer, caplog):
    unknown, known = tokenizer.unk_token_id, tokenizer.convert_tokens_to_ids("a")
    rows = DatasetDict(train=Dataset.from_dict({"input_ids": [[known] * 90 + [unknown] * 10]}))
    warn_of_unknown(rows, tokenizer, ["input_ids"])
    assert "10.0 % of the tokens of the train split are [UNK], unknown to the tokenizer" in caplog.text
    caplog.clear()
    warn_of_unknown(DatasetDict(train=Dataset.from_dict({"input_ids": [[known] * 9]})), tokenizer, ["input_ids"])
    assert not caplog.text


def test_a_tokenizer_that_leaves_texts_bare_is_told_of(tokenizer, caplog):
    warn_of_bare_texts(tokenizer)
    assert not caplog.text
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    warn_of_bare_texts(bare)
    assert "The tokenizer has [CLS] and [SEP] and does not put them around a text" in caplog.text


def test_a_launcher_that_divides_gradients_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(
        OptionError, match=r"^accelerate launch has gradient accumulation steps 4: leave that to --grad"
    ):
        make_accelerator(Arguments())


def test_attention_that_is_not_to_be_had_is_refused():
    check_attention(Arguments(attn_implementation="sdpa"))
    with pytest.raises(
        OptionError, match=r"^--attn_implementation flash_attention_9 is not to be had here \(.*\): choose"
    ):
        check_attention(Arguments(attn_implementation="flash_attention_9"))


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "not" / "there"):
        check_folder(folder, Accelerator(cpu=True))
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and not any((tmp_path / "there").iterdir())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"file/out cannot be written \(Not a directory\): choose another folder\.$"):
        check_folder(tmp_path / "file" / "out", Accelerator(cpu=True))

    def read_only(*_, **__):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("pathlib.Path.touch", read_only)
    with pytest.raises(OptionError, match=r"cannot be written \(Read-only file system\)"):
        check_folder(tmp_path / "new", Accelerator(cpu=True))


def test_a_folder_that_other_machines_do_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_tfenc.training.preflight.gather_object", lambda found: [*found, False if found != [None] else None]
    )
    with pytest.raises(OptionError, match=r"is not one folder for all 1 processes: choose one on a file system"):
        check_folder(tmp_path / "out", Accelerator(cpu=True))


def test_two_checkpoints_must_fit(tmp_path, model, monkeypatch):
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    for free, fits in ((7 * weights, True), (7 * weights - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(0, 0, free))
        if fits:
            check_space(tmp_path / "not" / "there", model, checkpoints=2, freed=False)
        else:
            with pytest.raises(OptionError, match=r"has room for 0\.\d MB, and checkpoints with the best model need"):
                check_space(tmp_path / "not" / "there", model, checkpoints=2, freed=False)
    check_space(tmp_path, model, checkpoints=1, freed=False)  # a run that goes on has one already
    (tmp_path / "old").write_bytes(b"x")
    check_space(tmp_path, model, checkpoints=2, freed=True)
    with pytest.raises(OptionError, match="has room for"):
        check_space(tmp_path, model, checkpoints=2, freed=False)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([], r"^The train split has no row left to learn from"),
        ([[2, 300, 3]], r"^The train split has the token 300, and the model's vocab_size is 300"),
        (
            [[2] * 13],
            r"^The train split has a row of 13 tokens, and the model has 12 positions: lower --max_seq_length",
        ),
    ],
)
def test_rows_that_the_model_cannot_take_are_refused(tokenizer, model, train, said):
    def rows(ids):
        return Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})

    fine = rows([[2, 7, 3], [2, 299, 8, 3]])
    check_rows(DatasetDict(train=fine, validation=fine), model, tokenizer)
    with pytest.raises(OptionError, match=said):
        check_rows(DatasetDict(train=rows(train), validation=fine), model, tokenizer)


def test_padding_must_be_one_and_the_same(tokenizer, model):
    fine = DatasetDict(train=Dataset.from_dict({"input_ids": [[2, 7, 3]], "length": [3]}))
    model.config.pad_token_id = 5
    with pytest.raises(OptionError, match=r"pad token has the id 0, and the model's pad_token_id is 5"):
        check_rows(fine, model, tokenizer)
