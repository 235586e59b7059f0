"""A vector for each row of a file, taken up where a call was stopped."""

import json
import logging
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

from hf_tfenc import TfEncForMaskedLM, TfEncModel, embed
from hf_tfenc.cli import app
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.sentence_transformers import write_modules
from hf_tfenc.tokenization import encode_rows
from hf_tfenc.training.lock import FolderLock

pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")


ENCODING = embed.Encoding()


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = preset_config("modern-tiny", vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    torch.manual_seed(0)
    model = TfEncModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_modules(model, folder)
    return str(folder)


@pytest.fixture
def file(texts, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": index, "text": text}) + "\n" for index, text in enumerate(texts[:50])))
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embed, "ROWS_PER_PART", 20)


@pytest.fixture
def encoded(monkeypatch):
    """How many texts each part had that was computed; `fails_at` a part, it ends there."""
    vectors, seen = embed.vectors, []

    def noted(model, texts, encoding):
        if len(seen) == noted.fails_at:
            raise KeyboardInterrupt
        seen.append(len(texts))
        return vectors(model, texts, encoding)

    noted.fails_at = None
    monkeypatch.setattr(embed, "vectors", noted)
    return noted, seen


def test_rows_have_the_vectors_of_their_texts(model, file, texts, tmp_path):
    out = tmp_path / "out.parquet"
    said = embed.embed(str(file), out, model)
    assert said == f"{out} holds 50 vectors of 16 numbers."
    table = pq.read_table(out)
    assert table["row"].to_pylist() == list(range(1, 51))
    expected = embed.load_model(model, embed.Encoding()).encode(texts[:50])
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist(), dtype=np.float32), expected, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "texts.jsonl"}


def test_padding_is_left_out(model):
    loaded = embed.load_model(model, embed.Encoding())
    assert loaded[0].auto_model.config._attn_implementation == "varlen"


def test_options_reach_the_model(model, file, tmp_path):
    out = tmp_path / "out.parquet"
    encoding = embed.Encoding(batch_size=7, max_seq_length=5, normalize=True)
    embed.embed(str(file), out, model, encoding=encoding)
    found = np.array(pq.read_table(out)["embedding"].to_pylist())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert embed.load_model(model, encoding).max_seq_length == 5


@pytest.mark.parametrize("asked, said", [(None, 64), (500, 500)])
def test_too_little_memory_names_the_batch(model, file, tmp_path, monkeypatch, asked, said):
    def encode(self, texts, batch_size, **_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer.encode", encode)
    with pytest.raises(ValueError, match=f"This device has too little memory for --batch_size {said}: halve it."):
        embed.embed(str(file), tmp_path / "out.parquet", model, encoding=embed.Encoding(batch_size=asked))


def test_a_stopped_call_goes_on(model, file, tmp_path, encoded):
    noted, seen = encoded
    embed.embed(str(file), tmp_path / "whole.parquet", model)
    assert seen == [20, 20, 10]
    seen.clear()
    noted.fails_at = 2
    with pytest.raises(KeyboardInterrupt):
        embed.embed(str(file), tmp_path / "out.parquet", model)
    noted.fails_at = None
    said = embed.embed(str(file), tmp_path / "out.parquet", model)
    assert said.endswith("holds 50 vectors of 16 numbers, 40 of them from an earlier call.")
    assert seen == [20, 20, 10]
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def change_a_text(file, parts):
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0].replace('"text": "', '"text": "now '), *lines[1:]]))


def cut_a_part(file, parts):
    path = sorted(parts.iterdir())[0]
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [change_a_text, cut_a_part])
def test_a_part_of_other_texts_or_a_broken_one_is_made_anew(model, file, tmp_path, encoded, damage):
    noted, seen = encoded
    noted.fails_at = 2
    with pytest.raises(KeyboardInterrupt):
        embed.embed(str(file), tmp_path / "out.parquet", model)
    noted.fails_at = None
    damage(file, tmp_path / ".out.parquet.parts")
    assert "20 of them" in embed.embed(str(file), tmp_path / "out.parquet", model)
    assert seen == [20, 20, 20, 10]


