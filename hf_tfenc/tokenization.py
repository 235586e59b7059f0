"""Tokenizers: train one on your own text, load one, and measure how much text its tokens stand for."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

TokenizerType = Literal["byte-level-bpe", "wordpiece"]

LONGEST_WORD = 1000  # characters; WordPiece's time grows with its square
SPECIAL_TOKENS = [  # in the order of their ids, from 0
    AddedToken("[PAD]", special=True),
    AddedToken("[UNK]", special=True),
    AddedToken("[CLS]", special=True),
    AddedToken("[SEP]", special=True),
    # A mask stands for a word with its leading space, as the word's own token does.
    AddedToken("[MASK]", special=True, lstrip=True),
]
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")  # "name" or "owner/name"; everything else can only be a path
TOKENIZER_FILES = ("*token*", "vocab*", "*.model")  # the names that tokenizers of all kinds are saved under
MIN_FREQUENCY = 2  # what occurs once teaches nothing, and a small text would be learned by heart


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    tokenizer_type: TokenizerType = "byte-level-bpe",
    *,
    model_max_length: int,
    lowercase: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens (special ones included) learned from `texts`.

    `byte-level-bpe` gives back any Unicode text exactly. `wordpiece` is BERT's: it drops white space, and characters
    it has never seen become [UNK]; `lowercase` is for it alone. The same texts always give the same tokenizer.
    `model_max_length` is in tokens, [CLS] and [SEP] included. Where the texts hold too little for `vocab_size` tokens,
    there are fewer, with a warning. Raises ValueError if `vocab_size` is below the alphabet, or there is no text.
    """
    if tokenizer_type not in ("byte-level-bpe", "wordpiece"):
        raise ValueError(f"tokenizer_type is {tokenizer_type!r}: it must be byte-level-bpe or wordpiece.")
    if lowercase and tokenizer_type == "byte-level-bpe":
        raise ValueError("lowercase is for tokenizer_type wordpiece: byte-level-bpe keeps every character as it is.")
    if isinstance(texts, Iterator):
        texts = list(texts)  # it is read more than once
    if not any(text.strip() for text in texts):
        raise ValueError("There is no text to train a tokenizer on: every row is empty.")

    train = _train_byte_level_bpe if tokenizer_type == "byte-level-bpe" else _train_wordpiece
    backend = train(texts, vocab_size, lowercase)
    if backend.get_vocab_size() < vocab_size:
        logger.warning(
            "The training text supports a vocabulary of %d tokens, fewer than the %d asked for.",
            backend.get_vocab_size(),
            vocab_size,
        )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _train_byte_level_bpe(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_vocab_size(vocab_size, len(alphabet), "bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def _train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    def trained(vocab_size: int, special_tokens: Sequence[str | AddedToken]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_FREQUENCY,
            special_tokens=list(special_tokens),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer=trainer)
        return tokenizer

    # The trainer numbers the "##" characters in the order of a hash table, another one in each process, and ties
    # between merges follow those numbers. So a first pass finds the alphabet, and the second is given it in order.
    # The second knows it as special tokens, which "a" and "##a" must not stay: hence the third, of the vocabulary alone.
    alphabet = sorted(trained(0, []).get_vocab())
    _check_vocab_size(vocab_size, len(alphabet), "characters, counted apart at the start of a word and within one")
    learned = trained(vocab_size, [*SPECIAL_TOKENS, *alphabet])
    # Text without spaces, such as Thai, has words of any length; what is longer than this becomes one unknown token.
    tokenizer = Tokenizer(
        models.WordPiece(learned.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    )
    tokenizer.normalizer = learned.normalizer
    tokenizer.pre_tokenizer = learned.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def _check_vocab_size(vocab_size: int, alphabet: int, what: str) -> None:
    if vocab_size < alphabet + len(SPECIAL_TOKENS):
        raise ValueError(
            f"vocab_size is {vocab_size}, too small for this tokenizer: it needs at least "
            f"{alphabet + len(SPECIAL_TOKENS)} ({len(SPECIAL_TOKENS)} special tokens and {alphabet} {what})."
        )


def load_tokenizer(name_or_path: str | os.PathLike[str], **hub_options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or in a repository on the Hub; `hub_options` go to `AutoTokenizer.from_pretrained`.

    Runs no code from the repository, and never asks about it, unless given `trust_remote_code=True`.
    Raises FileNotFoundError or OSError where there is none, ValueError where it cannot pad.
    """
    name = str(name_or_path)
    folder = Path(name).expanduser()
    if not folder.is_dir() and not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"There is no folder {name} to load a tokenizer from: check the path.")
    if folder.is_dir() and not any(path for kind in TOKENIZER_FILES for path in folder.glob(kind)):
        raise FileNotFoundError(f"The folder {name} holds no tokenizer (no tokenizer.json): check the path.")
    try:
        # False, not None: on None, a config.json that names code of its own brings up an interactive question.
        options = {"trust_remote_code": False, **hub_options}
        tokenizer = AutoTokenizer.from_pretrained(folder if folder.is_dir() else name, **options)
    except Exception as error:  # a damaged tokenizer.json raises no narrower class
        reason = str(error).strip().split("\n")[0].rstrip(".: ")
        if folder.is_dir():
            raise OSError(f"The tokenizer in {name} cannot be read ({reason}): save it there anew.") from error
        raise OSError(f"No folder is called {name}, and the Hub gives no such tokenizer ({reason}).") from error
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"The tokenizer {name} has no padding token, which batches need: "
            "load it, set its pad_token, save it to a folder, and name that folder."
        )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer's files, without the truncation and padding that it was last called with."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    text_pairs: list[str] | None = None,
    **options: Any,
) -> BatchEncoding:
    """Encode rows of data: a special token spelled out in the text, such as a literal "[MASK]", stays plain text.

    Calling the tokenizer itself turns it into the special token, which a prompt to fill in wants and data does not:
    nobody's text should be able to end a sequence or hide a word in it.
    """
    return tokenizer(texts, text_pairs, split_special_tokens=True, **options)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of how a tokenizer cuts text; the truncation and padding that it was last called with do not count."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id; `len(tokenizer)`, unless the ids have gaps."""
    return 1 + max(tokenizer.get_vocab().values())


@dataclass(frozen=True)
class Writing:
    """How a tokenizer writes text in its vocabulary.

    prefix, suffix: what a token has at its start if it goes on with a word, and at its end if it ends one
    byte_level: a character is written for each byte
    metaspace: ▁ is written for a space
    byte_fallback: a byte that is in no other token is <0x..>
    """

    prefix: str
    suffix: str
    byte_level: bool
    metaspace: bool
    byte_fallback: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Writing":
        """Of a tokenizer with a `tokenizers` backend."""
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        model = parts["model"]
        return cls(
            model.get("continuing_subword_prefix") or "",
            model.get("end_of_word_suffix") or "",
            '"ByteLevel"' in json.dumps(parts["decoder"]),
            # Metaspace, or a Replace that does the same.
            any("▁" in json.dumps(parts[part], ensure_ascii=False) for part in ("normalizer", "pre_tokenizer")),
            bool(model.get("byte_fallback")),
        )


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """How many UTF-8 bytes of text each token id stands for: int64, shape (vocabulary_size(tokenizer),).

    The measure behind the loss per byte, by which tokenizers compare. Special tokens, the unknown one among them,
    stand for 0. Under a byte-level tokenizer the lengths of a text's tokens add up to the text's own. WordPiece drops
    white space, and so counts none; SentencePiece may count one space that it put before the text.
    """
    writing = Writing.of(tokenizer)

    def length(token: str) -> int:
        if writing.byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", token):
            return 1
        token = token.removeprefix(writing.prefix).removesuffix(writing.suffix)
        if writing.byte_level:
            return len(token)
        return len((token.replace("▁", " ") if writing.metaspace else token).encode())

    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for token, token_id in tokenizer.get_vocab().items():
        lengths[token_id] = length(token)
    for token_id, added in tokenizer.added_tokens_decoder.items():  # written as they are, whatever the model's writing
        lengths[token_id] = 0 if added.special else len(added.content.encode())
    lengths[tokenizer.all_special_ids] = 0
    return lengths
