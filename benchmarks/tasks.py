"""Scores of encoders on the test splits of public data sets, beside models that are trained in a moment.

    python benchmarks/tasks.py --data FOLDER --output benchmarks/results/tasks_cpu.md
    python benchmarks/tasks.py --data FOLDER --model outputs/mlm --articles FOLDER/pretrain_en/train-*.parquet \\
        --bf16 --seeds 3 --processes 10 --scores scores.jsonl --output benchmarks/results/tasks_h100.md

The folder holds one folder for each data set, laid out as on the Hub. Each is learned by train.py, a process of its own,
from `modern-tiny` without pre-training, or from `--model`. The validation split, or what train.py holds out where there
is none, chooses the best model; the test split is measured once, at the end. The baselines are scikit-learn's, trained
on the same training rows and measured on the same test rows.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
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
from hf_tfenc.training.arguments import parse_arguments
from hf_tfenc.training.reading import source_of

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
    one, other, score = splits["train"].column_names
    vectors = tf_idf().fit([*splits["train"][one][:], *splits["train"][other][:]])

    def features(split: str) -> scipy.sparse.csr_matrix:
        first, second = (vectors.transform(splits[split][name][:]) for name in (one, other))
        shared = first.multiply(second)
        return scipy.sparse.hstack([shared, abs(first - second), 10 * shared.sum(axis=1)]).tocsr()

    model = Ridge(alpha=1.0).fit(features("train"), splits["train"][score][:])
    return number_scores(np.array(splits["test"][score][:]), model.predict(features("test")))


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
    anchors, candidates, relevant, ignored = questions(np.vectorize(numbers.get)(texts))
    asked, found = (vectors.transform(texts.ravel()[places]) for places in (anchors, candidates))
    return rank(lambda part: (asked[part] @ found.T).toarray(), relevant, ignored, temperature=1.0).scores()


# --- Data sets -------------------------------------------------------------------------------------------------------

OWN_ROWS = 8  # times that each question of XQuAD stands among the pairs
PASSAGE_WORDS, SENTENCE_WORDS = range(40, 161), range(6, 31)
LEFT_OUT = 1 / 3  # of a sentence's words
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def by_passage(data: Path, made: Path, articles: list[Path], pairs: int) -> dict[str, str]:
    """Questions and their passages, no passage in two splits: a hash says which one it is in.

    With `articles`, each row has a hard negative, and so many pairs from these articles are learned too.
    """
    rows = pd.read_parquet(data / "en" / "validation.parquet")[["title", "question", "context"]]
    drawn = rows["context"].map(lambda text: hashlib.sha256(text.encode()).digest()[0] % 10)
    files = {}
    for split, chosen in {"train": drawn < 6, "validation": drawn == 6, "test": drawn > 6}.items():
        part = rows[chosen].rename(columns={"question": "anchor", "context": "positive"})
        if articles:
            part["negative"] = [
                other_passage(part, *row) for row in part[["title", "positive"]].itertuples(index=False)
            ]
            if split == "train":
                part = pd.concat([*[part] * OWN_ROWS, pd.DataFrame(pairs_of(articles)[:pairs])])
        files[f"{split}_file"] = str(made / f"xquad_{split}.parquet")
        part.drop(columns="title", errors="ignore").to_parquet(files[f"{split}_file"], index=False)
    return files


def other_passage(rows: pd.DataFrame, title: str, passage: str) -> str:
    """A passage of the same article, or of another where there is none."""
    others = rows[rows["positive"] != passage]
    of_article = others[others["title"] == title]["positive"]
    return (of_article if len(of_article) else others["positive"]).iloc[0]


def pairs_of(articles: list[Path]) -> list[dict[str, str]]:
    """A sentence without a third of its words, its paragraph, and another paragraph of the same article.

    It is taken out of every second paragraph (the inverse cloze task: Lee et al. 2019), so that both the same words and
    the same subject are learned.
    """
    draw, pairs = random.Random(0), []
    for path in articles:
        rows = pd.read_parquet(path, columns=["source", "text"])
        for text in rows[rows["source"] == "wikipedia"]["text"]:
            passages = [line for line in text.split("\n") if len(line.split()) in PASSAGE_WORDS]
            for passage in passages if len(set(passages)) > 1 else []:
                sentences = [s for s in SENTENCE_END.split(passage) if len(s.split()) in SENTENCE_WORDS]
                if len(sentences) > 1:
                    sentence = draw.choice(sentences)
                    anchor = " ".join(word for word in sentence.split() if draw.random() > LEFT_OUT)
                    positive = passage.replace(sentence, "") if len(pairs) % 2 else passage
                    negative = draw.choice([other for other in passages if other != passage])
                    pairs.append({"anchor": anchor, "positive": positive, "negative": negative})
    draw.shuffle(pairs)
    return [pair for pair in pairs if pair["anchor"]]


def as_it_is(data: Path, made: Path, articles: list[Path], pairs: int) -> dict[str, str]:
    """A folder that is read as it is."""
    return {"dataset_name": str(data)}


@dataclass(frozen=True)
class Job:
    """One data set: how it is learned, what is shown, and what it stands beside."""

    data: str  # its folder
    options: dict[str, Any]  # of train.py, for a small model without pre-training
    pretrained: dict[str, Any]  # over these and `FINE_TUNING`, for a pre-trained one
    shown: tuple[str, ...]  # the metrics
    baseline: Callable[[DatasetDict], Scores]
    prepare: Callable[[Path, Path, list[Path], int], dict[str, str]] = as_it_is


FINE_TUNING: dict[str, Any] = {
    "optim": "adamw",
    "learning_rate": 1.5e-4,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 32,
    "config_overrides": '{"pooling": "mean", "attention_dropout": 0.0}',
    "save_steps": 1_000_000,  # a checkpoint at the end alone
}
CLASSIFICATION: dict[str, Any] = {"task": "sequence-classification", "per_device_train_batch_size": 32}
EMBEDDING: dict[str, Any] = {"task": "embedding", "per_device_train_batch_size": 32}
TAGGING: dict[str, Any] = {"task": "token-classification"}
# The longest first, so that of runs side by side none is left alone at the end.
JOBS = {
    "xquad": Job(
        "xquad",
        EMBEDDING | {"num_train_epochs": 8, "max_seq_length": 256},
        # Gradients are cached: a loss over 128 rows at the memory of 32.
        {
            "num_train_epochs": 1,
            "gradient_accumulation_steps": 4,
            "eval_steps": 100,
            "attn_implementation": "varlen",
        },
        ("accuracy", "mrr"),
        tf_idf_retrieval,
        by_passage,
    ),
    "banking77": Job(
        "banking77",
        CLASSIFICATION | {"num_train_epochs": 10},
        {"num_train_epochs": 5},
        ("accuracy", "macro_f1"),
        linear,
    ),
    "go_emotions": Job(
        "go_emotions",
        CLASSIFICATION | {"label_column": "labels_text", "num_train_epochs": 3},
        {"per_device_train_batch_size": 128, "num_train_epochs": 4},
        ("micro_f1", "macro_f1"),
        linear_for_each_label,
    ),
    "stsb_en": Job(
        "stsb_en",
        CLASSIFICATION | {"num_train_epochs": 4},
        {"num_train_epochs": 10},
        ("pearson", "spearman"),
        ridge,
    ),
    "stsb_en_cosine": Job(
        "stsb_en",
        EMBEDDING | {"num_train_epochs": 4, "config_overrides": '{"pooling": "mean"}'},
        {"num_train_epochs": 3},
        ("pearson", "spearman"),
        ridge,
    ),
    "wnut17": Job(
        "wnut17", TAGGING | {"num_train_epochs": 5}, {"num_train_epochs": 6}, ("f1", "accuracy"), commonest_tag
    ),
    "mr": Job("mr", CLASSIFICATION | {"num_train_epochs": 3}, {}, ("accuracy",), linear),
    "ud_en_ewt": Job(
        "ud_en_ewt",
        TAGGING | {"label_column": "upos", "num_train_epochs": 3},
        {"num_train_epochs": 2},
        ("accuracy",),
        commonest_tag,
    ),
}


# --- Measuring -------------------------------------------------------------------------------------------------------


class Records:
    """What was measured, in a file too if one is given, a line of JSON each: what it holds is not measured again."""

    def __init__(self, path: Path | None):
        self.path, self.adding = path, threading.Lock()
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self.records = [json.loads(line) for line in lines]

    def once(self, key: dict[str, Any], measure: Callable[[], Scores]) -> dict[str, Any]:
        """The record with this key, its `scores` measured in so many `seconds`, now or before."""
        for record in self.records:
            if record["key"] == key:
                return record
        started = time.monotonic()
        record = {"key": key, "scores": measure(), "seconds": round(time.monotonic() - started, 1)}
        with self.adding:
            self.records.append(record)
            print(json.dumps(record), flush=True)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
        return record


def flags(options: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def baseline(job: Job, options: dict[str, Any]) -> Scores:
    """The scores of a job's baseline on the rows that train.py has with these options."""
    args = parse_arguments(flags(options))
    return job.baseline(load_splits(source_of(args), TASKS[args.task].columns(args)))


