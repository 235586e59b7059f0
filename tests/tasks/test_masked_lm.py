"""The task mlm: from text to rows, and from a model to metrics."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from hf_tfenc.data.batching import EvaluationBins
from hf_tfenc.data.collators import EncodedRows
from hf_tfenc.presets import preset_config
from hf_tfenc.tasks import TASKS, join
from hf_tfenc.tasks.masked_lm import MaskedLM
from hf_tfenc.tokenization import encode_rows, train_tokenizer
from hf_tfenc.training.arguments import Arguments

ODD_TEXTS = ["a [MASK] spelled out, and [SEP]", "😀 naïve 東京", "word " * 100, "x", "\u200b"]


def task_of(tokenizer, **options):
    return MaskedLM(Arguments(**{"max_seq_length": 16, "seed": 1, **options}), tokenizer)


@pytest.fixture(scope="module")
def task(tokenizer):
    return task_of(tokenizer)


@pytest.fixture(scope="module")
def encoded(task, texts):
    return task.encode(
        DatasetDict(train=Dataset.from_dict({"text": texts}), validation=Dataset.from_dict({"text": texts[:40]}))
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = preset_config(
        "modern-tiny", vocab_size=len(tokenizer), initializer_range=0.3, **sizes, **MaskedLM.config_options
    )
    return MaskedLM.auto_class.from_config(config).eval()


def evaluate(task, model, rows, batch_size=8):
    lengths = rows.with_format("numpy")["length"][:]
    bins, collator = EvaluationBins(lengths, batch_size), task.collator(training=False)
    with torch.no_grad():
        batches = DataLoader(EncodedRows(rows), batch_sampler=bins, collate_fn=collator)
        return join([task.measure(model, batch) for batch in batches])


def evaluation_batch(task, rows, count):
    return task.collator(training=False)(
        EncodedRows(rows).__getitems__([(EvaluationBins.EPOCH, i) for i in range(count)])
    )


def test_the_table_knows_the_task():
    assert TASKS["mlm"] is MaskedLM


@pytest.mark.parametrize("tokenizer_type", ["byte-level-bpe", "wordpiece"])
def test_encoding_drops_nothing(texts, tokenizer_type):
    texts = texts + ODD_TEXTS
    tokenizer = train_tokenizer(texts, 300, tokenizer_type, model_max_length=16)
    rows = task_of(tokenizer).encode(DatasetDict(train=Dataset.from_dict({"text": texts})))["train"]
    windows = rows["input_ids"][:]
    assert rows.column_names == ["input_ids", "length", "source"]
    assert rows.features["input_ids"].feature.dtype == "uint16"
    assert rows["length"][:] == list(map(len, windows)) and max(map(len, windows)) == 16
    assert {(ids[0], ids[-1]) for ids in windows} == {(tokenizer.cls_token_id, tokenizer.sep_token_id)}
    whole = encode_rows(tokenizer, texts, add_special_tokens=False)["input_ids"]
    assert [token for ids in windows for token in ids[1:-1]] == [token for ids in whole for token in ids]
    for row, ids in enumerate(whole):
        of_row = [token for window in rows if window["source"] == row for token in window["input_ids"][1:-1]]
        assert of_row == ids


def test_large_vocabularies_get_wider_integers(tokenizer, monkeypatch):
    task = task_of(tokenizer)
    monkeypatch.setattr("hf_tfenc.tasks.task.vocabulary_size", lambda _: 2**16 + 1)
    rows = task.encode(DatasetDict(train=Dataset.from_dict({"text": ["the cat"]})))["train"]
    assert rows.features["input_ids"].feature.dtype == "int32"


def test_encoded_rows_are_cached(texts, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("\n".join(texts))
    tokenizer.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)

    def encode(**options):
        text = Dataset.from_text(str(tmp_path / "text.txt"), cache_dir=str(tmp_path / "cache"))
        return task_of(tokenizer, **options).encode(DatasetDict(train=text))["train"]

    first = encode()["input_ids"][:]
    tokenizer(texts[:3], truncation=True, max_length=5, padding="max_length")  # it remembers that
    maps = []
    monkeypatch.setattr(
        MaskedLM, "_windows", lambda self, batch, *_, **__: maps.append(1) or {"input_ids": [[50]], "length": [1]}
    )
    assert encode(seed=9, mlm_probability=0.4)["input_ids"][:] == first and not maps
    assert encode(max_seq_length=32)["input_ids"][:] == [[50]] and maps
    tokenizer.truncation_side = "left"
    assert encode()["input_ids"][:] == [[50]]


def test_training_masks_follow_the_seed_and_evaluation_masks_do_not(tokenizer, encoded):
    rows = EncodedRows(encoded["train"]).__getitems__([(0, row) for row in range(20)])

    def batches(training):
        return [task_of(tokenizer, seed=seed).collator(training)(rows)["input_ids"] for seed in (1, 2)]

    assert torch.equal(*batches(training=False)) and not torch.equal(*batches(training=True))


def test_shares_of_masks_are_the_options(tokenizer, encoded):
    task = task_of(tokenizer, mlm_probability=0.5, eval_mlm_probability=0.25)
    rows = EncodedRows(encoded["train"]).__getitems__([(0, row) for row in range(100)])
    tokens = sum(len(row["input_ids"]) - 2 for row in rows)
    for training, share in ((True, 0.5), (False, 0.25)):
        assert task.count_items(task.collator(training)(rows)) / tokens == pytest.approx(share, abs=0.05)


def test_metrics_equal_those_by_hand(task, tokenizer, model, encoded):
    batch = evaluation_batch(task, encoded["validation"], 20)
    with torch.no_grad():
        logits = model(batch["input_ids"], batch["attention_mask"]).logits.double()
    loss = tokens = right = size = 0
    for row, place in (batch["labels"] >= 0).nonzero().tolist():
        target = batch["labels"][row, place]
        loss -= logits[row, place].log_softmax(dim=-1)[target].item()
        right += int(logits[row, place].argmax() == target)
        size += len(tokenizer.decode([target]).encode())
        tokens += 1
    with torch.no_grad():
        metrics = task.metrics(task.measure(model, batch))
    assert tokens == task.count_items(batch) > 20
    assert metrics == pytest.approx(
        {
            "eval_loss": loss / tokens,
            "eval_perplexity": np.exp(loss / tokens),
            "eval_accuracy": right / tokens,
            "eval_loss_per_byte": loss / size,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_does_not_change_metrics(task, model, encoded, batch_size):
    expected = evaluate(task, model, encoded["validation"], batch_size=16)
    sums = evaluate(task, model, encoded["validation"], batch_size)
    assert sums["items"].sum() == expected["items"].sum() and sums["bytes"] == expected["bytes"]
    assert task.metrics(sums)["eval_loss"] == pytest.approx(task.metrics(expected)["eval_loss"], rel=1e-5)


def test_no_items_are_no_crash(task):
    metrics = task.metrics({"loss": np.zeros(0), "items": np.zeros(0), "correct": 0, "bytes": 0})
    assert metrics["eval_loss"] == metrics["eval_accuracy"] == 0


def test_baselines_count_the_same_positions(task, model, encoded):
    train, validation = encoded["train"], encoded["validation"]
    metrics = task.baselines(train, validation)
    assert metrics.keys() == {"eval_unigram_loss", "eval_unigram_accuracy", "eval_bigram_accuracy"}
    assert metrics["eval_unigram_loss"] == task.baseline_loss(train, validation)

    labels = evaluation_batch(task, validation, len(validation))["labels"]
    targets = labels[labels >= 0].tolist()
    assert len(targets) == evaluate(task, model, validation)["items"].sum()
    counts = Counter(token for ids in train["input_ids"] for token in ids[1:-1])
    commonest = counts.most_common(1)[0][0]
    total = sum(counts.values()) + len(task.is_special)
    assert metrics["eval_unigram_accuracy"] == pytest.approx(targets.count(commonest) / len(targets))
    assert metrics["eval_unigram_loss"] == pytest.approx(-np.mean([np.log((counts[t] + 1) / total) for t in targets]))
    assert metrics["eval_bigram_accuracy"] > metrics["eval_unigram_accuracy"]


def test_examples_can_be_read(tokenizer, model, texts):
    task = task_of(tokenizer, max_seq_length=64)
    rows = task.encode(DatasetDict(validation=Dataset.from_dict({"text": texts[:40]})))["validation"]
    examples = task.examples(model, rows, count=4)
    assert len(examples) == 4 and examples == task.examples(model, rows, count=4)
    whole = " ".join(texts[:40])
    for example in examples:
        passage, guesses = example.split("\n")
        left, right = re.fullmatch(r"… (.*) ____ (.*) …", passage).groups()
        word = re.search(r"\(text: '(\w+)'\)$", guesses)[1]
        assert len(re.findall(r"'[^']*' \d+%", guesses)) == 3
        assert f"{left} {word} {right}".replace(" .", ".") in whole and "[" not in passage
    assert task.examples(model, rows.select([]), count=4) == []


def test_summary_holds_the_numbers(task):
    metrics = dict.fromkeys(("eval_loss", "eval_perplexity", "eval_loss_per_byte"), 1.2345)
    metrics |= {"eval_accuracy": 0.5678, "eval_unigram_accuracy": 0.0432, "eval_bigram_accuracy": 0.3456}
    for number in ("1.234", "0.568", "0.043", "0.346"):
        assert number in task.summary(json.loads(json.dumps(metrics)))


def test_a_tokenizer_without_mask_token_is_refused(tokenizer):
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(ValueError, match=r"no mask token.*--tokenizer_name"):
        task_of(without)


# --- Words -----------------------------------------------------------------------------------------------------------


def unigram_tokenizer(texts, with_pre_tokenizer):
    """SentencePiece's kind: ▁ for a space. Without a pre-tokenizer it takes a text for one word."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[UNK]", "[MASK]"]
    backend.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="[UNK]", show_progress=False)
    )
    if not with_pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizers.Sequence([])
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=64
    )


