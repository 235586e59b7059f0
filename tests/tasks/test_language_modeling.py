"""What the two language models share."""

import pytest
from datasets import Dataset, DatasetDict

from hf_tfenc.tasks.task import batch_rows

ODD = ["a [MASK] spelled out", "😀 naïve 東京", "word " * 100, "x", "\u200b"]


@pytest.mark.parametrize(("case", "options"), [("mlm", {}), ("mlm", {"mlm_masking": "whole-word"}), ("causal-lm", {})])
def test_the_texts_of_a_stream_become_the_rows_of_a_data_set(encoded_task, texts, case, options):
    texts = [*texts[:30], *ODD]
    splits = DatasetDict(train=Dataset.from_dict({"text": texts}))
    task, encoded = encoded_task(case, splits, max_seq_length=16, **options)
    table = task.encode_texts(texts)
    assert table.to_pydict() == encoded["train"].to_dict()
    assert table.schema.types == encoded["train"].features.arrow_schema.types
    one_by_one = [ids for text in texts for ids in task.encode_texts([text]).to_pydict()["input_ids"]]
    assert one_by_one == table.to_pydict()["input_ids"]


@pytest.mark.parametrize(("characters", "rows"), [(20, 1000), (20_000, 50), (3_000_000, 1)])
def test_no_more_text_is_tokenized_at_once_than_memory_has_room_for(characters, rows):
    data = Dataset.from_dict({"text": ["x" * characters] * min(2000, 4_000_000 // characters)})
    assert batch_rows(data) == pytest.approx(rows, abs=1)
