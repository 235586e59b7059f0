"""The task token-classification: tags stay with their words, whatever the tokenizer makes of them."""

import numpy as np
import pytest
import torch
from cases import batch_of, evaluate, make_model
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from hf_tfenc.tasks.token_classification import TokenClassification
from hf_tfenc.tokenization import train_tokenizer
from hf_tfenc.training.arguments import Arguments

# Letters of many scripts, marks that combine, joiners, controls, emoji: whatever may stand in a word.
ODD_WORDS = st.one_of(
    st.text(min_size=1, max_size=6).filter(str.strip),
    st.sampled_from(
        ["\u200b", "\u00ad", "\ufeff", "\x07", "ﷺ", "e\u0301", "🏳️‍🌈", "นี้", "[MASK]", "[SEP]", "don't", "…", "x" * 60]
    ),
)
ODD_ROWS = st.lists(st.lists(ODD_WORDS, min_size=1, max_size=12), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def tokenizers(texts):
    """Byte-level, WordPiece in lower case without accents, and one that loses most of what it is given."""
    made = [train_tokenizer(texts, 300, kind, model_max_length=64) for kind in ("byte-level-bpe", "wordpiece")]
    lossy = train_tokenizer(texts, 300, "wordpiece", model_max_length=64, lowercase=True)
    lossy.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("a", ""), lossy.backend_tokenizer.normalizer]
    )
    return [*made, lossy]


def encoded(tokenizer, words, tags, max_seq_length=16):
    task = TokenClassification(Arguments(task="token-classification", max_seq_length=max_seq_length), tokenizer)
    rows = Dataset.from_dict({"words": words, "tags": tags})
    return task, task.encode(DatasetDict(train=rows))["train"]


