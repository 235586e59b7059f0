"""Tokenizers: what they give back, what they save, and what they refuse."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_tfenc.tokenization import encode_rows, load_tokenizer, token_byte_lengths, train_tokenizer, vocabulary_size

TEXTS = [
    "The tokenizer splits a text into tokens, and each token has a number.\n",
    "A number stands for a token; the same text always gives the same numbers.\n",
    "    Indented lines, tabs\tand   spaces are text too: naïve café, 東京 and Ωmega, 100 % of it.\n",
] * 4
TYPES = ["byte-level-bpe", "wordpiece"]
SAMPLE = "The café has 3 tokenizers: [MASK] naïve\n\tΩmega 東京 😀"


def trained(tokenizer_type, vocab_size=320, **options):
    return train_tokenizer(TEXTS, vocab_size, tokenizer_type, model_max_length=64, **options)


@pytest.fixture(scope="module")
def tokenizers():
    # WordPiece learns fewer tokens here than the byte alphabet alone has, so it is asked for fewer.
    return {"byte-level-bpe": trained("byte-level-bpe"), "wordpiece": trained("wordpiece", 150)}


@pytest.fixture(params=TYPES)
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


# --- Training --------------------------------------------------------------------------------------------------------


def test_special_tokens(tokenizer):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_ids_to_tokens(range(5)) == names
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    ids = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert [*ids, tokenizer.mask_token_id] == [0, 1, 2, 3, 4]


def test_singles_and_pairs_are_framed(tokenizer):
    a, b = (encode_rows(tokenizer, [text], add_special_tokens=False)["input_ids"][0] for text in ("token", "number"))
    assert tokenizer("token")["input_ids"] == [2, *a, 3]
    pair = tokenizer("token", "number", return_token_type_ids=True)
    assert pair["input_ids"] == [2, *a, 3, *b, 3]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_batches_pad_on_the_right_and_truncate(tokenizer):
    batch = tokenizer(["token", "token " * 100], padding=True, truncation=True)
    assert list(batch) == ["input_ids", "attention_mask"]
    assert len(batch["input_ids"][1]) == tokenizer.model_max_length == 64
    assert batch["input_ids"][0][-1] == 0 and batch["attention_mask"][0][-1] == 0
    assert batch["input_ids"][1][-1] == 3


@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_vocabulary_has_the_size_asked_for(tokenizer_type, caplog):
    size = {"byte-level-bpe": 300, "wordpiece": 120}[tokenizer_type]
    assert len(trained(tokenizer_type, size)) == size
    assert not caplog.records


@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_too_little_text_makes_a_smaller_vocabulary(tokenizer_type, caplog):
    with caplog.at_level(logging.WARNING):
        size = len(trained(tokenizer_type, 5000))
    assert size < 5000
    expected = f"The training text supports a vocabulary of {size} tokens, fewer than the 5000 asked for."
    assert caplog.messages == [expected]


@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_generators_are_read_like_lists(tokenizer_type):
    once = train_tokenizer(iter(TEXTS), 300, tokenizer_type, model_max_length=64)
    assert once.get_vocab() == trained(tokenizer_type, 300).get_vocab()


def test_wordpiece_lowercase():
    tokenizer = trained("wordpiece", 150, lowercase=True)
    assert tokenizer("THE NAÏVE")["input_ids"] == tokenizer("the naive")["input_ids"]
    assert trained("wordpiece", 150)("THE")["input_ids"] != tokenizer("the")["input_ids"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            (TEXTS, 260, "byte-level-bpe"),
            "vocab_size is 260, too small for this tokenizer: it needs at least 261 (5 special tokens and 256 bytes).",
        ),
        (
            (["ab ba"], 8, "wordpiece"),
            "vocab_size is 8, too small for this tokenizer: it needs at least 9 "
            "(5 special tokens and 4 characters, counted apart at the start of a word and within one).",
        ),
        ((TEXTS, 300, "unigram"), "tokenizer_type is 'unigram': it must be byte-level-bpe or wordpiece."),
        (([" ", "\n"], 300, "wordpiece"), "There is no text to train a tokenizer on: every row is empty."),
        (([], 300, "byte-level-bpe"), "There is no text to train a tokenizer on: every row is empty."),
    ],
)
def test_what_cannot_be_trained(arguments, sentence):
    with pytest.raises(ValueError) as error:
        train_tokenizer(*arguments, model_max_length=64)
    assert str(error.value) == sentence


def test_byte_level_has_no_lowercase():
    with pytest.raises(ValueError) as error:
        trained("byte-level-bpe", lowercase=True)
    sentence = "lowercase is for tokenizer_type wordpiece: byte-level-bpe keeps every character as it is."
    assert str(error.value) == sentence


def test_smallest_vocabularies():
    assert len(trained("byte-level-bpe", 261)) == 261
    assert len(train_tokenizer(["ab ba"], 9, "wordpiece", model_max_length=8)) == 9


# --- Encoding --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(text=st.text())
@example(" ")
@example("  two\n\n\n  and \t tabs \r\n")
@example("\x00\x7f\x85\u2028\ufeff")
@example("👩‍👩‍👧 e\u0301 \u0301 👍🏽")
@example("עברית ‏وعربي‎ \u202e")
@example("[MASK] [PAD][CLS] [SEP]")
def test_byte_level_gives_back_any_text(tokenizers, text):
    tokenizer = tokenizers["byte-level-bpe"]
    [ids] = encode_rows(tokenizer, [text])["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode())
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)


def test_special_tokens_in_data_are_text_and_in_prompts_are_special(tokenizer):
    text = "The [MASK] splits [SEP]"
    prompt = tokenizer(text)["input_ids"]
    assert prompt.count(tokenizer.mask_token_id) == 1 and prompt.count(tokenizer.sep_token_id) == 2
    [row] = encode_rows(tokenizer, [text], [text])["input_ids"]
    assert tokenizer.mask_token_id not in row and row.count(tokenizer.sep_token_id) == 2
    assert tokenizer(text)["input_ids"] == prompt  # the one call leaves no trace in the next


def test_mask_takes_the_space_before_it(tokenizers):
    tokenizer = tokenizers["byte-level-bpe"]
    ids = tokenizer("The [MASK] splits", add_special_tokens=False)["input_ids"]
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("The", " splits"))
    assert ids == [*before, tokenizer.mask_token_id, *after]


def test_wordpiece_round_trip_is_up_to_white_space(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    ids = tokenizer("The  number\nstands for a token")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The number stands for a token"
    assert tokenizer("Жж")["input_ids"] == [2, tokenizer.unk_token_id, 3]


# --- Saving and loading ----------------------------------------------------------------------------------------------

ANOTHER_PROCESS = """
import json, sys
from transformers import AutoTokenizer
from hf_tfenc.tokenization import train_tokenizer
sample, texts, folders = json.loads(sys.argv[1])
loaded = {kind: AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()}
again = {kind: train_tokenizer(texts, len(loaded[kind]), kind, model_max_length=64) for kind in folders}
print(json.dumps([{kind: [t(sample, sample), t.get_vocab()] for kind, t in ts.items()} for ts in (loaded, again)],
                 default=dict))