def test_other_options_are_another_call(model, file, tmp_path, encoded):
    noted, seen = encoded
    noted.fails_at = 2
    with pytest.raises(KeyboardInterrupt):
        embed.embed(str(file), tmp_path / "out.parquet", model)
    noted.fails_at = None
    said = embed.embed(str(file), tmp_path / "out.parquet", model, encoding=embed.Encoding(normalize=True))
    assert said.endswith("holds 50 vectors of 16 numbers.")
    assert seen == [20, 20, 20, 20, 10]


def test_what_is_there_is_replaced_only_when_asked(model, file, tmp_path):
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    with pytest.raises(OSError, match=r"is there already: choose another name, or replace it with --overwrite\.$"):
        embed.embed(str(file), out, model)
    assert out.read_text() == "mine"
    embed.embed(str(file), out, model, overwrite=True)
    assert pq.read_table(out).num_rows == 50


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"out": "out.csv"}, r"out\.csv is no file that ends in \.parquet, which is what is written: name it so\.$"),
        ({"file": "nothing.csv"}, r"FILE .*nothing\.csv: there is no such file or folder, check the path\.$"),
        ({"text_column": "body"}, r"has no column 'body': give --text_column one of id \(.*\), text \(.*\)\.$"),
        ({"sample_by": "paragraph"}, r"--sample_by paragraph is for plain text, and FILE .* is none: leave it out\.$"),
        ({"model_name_or_path": "no/such/folder"}, r"no/such/folder: there is no such folder, check the path\.$"),
        pytest.param(
            {"encoding": embed.Encoding(torch_compile=True)},
            r"^--torch_compile is for a GPU, and the model is on a CPU: leave it out\.$",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_mistakes(model, file, tmp_path, options, sentence):
    call = {"file": str(file), "out": "out.parquet", "model_name_or_path": model, **options}
    call["out"] = tmp_path / call["out"]
    with pytest.raises((ValueError, OSError), match=sentence):
        embed.embed(**call)
    assert not call["out"].exists()


def test_a_row_without_a_text_is_named(model, tmp_path, texts, encoded):
    """Before any long work."""
    path = tmp_path / "texts.jsonl"
    rows = [*texts[:25], None, *texts[25:30]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    with pytest.raises(ValueError, match=r"^Row 26: text is null, not a string: mend the row, or leave it out"):
        embed.embed(str(path), tmp_path / "out.parquet", model)
    assert encoded[1] == []


def test_texts_are_never_replaced_by_their_vectors(model, tmp_path, texts):
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": texts[:5]}), path)
    with pytest.raises(ValueError, match=r"texts\.parquet is among the files to be read, and would be replaced"):
        embed.embed(str(path), path, model, overwrite=True)
    assert pq.read_table(path).column_names == ["text"]


def test_what_else_lies_among_the_parts_stays(model, file, tmp_path):
    (tmp_path / ".out.parquet.parts").mkdir()
    (tmp_path / ".out.parquet.parts" / "mine.txt").write_text("mine")
    embed.embed(str(file), tmp_path / "out.parquet", model)
    assert [path.name for path in (tmp_path / ".out.parquet.parts").iterdir()] == ["mine.txt"]


def change_the_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))


def change_the_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": True}))


def change_where_texts_are_cut(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"truncation_side": "left"}))


def change_the_length_of_vectors(folder):
    config = {"model_type": "SentenceTransformer", "truncate_dim": 8, "prompts": {}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))