@given(ODD_ROWS, st.sampled_from([8, 9, 64]))
@settings(deadline=None, max_examples=60)
def test_tags_stay_with_their_words(tokenizers, words, max_seq_length):
    """Against the slow and obvious way: encode each word by itself, and count."""
    tags = [[f"{row}.{place}" for place in range(len(texts))] for row, texts in enumerate(words)]
    words, tags = [*words, ["one", "two"]], [*tags, ["1", "2"]]
    for tokenizer in tokenizers:
        task, windows = encoded(tokenizer, words, tags, max_seq_length)
        batch = task.collator(training=False)([windows.with_format("numpy")[i] for i in range(len(windows))])
        assert batch["input_ids"].shape[1] <= max_seq_length
        assert (task.before, task.after) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
        assert {(ids[0], ids[-1]) for ids in windows["input_ids"]} == {(*task.before, *task.after)}
        labelled = []
        for row in range(len(windows)):
            source = windows[row]["source"]
            for place in (batch["labels"][row] >= 0).nonzero().flatten().tolist():
                name = task.labels.names[batch["labels"][row, place]]
                labelled.append(name)
                word = words[source][tags[source].index(name)]
                spaced = " " * (words[source][0] is not word or tags[source][0] != name) + word
                pieces = tokenizer(spaced, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                here = batch["input_ids"][row, place : place + len(pieces)].tolist()
                assert pieces[: len(here)] == here or len(pieces) > max_seq_length - 2
                assert pieces[0] == here[0]
        has_pieces = [
            tag
            for row, names in zip(words, tags, strict=True)
            for place, (word, tag) in enumerate(zip(row, names, strict=True))
            if tokenizer(" " * (place > 0) + word, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ]
        assert labelled == has_pieces  # each once, in order, dropped words alone missing
        assert [task.labels.names[tag] for tag in batch["tags"]] == [tag for row in tags for tag in row]
        assert batch["word"].tolist() == [place for row in words for place in range(len(row))]
        assert batch["source"].tolist() == [number for number, row in enumerate(words) for _ in row]


def test_alignment_is_that_of_word_ids(tokenizers, texts):
    """Against the tokenizer's own account of words, where its words are ours."""
    words = [[" " * (place > 0) + word for place, word in enumerate(text.split())] for text in texts[:50]]
    for tokenizer in tokenizers[:2]:
        _, windows = encoded(tokenizer, [[w.strip() for w in row] for row in words], words, max_seq_length=64)
        whole = tokenizer(words, is_split_into_words=True)
        for row, window in enumerate(windows.filter(lambda window: window["first_word"] == 0)):
            ids = whole.word_ids(row)
            first = [ids.index(word) for word in range(len(words[row]))]
            if len(ids) <= 64:
                assert window["places"] == first and window["input_ids"] == whole["input_ids"][row]


def test_dropped_words_are_counted(tokenizers):
    lossy = tokenizers[2]
    words, tags = [["the", "a", "cat", "aa"]], [["O", "B-x", "O", "O"]]
    task, rows = encoded(lossy, words, tags)
    assert rows["places"][0][1] == rows["places"][0][3] == -1 and rows["places"][0][0] >= 0
    measured = task.measure(make_model(task).requires_grad_(False), batch_of(task, rows, [0], training=False))
    names = task.labels.names
    assert names[measured["prediction"][1]] == names[measured["prediction"][3]] == "O"  # so the second word is wrong
    task, rows = encoded(lossy, words, [["D", "D", "N", "N"]])
    measured = task.measure(make_model(task).requires_grad_(False), batch_of(task, rows, [0], training=False))
    assert measured["prediction"][[1, 3]].tolist() == [-1, -1] and task.metrics(measured)["eval_accuracy"] <= 0.5
    assert task.count_items(batch_of(task, rows, [0])) == 2


@pytest.mark.parametrize("case", ["tagging", "bio"])
def test_metrics_equal_those_by_hand(encoded_task, splits, case):
    task, rows = encoded_task(case, max_seq_length=12)  # entities lie across windows
    assert len(rows["validation"]) > 1.5 * len(splits(case)["validation"])
    model, losses, said = make_model(task), [], {}
    for row in rows["validation"]:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].double()
        for offset, (place, tag) in enumerate(zip(row["places"], row["tags"], strict=True)):
            losses.append(-logits[place].log_softmax(-1)[tag].item())
            said[row["source"], row["first_word"] + offset] = task.labels.names[logits[place].argmax()]
    words = splits(case)["validation"]
    predictions = [[said[row, place] for place in range(len(tags))] for row, tags in enumerate(words["tags"])]
    result = evaluate(task, model, rows["validation"])
    assert result["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    right = [a == b for x, y in zip(words["tags"], predictions, strict=True) for a, b in zip(x, y, strict=True)]
    assert result["eval_accuracy"] == np.mean(right)
    if case == "bio":
        seqeval = pytest.importorskip("seqeval.metrics")
        assert (
            result["eval_f1"] == pytest.approx(seqeval.f1_score(list(words["tags"]), predictions)) and len(result) == 5
        )
    else:
        assert len(result) == 2


def test_the_baseline_is_each_words_commonest_tag(encoded_task):
    train = {"words": [["a", "b", "a", "c"], ["a", "b"]], "tags": [["X", "Y", "X", "Y"], ["Z", "Y"]]}
    held_out = {"words": [["a", "a", "b", "d"]], "tags": [["X", "Z", "Y", "Y"]]}
    rows = DatasetDict(train=Dataset.from_dict(train), validation=Dataset.from_dict(held_out))
    task, rows = encoded_task("tagging", rows)
    baselines = task.baselines(rows["train"], rows["validation"])
    # The first word of a row stands without a space, and is the same word; the commonest tag of all is Y.
    assert baselines["eval_word_tag_accuracy"] == 0.75
    counts = np.array([2, 3, 1]) + 1
    expected = -np.log(counts / counts.sum())[[0, 2, 1, 1]].mean()
    assert baselines["eval_word_tag_loss"] == pytest.approx(expected)


def test_lists_of_unequal_length_are_refused(tokenizers):
    with pytest.raises(ValueError, match=r"^train, row 1: 2 words and 1 tags; a tag for each word is needed\.$"):
        encoded(tokenizers[0], [["a", "b"], ["a"]], [["X"], ["Y"]])
