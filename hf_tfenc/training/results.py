"""What stands in an output folder when a run has ended, and on the screen."""

import json
import platform
import shlex
from datetime import date
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from ..data.collators import numpy_column
from ..data.stdlib_corpus import corpus_info
from ..publish.card import data_card, test_name, write_card
from ..publish.plots import PLOTS, QUOTING, plot_loss
from ..publish.sentence_transformers import write_modules
from ..tasks import TASKS, Measurement, Task
from ..tasks.task import own_text
from .arguments import Arguments
from .checkpointing import write_text
from .monitor import LOG_FILE, clock
from .reading import Data
from .resume import METRICS_FILE


def finish(
    args: Arguments,
    data: Data,
    model: PreTrainedModel,
    measured: Measurement,
    metrics: dict[str, Any],
    folder: Path,
    tokens: int,
) -> None:
    """Write metrics, pictures, card, and what sentence-transformers reads.

    Args:
        measured: of the evaluation rows, by the finished model
        metrics: so far; the rest is added
        tokens: that the run has read of its stream, where it has one
    """
    task, evaluation = data.task, data.rows["validation"]
    metrics |= task.baselines(data.rows["train"], evaluation)
    if args.train_file is None and args.dataset_name is None:
        texts = {split: Dataset.from_dict({"text": [*task.texts(rows[:])]}) for split, rows in data.splits.items()}
        # It differs a little from one Python version to the next.
        metrics["corpus"] = corpus_info(DatasetDict(texts))
    counts = split_counts(data, tokens)
    metrics |= {"parameters": model.num_parameters(), "train_tokens": counts["train"]["tokens"], "data": counts}
    metrics |= {"hf_tfenc_task": args.task, "python_version": platform.python_version()}
    model.eval()
    quoted = args.quote_examples
    metrics["summary"], metrics["examples"] = task.summary(metrics), task.examples(model, evaluation) if quoted else []
    metrics |= {"widget": task.widget(evaluation) if quoted else [], "data_card": data_card(args)}
    metrics["date"] = str(date.today())
    plot_loss(folder / LOG_FILE, metrics["baseline_loss"], folder / "loss.png")
    picture = task.picture(model, evaluation, measured)
    if picture and (quoted or picture.kind not in QUOTING):
        PLOTS[picture.kind](picture.names, picture.numbers, folder / f"{picture.kind}.png")
    write_modules(model, folder)
    write_card(folder, args, model.config, metrics)
    write_text(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")  # last: it says that the run is finished


def split_counts(data: Data, streamed_tokens: int) -> dict[str, dict[str, int | None]]:
    """Rows of the source, encoded sequences and their tokens in each split; of a stream the tokens that were read."""
    counts: dict[str, dict[str, int | None]] = {
        name: {
            "rows": len(data.splits[name]),
            "sequences": len(encoded),
            "tokens": int(numpy_column(encoded, "length").sum()),
        }
        for name, encoded in data.rows.items()
    }
    if data.stream is not None:
        counts["train"] = {"rows": None, "sequences": None, "tokens": streamed_tokens}
    return counts


def result_text(metrics: dict[str, Any], folder: Path) -> str:
    """What a run learned, where it lies, and what to do next."""
    kind = TASKS[metrics["hf_tfenc_task"]]
    program = "; ".join(
        [
            "import hf_tfenc",
            "from transformers import pipeline",
            *kind.usage(str(folder), own_text(metrics)).splitlines(),
        ]
    )
    return "\n".join(
        [
            *metrics["examples"],
            "",
            metrics["summary"],
            *test_lines(kind, metrics),
            f"trained in {clock(metrics['train_runtime'])} ({metrics['train_tokens_per_second']:,.0f} tokens/s)",
            "",
            f"The model is in {folder}: weights, tokenizer, code, card, metrics.json, log.jsonl, loss.png. Next:",
            f"  python -c {shlex.quote(program)}",
            f"  hf-tfenc demo {shlex.quote(str(folder))}",
            *(f"  {command}" for command in kind.next_steps(str(folder), built_in="corpus" in metrics)),
        ]
    )


def test_lines(kind: type[Task], metrics: dict[str, Any]) -> list[str]:
    """The metrics on the test split in a line, where there is one."""
    names = {test_name(name): what for name, what in kind.reported.items()}
    scores = [f"{what} {metrics[name]:.3f}" for name, what in names.items() if name in metrics]
    return ["test split: " + " · ".join(scores)] * bool(scores)