def learned(options: dict[str, Any], made: Path) -> Scores:
    """The metrics of a run of train.py on the test split, and its `train_runtime`."""
    with tempfile.TemporaryDirectory(dir=made) as folder:  # removed at once, for a checkpoint may have gigabytes
        command = [sys.executable, str(TRAIN), *flags(options | {"output_dir": folder})]
        environment = os.environ | {"OMP_NUM_THREADS": str(options["cpu_threads"])}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
        metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    return {name: value for name, value in metrics.items() if name.startswith("test_") or name == "train_runtime"}


class Measurement:
    """What is there of one job so far.

    Args:
        options: of train.py
        sources: the same for its data, without pairs of articles and, where there are some, with them
        pairs: how many of these there are at most
    """

    def __init__(
        self, name: str, options: dict[str, Any], sources: list[dict[str, str]], pairs: int, records: Records
    ):
        self.name, self.job, self.options, self.sources, self.records = name, JOBS[name], options, sources, records
        self.pairs = [0, pairs][: len(sources)]
        self.baselines: list[dict[str, Any]] = []
        self.runs: list[Scores] = []

    def compare(self, over: dict[str, str]) -> None:
        """Measure the baselines; `over` are the options that change the rows."""
        for source, pairs in zip(self.sources, self.pairs, strict=True):
            key = {"job": self.name, "baseline": True, "pairs": pairs, **over}
            found = self.records.once(key, partial(baseline, self.job, self.options | source))
            self.baselines.append(found)

    def learn(self, seed: int, made: Path) -> None:
        """Measure what one seed learns."""
        options = self.options | {"seed": seed}
        key = {"job": self.name, "pairs": self.pairs[-1], **options}
        self.runs.append(self.records.once(key, partial(learned, options | self.sources[-1], made))["scores"])

    def lines(self) -> Iterator[str]:
        """The lines of the table."""
        kind = " ".join(str(self.job.baseline.__doc__).split()).rstrip(".")
        beside_seconds = " / ".join(f"{record['seconds']:.0f} s" for record in self.baselines)
        seconds = f"{statistics.mean(run['train_runtime'] for run in self.runs):.0f} s" if self.runs else ""
        for metric in self.job.shown:
            scores = [run[f"test_{metric}"] for run in self.runs]
            score = f"{statistics.mean(scores):.3f}" if scores else ""
            score += f" ± {statistics.stdev(scores):.3f} ({len(scores)} seeds)" if len(scores) > 1 else ""
            beside = " / ".join(f"{record['scores'][metric]:.3f}" for record in self.baselines)
            yield (
                f"| {self.name} | {metric} | {score} | {beside} | {self.options['num_train_epochs']} | {seconds} | "
                f"{kind} ({beside_seconds}) |"
            )