"""


def test_another_process_loads_and_trains_the_same(tokenizers, tmp_path):
    folders = {kind: str(tmp_path / kind) for kind in tokenizers}
    for kind, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folders[kind])
    arguments = json.dumps([SAMPLE, TEXTS, folders])
    process = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, arguments], capture_output=True, text=True, check=True, timeout=120
    )
    here = {kind: [dict(t(SAMPLE, SAMPLE)), t.get_vocab()] for kind, t in tokenizers.items()}
    loaded, trained_again = json.loads(process.stdout.splitlines()[-1])
    assert loaded == here
    assert trained_again == here


def test_load_keeps_everything(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(SAMPLE).data == tokenizer(SAMPLE).data
    assert loaded.model_max_length == 64 and loaded.padding_side == "right"
    assert loaded.model_input_names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("model_type", ["tfenc", "nobody_knows"])
def test_load_never_asks_about_remote_code(tokenizer, tmp_path, monkeypatch, model_type):
    def asked(question):
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", asked)
    tokenizer.save_pretrained(tmp_path)
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": auto_map}))
    assert load_tokenizer(tmp_path)(SAMPLE).data == tokenizer(SAMPLE).data


def test_load_from_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_tokenizer(tmp_path / "gone")
    assert str(error.value) == f"There is no folder {tmp_path / 'gone'} to load a tokenizer from: check the path."


def test_load_from_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value) == f"The folder {tmp_path} holds no tokenizer (no tokenizer.json): check the path."


def test_load_a_damaged_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(OSError) as error:
        load_tokenizer(tmp_path)
    sentence = str(error.value)
    assert sentence.startswith(f"The tokenizer in {tmp_path} cannot be read (")
    assert sentence.endswith("): save it there anew.") and "\n" not in sentence


def test_load_an_unknown_name(monkeypatch):
    def not_found(name, **options):
        assert options == {"trust_remote_code": False, "revision": "v1"}
        raise OSError("404 Client Error.\nMore lines.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", not_found)
    with pytest.raises(OSError) as error:
        load_tokenizer("nobody/nothing", revision="v1")
    sentence = "No folder is called nobody/nothing, and the Hub gives no such tokenizer (404 Client Error)."
    assert str(error.value) == sentence


def test_load_without_a_padding_token(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(ValueError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value) == (
        f"The tokenizer {tmp_path} has no padding token, which batches need: "
        "load it, set its pad_token, save it to a folder, and name that folder."
    )


# --- Bytes -----------------------------------------------------------------------------------------------------------


def test_byte_lengths_of_byte_level(tokenizers):
    tokenizer = tokenizers["byte-level-bpe"]
    lengths = token_byte_lengths(tokenizer)
    assert lengths.dtype == np.int64 and lengths.shape == (len(tokenizer),)
    assert (lengths[:5] == 0).all() and (lengths[5:261] == 1).all() and (lengths[261:] > 1).all()
    assert lengths[tokenizer.convert_tokens_to_ids("Ġtoken")] == len(" token")


def test_byte_lengths_of_wordpiece(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    lengths = token_byte_lengths(tokenizer)
    assert (lengths[:5] == 0).all() and (lengths[5:] > 0).all()
    text = "The café has ï tokens"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert lengths[ids].sum() == len(text.replace(" ", "").encode())


def test_byte_lengths_of_metaspace_with_byte_fallback():
    vocab = {"<unk>": 0, "▁": 1, "▁hé": 2, "é": 3, "<0x0A>": 4, "h": 5, "▁▁": 6}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    assert token_byte_lengths(tokenizer).tolist() == [0, 1, 4, 2, 1, 1, 2, 0]

    # Llama's way of writing the same: the normalizer puts the ▁, and there is no pre-tokenizer.
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Replace(" ", "▁")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    assert token_byte_lengths(tokenizer).tolist() == [0, 1, 4, 2, 1, 1, 2, 0]


def test_byte_lengths_of_word_ends():
    backend = Tokenizer(models.BPE({"a": 0, "ab</w>": 1}, [], end_of_word_suffix="</w>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    assert token_byte_lengths(tokenizer).tolist() == [1, 2, 0]


def test_byte_lengths_of_added_tokens():
    tokenizer = trained("byte-level-bpe", 300)
    tokenizer.add_tokens(["東京"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<turn>"]})
    lengths = token_byte_lengths(tokenizer)
    assert len(lengths) == 302
    assert lengths[300:].tolist() == [6, 0]  # written out, not in the letters that stand for bytes


def test_ids_may_have_gaps():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "cat": 2, "horse": 20}
    gapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    assert len(gapped) == 4 and vocabulary_size(gapped) == 21
    lengths = token_byte_lengths(gapped)
    assert lengths.nonzero()[0].tolist() == [2, 20] and lengths[20] == 5
