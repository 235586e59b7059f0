"""Scores of small encoders on the test splits of public data sets, beside models that are trained in a moment.

    python benchmarks/tasks.py --data FOLDER --output benchmarks/results/tasks_cpu.md

The folder holds one folder for each data set, laid out as on the Hub. Each is learned by train.py, a process of its own,
from `modern-tiny` without pre-training, or from `--model`. The validation split, or what train.py holds out where there
is none, chooses the best model; the test split is measured once, at the end. The baselines are scikit-learn's, trained
on the same training rows and measured on the same test rows.
"""

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import sklearn
import torch
import transformers
from datasets import DatasetDict
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer

from hf_tfenc.data.sources import load_splits
from hf_tfenc.tasks import TASKS
from hf_tfenc.tasks.embedding import questions
from hf_tfenc.tasks.entities import are_bio, entity_scores
from hf_tfenc.tasks.retrieval import rank
from hf_tfenc.tasks.scores import class_scores, multi_label_scores, number_scores
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.run import source_of

TRAIN = Path(__file__).parents[1] / "train.py"
Scores = dict[str, float]

# --- Baselines: from the splits that train.py sees to scores on the test split ---------------------------------------


def tf_idf() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)


def linear(splits: DatasetDict) -> Scores:
    """TF-IDF and logistic regression, one label a text."""
    vectors = tf_idf()
    model = LogisticRegression(C=10, max_iter=1000).fit(
        vectors.fit_transform(splits["train"]["text"][:]), splits["train"]["label"][:]
    )
    number = {name: place for place, name in enumerate(model.classes_)}
    said, right = model.predict(vectors.transform(splits["test"]["text"][:])), splits["test"]["label"][:]
    labels = (np.array([number[name] for name in names]) for names in (right, said))
    return class_scores(*labels, classes=len(number))


def linear_for_each_label(splits: DatasetDict) -> Scores:
    """TF-IDF and a logistic regression for each label."""
    vectors, labels = tf_idf(), MultiLabelBinarizer()
    right = labels.fit_transform(splits["train"]["label"][:])
    model = OneVsRestClassifier(LogisticRegression(C=10, max_iter=1000, solver="liblinear"))
    model.fit(vectors.fit_transform(splits["train"]["text"][:]), right)
    said = model.predict(vectors.transform(splits["test"]["text"][:]))
    return multi_label_scores(labels.transform(splits["test"]["label"][:]), said)


def ridge(splits: DatasetDict) -> Scores:
    """Ridge regression on what two TF-IDF vectors share, where they differ, and their cosine."""
    vectors = tf_idf().fit([*splits["train"]["text"][:], *splits["train"]["text_pair"][:]])

    def features(split: str) -> scipy.sparse.csr_matrix:
        first, second = (vectors.transform(splits[split][name][:]) for name in ("text", "text_pair"))
        shared = first.multiply(second)
        return scipy.sparse.hstack([shared, abs(first - second), 10 * shared.sum(axis=1)]).tocsr()

    model = Ridge(alpha=1.0).fit(features("train"), splits["train"]["label"][:])
    return number_scores(np.array(splits["test"]["label"][:]), model.predict(features("test")))


def commonest_tag(splits: DatasetDict) -> Scores:
    """Each word's commonest tag, and the commonest of all for other words."""
    seen: dict[str, Counter] = defaultdict(Counter)
    for row in splits["train"]:
        for word, tag in zip(row["words"], row["tags"], strict=True):
            seen[word][tag] += 1
    of_all = sum(seen.values(), Counter())
    fallback = of_all.most_common(1)[0][0]
    said = [
        [seen[word].most_common(1)[0][0] if word in seen else fallback for word in row["words"]]
        for row in splits["test"]
    ]
    right = splits["test"]["tags"][:]
    pairs = [pair for tags in zip(right, said, strict=True) for pair in zip(*tags, strict=True)]
    scores = {"accuracy": sum(a == b for a, b in pairs) / len(pairs)}
    return scores | (entity_scores(right, said) if are_bio(list(of_all)) else {})


def tf_idf_retrieval(splits: DatasetDict) -> Scores:
    """The nearest text by the cosine of TF-IDF vectors."""
    vectors = tf_idf().fit([*splits["train"]["anchor"][:], *splits["train"]["positive"][:]])
    texts = np.array([splits["test"]["anchor"][:], splits["test"]["positive"][:]], dtype=object).T
    numbers = {text: place for place, text in enumerate(dict.fromkeys(texts.ravel()))}
    anchors, candidates, relevant = questions(np.vectorize(numbers.get)(texts))
    asked, found = (vectors.transform(texts.ravel()[places]) for places in (anchors, candidates))
    return rank(lambda part: (asked[part] @ found.T).toarray(), relevant, temperature=1.0).scores()


