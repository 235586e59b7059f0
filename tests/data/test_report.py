"""The report of a dry run, on rows small enough to count by hand."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from transformers import BertTokenizer

from hf_tfenc.data.report import SplitReport, describe, report_lines


@pytest.fixture(scope="module")
def words_tokenizer(tmp_path_factory):
    """A token a word, and "play ##ing" for playing; all else is unknown."""
    file = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "play", "##ing"]))
    return BertTokenizer(str(file))


def reports_of(tokenizer, train, validation):
    splits = DatasetDict({"train": Dataset.from_dict(train), "validation": Dataset.from_dict(validation)})
    encoded = DatasetDict({split: Dataset.from_dict({"length": [5] * 3}) for split in splits})
    return describe(splits, encoded, tokenizer)


def test_counts(words_tokenizer):
    reports = reports_of(
        words_tokenizer,
        {"text": ["a b", "a b", "playing c", "zebra", "a b"], "label": [0, 1, 0, 1, 0]},
        {"text": ["a b", "b a", "b a"], "label": [0, 0, 0]},
    )
    train, validation = reports["train"], reports["validation"]
    assert (train.rows, train.encoded_rows, train.tokens) == (5, 3, 15)
    assert (train.duplicates, train.shared) == (2, 0)
    assert (validation.duplicates, validation.shared) == (1, 1)
    assert train.tokens_per_word == 10 / 9  # playing is two tokens
    assert train.unknown_share == 1 / 10
    assert train.lengths.tolist() == [4, 4, 5, 3, 4]
    assert train.share_above(4) == 1 / 5
    assert train.share_above(5) == 0
    assert train.histogram() == [(3, 4, 4), (5, 8, 1)]


@pytest.mark.parametrize(
    ("rows", "lengths", "words"),
    [
        ({"text": ["a", "a b"], "text_pair": ["b", "c"]}, [5, 6], 5),
        ({"words": [["a", "playing"], ["c"]], "tags": [["x", "y"], ["x"]]}, [5, 3], 3),
        ({"anchor": ["a", "b"], "positive": ["a b", "c"], "score": [0.5, 1.0]}, [3, 3, 4, 3], 5),
    ],
)
def test_rows_of_each_task(words_tokenizer, rows, lengths, words):
    report = reports_of(words_tokenizer, rows, rows)["validation"]
    assert report.lengths.tolist() == lengths
    assert report.sampled_words == words
    assert report.shared == 2


def test_special_tokens_spelled_out_are_text(words_tokenizer):
    report = reports_of(words_tokenizer, {"text": ["[SEP]", "a"]}, {"text": ["a"]})["train"]
    assert report.sampled_tokens > 2


def test_the_sample_is_spread_over_the_split(words_tokenizer, monkeypatch):
    monkeypatch.setattr("hf_tfenc.data.report.SAMPLE_TEXTS", 10)
    rows = {"text": ["a"] * 50 + ["a b c"] * 50}
    report = reports_of(words_tokenizer, rows, rows)["train"]
    assert report.lengths.tolist() == [3] * 5 + [5] * 5
    assert report.rows == 100


def test_lines(words_tokenizer):
    lengths = np.array([3] * 6 + [4] * 2 + [9, 16])
    report = SplitReport(10, 12, 1234, 3, 2, 40, 50, 5, lengths)
    assert report_lines({"validation": report}, max_seq_length=8) == [
        "validation: 10 rows of the source, 12 encoded, 1,234 tokens",
        "  1.25 tokens a word, 10.00% of tokens unknown",
        "  3 rows repeat an earlier one, 2 are training rows too",
        "  20.0% of texts are longer than 8 tokens:",
        "   3 to  4 tokens ##############################  80.0%",
        "   5 to  8 tokens                                  0.0%",
        "   9 to 16 tokens ########                        20.0%",
    ]