CHANGES = [change_the_tokenizer, change_the_configuration, change_where_texts_are_cut, change_the_length_of_vectors]


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_is_known_by_more_than_its_weights(model, tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    before = embed.digest_of(embed.load_model(str(folder), embed.Encoding()), embed.Encoding())
    assert before == embed.digest_of(embed.load_model(str(folder), embed.Encoding()), embed.Encoding())
    change(folder)
    assert before != embed.digest_of(embed.load_model(str(folder), embed.Encoding()), embed.Encoding())


def test_another_model_is_known_by_its_weights(model, tmp_path):
    shutil.copytree(model, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    one, other = (
        embed.digest_of(embed.load_model(str(path), ENCODING), ENCODING) for path in (model, tmp_path / "other")
    )
    assert one == embed.digest_of(embed.load_model(model, ENCODING), ENCODING) != other


def test_missing_weights_are_no_random_numbers(model, tmp_path):
    shutil.copytree(model, tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"has no layers\.1\.mlp\.up_proj\.weight: save it there anew\.$"):
        embed.load_model(str(tmp_path / "part"), ENCODING)
    (tmp_path / "part" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(OSError, match=r"cannot be read \(.*\): save it there anew\.$"):
        embed.load_model(str(tmp_path / "part"), ENCODING)


def test_special_tokens_in_a_text_are_text(model, tokenizer):
    text = "the cat [SEP] [MASK] draws [PAD] the river"
    loaded = embed.load_model(model, ENCODING)
    with torch.no_grad():
        body = TfEncModel.from_pretrained(model).eval()
        expected = body(**encode_rows(tokenizer, [text], return_tensors="pt")).pooler_output
    torch.testing.assert_close(
        torch.from_numpy(embed.vectors(loaded, [text], ENCODING)), expected, atol=1e-5, rtol=1e-5
    )


def test_two_calls_do_not_write_one_file(model, file, tmp_path, monkeypatch):
    def taken(self):
        raise OSError(f"{self.path.parent} is in use")

    monkeypatch.setattr(FolderLock, "take", taken)
    with pytest.raises(OSError, match=r"\.out\.parquet\.parts is in use$"):
        embed.embed(str(file), tmp_path / "out.parquet", model)
    assert not list((tmp_path / ".out.parquet.parts").iterdir())


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_limit_without_room_for_text_is_refused(model, tokens):
    with pytest.raises(ValueError, match=rf"^--max_seq_length {tokens} has no room for text beside 2 special tokens"):
        embed.load_model(model, embed.Encoding(max_seq_length=tokens))


def test_a_limit_beyond_the_positions_is_refused(tokenizer, tmp_path):
    config = preset_config("bert-tiny", vocab_size=len(tokenizer), max_position_embeddings=64, num_hidden_layers=1)
    body = TfEncModel(config)
    body.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_modules(body, tmp_path)
    with pytest.raises(ValueError, match=r"^--max_seq_length 65 is more than the model's 64 positions: lower it\.$"):
        embed.load_model(str(tmp_path), embed.Encoding(max_seq_length=65))
    assert embed.load_model(str(tmp_path), embed.Encoding(max_seq_length=64)).max_seq_length == 64


def test_bytes_that_are_no_text_are_named_by_their_row(model, tmp_path):
    values = pa.array([b"the cat", b"a \xff b"]).view(pa.string())
    pq.write_table(pa.table({"text": values}), tmp_path / "texts.parquet")
    with pytest.raises(
        ValueError, match=r"^Row 2: the column 'text' holds the byte 0xff, which is not UTF-8: mend the"
    ):
        embed.embed(str(tmp_path / "texts.parquet"), tmp_path / "out.parquet", model)


def test_what_is_cut_off_is_counted(model, file, tmp_path, caplog, texts):
    embed.embed(str(file), tmp_path / "out.parquet", model, encoding=embed.Encoding(max_seq_length=12))
    tokenizer = embed.load_model(model, ENCODING).tokenizer
    full = sum(len(ids) >= 12 for ids in tokenizer(texts[:50])["input_ids"])
    assert full > 0 and f"{full} texts fill the 12 tokens that are read of a text" in caplog.text
    caplog.clear()
    embed.embed(str(file), tmp_path / "whole.parquet", model)
    assert "texts fill the 64 tokens" in caplog.text  # the model's own limit
    (tmp_path / "short.jsonl").write_text('{"text": "the cat"}\n')
    caplog.clear()
    embed.embed(str(tmp_path / "short.jsonl"), tmp_path / "short.parquet", model)
    assert "texts fill" not in caplog.text


def test_texts_are_told_apart():
    assert embed.key_of(b"", ["a\0b", "c"]) != embed.key_of(b"", ["a", "b\0c"])


def test_the_command_says_what_it_did_and_nothing_else(tokenizer, file, tmp_path):
    config = preset_config("modern-tiny", vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2)
    TfEncForMaskedLM(config).save_pretrained(tmp_path / "mlm")  # with a head, which vectors do not need
    tokenizer.save_pretrained(tmp_path / "mlm")
    transformers_logging.set_verbosity_warning()
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    transformers_logging.add_handler(handler)
    argv = ["embed", str(file), str(tmp_path / "out.parquet"), "--model_name_or_path", str(tmp_path / "mlm")]
    result = CliRunner().invoke(app, argv)
    transformers_logging.remove_handler(handler)
    assert result.stdout == f"{tmp_path / 'out.parquet'} holds 50 vectors of 16 numbers.\n" and not said