# --- Data sets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One data set: how it is learned, what is shown, and what it stands beside."""

    options: dict[str, Any]  # of train.py
    shown: tuple[str, ...]  # the metrics
    baseline: Callable[[DatasetDict], Scores]
    prepare: Callable[[Path, Path], dict[str, str]] = lambda data, _: {"dataset_name": str(data)}


def by_passage(data: Path, made: Path) -> dict[str, str]:
    """Questions and their passages, no passage in two splits: a hash says which one it is in."""
    rows = pd.read_parquet(data / "en" / "validation.parquet")[["question", "context"]]
    drawn = rows["context"].map(lambda text: hashlib.sha256(text.encode()).digest()[0] % 10)
    splits = {"train": drawn < 6, "validation": drawn == 6, "test": drawn > 6}
    for split, chosen in splits.items():
        rows[chosen].to_parquet(made / f"xquad_{split}.parquet")
    return {f"{split}_file": str(made / f"xquad_{split}.parquet") for split in splits}


CLASSIFICATION: dict[str, Any] = {"task": "sequence-classification", "per_device_train_batch_size": 32}
TAGGING: dict[str, Any] = {"task": "token-classification"}
JOBS = {
    "ud_en_ewt": Job(TAGGING | {"label_column": "upos", "num_train_epochs": 3}, ("accuracy",), commonest_tag),
    "banking77": Job(CLASSIFICATION | {"num_train_epochs": 10}, ("accuracy", "macro_f1"), linear),
    "mr": Job(CLASSIFICATION | {"num_train_epochs": 3}, ("accuracy",), linear),
    "wnut17": Job(TAGGING | {"num_train_epochs": 5}, ("f1", "accuracy"), commonest_tag),
    "stsb_en": Job(CLASSIFICATION | {"num_train_epochs": 4}, ("pearson", "spearman"), ridge),
    "xquad": Job(
        {"task": "embedding", "num_train_epochs": 8, "per_device_train_batch_size": 32, "max_seq_length": 256},
        ("accuracy", "mrr"),
        tf_idf_retrieval,
        by_passage,
    ),
    "go_emotions": Job(
        CLASSIFICATION | {"label_column": "labels_text", "num_train_epochs": 3},
        ("micro_f1", "macro_f1"),
        linear_for_each_label,
    ),
}


def learned(options: dict[str, Any], seed: int, folder: Path) -> Scores:
    """The metrics of a run of train.py."""
    options = options | {"seed": seed, "output_dir": folder}
    command = [sys.executable, str(TRAIN), *(f"--{name}={value}" for name, value in options.items())]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def measured(name: str, data: Path, common: dict[str, Any], seeds: int, made: Path) -> list[str]:
    """The lines of the table for one data set."""
    job = JOBS[name]
    options = common | job.options | job.prepare(data, made)
    args = Arguments(**{k: [v] if k.endswith("_file") else v for k, v in options.items()})
    splits = load_splits(source_of(args), TASKS[args.task].columns(args))
    started = time.monotonic()
    baseline = job.baseline(splits)
    baseline_seconds = time.monotonic() - started
    runs = [learned(options, seed, made / f"{name}-{seed}") for seed in range(1, seeds + 1)]
    seconds = statistics.mean(run["train_runtime"] for run in runs)
    kind = " ".join(str(job.baseline.__doc__).split()).rstrip(".")
    lines = []
    for metric in job.shown:
        scores = [run[f"test_{metric}"] for run in runs]
        score = f"{statistics.mean(scores):.3f}" + (f" ± {statistics.stdev(scores):.3f}" if seeds > 1 else "")
        lines.append(
            f"| {name} | {metric} | {score} | {baseline[metric]:.3f} | {args.num_train_epochs} | {seconds:.0f} s | "
            f"{kind} ({baseline_seconds:.0f} s) |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets' folders")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--model", help="start from this pre-trained folder and not from modern-tiny")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    options = parser.parse_args()
    common = {"cpu_threads": options.threads, "bf16": options.bf16}
    common |= {"model_name_or_path": options.model} if options.model else {"preset": "modern-tiny"}

    lines = [
        "| data set | metric | hf_tfenc | baseline | epochs | training | baseline (its time) |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as made:
        for name in options.jobs:
            found = measured(name, options.data / name, common, options.seeds, Path(made))
            lines += found
            print("\n".join(found), flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {options.threads} thread(s)"
    machine = (
        f"{device}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, scikit-learn {sklearn.__version__}; "
        f"{options.seeds} seed(s), from {Path(options.model).name if options.model else 'modern-tiny, no pre-training'}."
    )
    print(machine)
    if options.output:
        rest = f"--threads {options.threads} --seeds {options.seeds} --jobs {' '.join(options.jobs)}"
        command = f"    python benchmarks/tasks.py --data FOLDER {rest} --output {options.output}"
        text = "\n".join(lines)
        options.output.write_text(f"# {__doc__}\n{text}\n\n{machine}\n\n{command}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
