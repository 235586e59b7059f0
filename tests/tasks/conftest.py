"""The cases of cases.py, as fixtures."""

import copy
import json

import pytest
import torch
from cases import SIZES, TASK_OF, rows_of
from datasets import DatasetDict

from hf_tfenc.tasks import TASKS
from hf_tfenc.training.arguments import Arguments


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from more, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def splits(texts):
    """Splits of each case."""
    made = {}

    def splits(case):
        if case not in made:
            made[case] = DatasetDict(train=rows_of(case, texts[40:]), validation=rows_of(case, texts[:40]))
        return made[case]

    return splits


@pytest.fixture(scope="session")
def encoded_task(splits, tokenizer):
    """A task of the case, and its encoded rows."""

    def encoded_task(case, rows=None, **options):
        name = TASK_OF.get(case, case)
        args = Arguments(task=name, **{"max_seq_length": 32, "config_overrides": json.dumps(SIZES), **options})
        task = TASKS[name](args, copy.deepcopy(tokenizer))
        return task, task.encode(rows or splits(case))

    return encoded_task