@pytest.mark.parametrize("kind", ["byte-level-bpe", "wordpiece", "metaspace", "replaced"])
def test_words_are_found_for_any_tokenizer(texts, kind):
    texts = [text.replace(".", " .").replace(":", " :") for text in texts[:60]]  # words are what spaces part
    if kind in ("byte-level-bpe", "wordpiece"):
        tokenizer = train_tokenizer(texts, 280, kind, model_max_length=64)
    else:
        tokenizer = unigram_tokenizer(texts, with_pre_tokenizer=kind == "metaspace")
    task = task_of(tokenizer, mlm_masking="whole-word", max_seq_length=512)
    for row, text in zip(
        task.encode(DatasetDict(train=Dataset.from_dict({"text": texts})))["train"], texts, strict=True
    ):
        ids, starts = np.array(row["input_ids"]), np.array(row["word_starts"])
        ordinary = ~task.is_special[ids]
        groups = np.split(ids[ordinary], np.flatnonzero(starts[ordinary])[1:])
        words = [tokenizer.decode(group).replace(" ", "").replace("▁", "") for group in groups]
        assert words == text.split()


@pytest.mark.parametrize("masking", ["whole-word", "span"])
def test_words_are_masked_in_training_alone(texts, tokenizer, masking):
    splits = DatasetDict(train=Dataset.from_dict({"text": texts}))
    task, plain = task_of(tokenizer, mlm_masking=masking), task_of(tokenizer)
    rows, plain_rows = task.encode(splits)["train"], plain.encode(splits)["train"]
    assert rows["input_ids"][:] == plain_rows["input_ids"][:] and rows.features["word_starts"].feature.dtype == "bool"
    batch, other = (evaluation_batch(t, r, 30) for t, r in ((task, rows), (plain, plain_rows)))
    assert torch.equal(batch["input_ids"], other["input_ids"])  # so that runs can be compared
    encoded = EncodedRows(rows).__getitems__([(0, row) for row in range(30)])
    batch = task.collator(training=True)(encoded)
    for row, labels in zip(encoded, batch["labels"], strict=True):
        chosen = labels[: len(row["input_ids"])].numpy() >= 0
        words = row["word_starts"].cumsum()
        whole = [chosen[words == word].all() for word in np.unique(words[chosen])]
        assert all(whole) or (len(whole) == 1 and chosen.sum() == max(1, round(0.3 * (len(words) - 2))))


def test_text_of_which_nothing_can_be_masked_is_refused(texts):
    pieces = train_tokenizer(texts, 90, "wordpiece", model_max_length=64)
    rows = DatasetDict(train=Dataset.from_dict({"text": ["ქართული ენა", "დედაენა"]}))
    with pytest.raises(
        ValueError, match=r"^No token of the train split can be masked, for all are special or unknown"
    ):
        task_of(pieces).encode(rows)
