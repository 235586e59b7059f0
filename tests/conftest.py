"""The suite needs no network, and must not find one: loading a local file is nobody's business."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a core for each worker; before torch is imported

import random

import pytest

SUBJECTS = ["the cat", "a small dog", "the old fox", "my neighbour", "the quiet reader"]
VERBS = ["watches", "follows", "never forgets", "draws"]
OBJECTS = ["the river", "a red house", "his own shadow", "the last train", "every second word"]


@pytest.fixture(scope="session")
def texts():
    """Texts of one to six sentences with some order in them, all different."""
    choose = random.Random(0)

    def sentence():
        return f"{choose.choice(SUBJECTS)} {choose.choice(VERBS)} {choose.choice(OBJECTS)}."

    return [f"{number}: " + " ".join(sentence() for _ in range(choose.randint(1, 6))) for number in range(200)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    """Of 300 tokens. Whoever changes it takes a copy."""
    from hf_tfenc.tokenization import train_tokenizer

    return train_tokenizer(texts, 300, model_max_length=64)