def page(asked: argparse.Namespace, measured: list[Measurement]) -> str:
    """The table and what made it, as Markdown."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {asked.threads} thread(s)"
    start = asked.model.name if asked.model else "modern-tiny, no pre-training"
    paragraphs = [
        f"# {str(__doc__).rstrip()}",
        "\n".join(
            [
                "| data set | metric | hf_tfenc | baseline | epochs | training | baseline (its time) |",
                "|---|---|---|---|---|---|---|",
                *(line for measurement in measured for line in measurement.lines()),
            ]
        ),
        f"{device}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, scikit-learn {sklearn.__version__}; "
        f"from {start}. Scores are the mean over the seeds ± their standard deviation.",
    ]
    if asked.model:
        changes = " ".join(f"{name}={value}" for name, value in FINE_TUNING.items())
        paragraphs.append(f"Fine-tuned with {changes}, where the script says nothing else of a data set.")
    if asked.processes > 1:
        paragraphs.append(f"Times are those of {asked.processes} runs side by side, which slow each other down.")
    if asked.articles:
        paragraphs.append(
            f"`xquad` learned {OWN_ROWS} times its own rows and at most {asked.pairs:,} pairs made from other articles. Of its "
            "baselines the first has counted words in its own rows, the second in all that the encoder learned from."
        )
    return "\n\n".join(paragraphs) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets' folders")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--model", type=Path, help="start from this pre-trained folder and not from modern-tiny")
    parser.add_argument(
        "--articles", nargs="+", type=Path, default=[], help="parquet files: xquad takes pairs from them"
    )
    parser.add_argument("--pairs", type=int, default=32_000, help="how many at most")
    parser.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE", help="of train.py, over a job's own")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each of them")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--scores", type=Path, help="add each score to this file, and measure none that it holds")
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    asked = parser.parse_args()
    for path in (
        *filter(None, [asked.model]),
        *asked.articles,
        *(asked.data / JOBS[name].data for name in asked.jobs),
    ):
        if not path.exists():
            parser.error(f"there is no {path}")
    datasets.disable_progress_bars()
    over = dict(option.split("=", 1) for option in asked.options)
    common = {"cpu_threads": asked.threads, "bf16": asked.bf16}
    common |= {"model_name_or_path": str(asked.model)} if asked.model else {"preset": "modern-tiny"}

    records, measured, failed = Records(asked.scores), [], False
    with (
        tempfile.TemporaryDirectory() as made,
        ThreadPoolExecutor(asked.processes) as pool,
        ThreadPoolExecutor(1) as beside,
    ):
        for name in asked.jobs:
            job, sources = JOBS[name], []
            for articles in [[], asked.articles] if asked.articles and job.prepare is not as_it_is else [[]]:
                folder = Path(made) / f"{name}-{len(sources)}"
                folder.mkdir()
                sources.append(job.prepare(asked.data / job.data, folder, articles, asked.pairs))
            options = common | job.options | (FINE_TUNING | job.pretrained if asked.model else {}) | over
            measured.append(Measurement(name, options, sources, asked.pairs, records))
        # A run that has the machine to itself, for its time, waits for the baselines.
        aside = beside if asked.processes > 1 else pool
        work = {aside.submit(one.compare, over): one.name for one in measured}
        for seed in range(1, asked.seeds + 1):  # all jobs, before any has another seed
            work |= {pool.submit(one.learn, seed, Path(made)): one.name for one in measured}
        for done in as_completed(work):
            if error := done.exception():  # the others go on
                failed = True
                print(f"{work[done]}: {error!r}", file=sys.stderr, flush=True)
            elif asked.output:
                asked.output.write_text(page(asked, measured), encoding="utf-8")
    print(page(asked, measured))
    sys.exit(failed)


if __name__ == "__main__":
    main()
