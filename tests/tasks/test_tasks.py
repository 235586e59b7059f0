"""What holds for every task."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from cases import CASES, SIZES, TASK_OF, batch_of, evaluate, make_model, measured
from transformers import Trainer, TrainingArguments, pipeline

from hf_tfenc.data.collators import EncodedRows
from hf_tfenc.evaluate import main
from hf_tfenc.tasks import TASKS, Task, join
from hf_tfenc.tasks.task import own_text
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.evaluation import DIGITS
from hf_tfenc.training.run import run
from hf_tfenc.training.trainer import training_step

each = pytest.mark.parametrize("case", CASES)
PAIRS = ("pairs", "triplets", "scored")


def about(value):
    """The same number, or list of them, but for what the last bits of float32 do to a last digit."""
    if isinstance(value, list):
        return [about(part) for part in value]
    return pytest.approx(value, rel=2e-4, abs=3e-5) if isinstance(value, float) else value


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def gradients(accelerator, task, model, batches):
    """The loss of a step, its items, and the gradient of each weight."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    step = training_step(accelerator, model, optimizer, batches, task)
    return step.loss.item(), step.items.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_the_table_names_tasks_of_one_shape():
    assert set(TASKS) == {"mlm", "causal-lm", "sequence-classification", "token-classification", "embedding"}
    for kind in TASKS.values():
        assert issubclass(kind, Task) and not kind.__abstractmethods__
        assert not set(kind.reported) & set(kind.counted)


@each
def test_columns_are_those_of_the_rows(case, splits):
    name = TASK_OF.get(case, case)
    options = {} if name in ("mlm", "causal-lm") else {"label_column": "mine"}
    columns = {c.name: c for c in TASKS[name].columns(Arguments(task=name, text_column="body", **options))}
    assert set(splits(case)["train"].column_names) <= set(columns)
    assert all(column.option.startswith("--") for column in columns.values())
    given = {column.given for column in columns.values()}
    assert given == {"body", None, *options.values()} - ({None} if len(columns) == len(given - {None}) else set())
    assert all(TASKS[name].texts(splits(case)["train"][:3]))


@each
@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (64, 1), (5, 3)])
def test_metrics_do_not_depend_on_batches(case, encoded_task, batch_size, processes):
    task, rows = encoded_task(case)
    model = make_model(task)

    def digits(**split):
        metrics = evaluate(task, model, rows["validation"], **split)
        return {name: f"{value:.{DIGITS - 1}g}" for name, value in metrics.items()}

    expected = digits(batch_size=8)
    assert digits(batch_size=batch_size, processes=processes) == expected and "eval_loss" in expected


@each
@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (5, 3)])
def test_predictions_are_of_each_row_in_its_order(case, splits, encoded_task, batch_size, processes):
    task, rows = encoded_task(case)
    model, source = make_model(task), splits(case)["validation"]
    assert case in ("single", "multi", "regression", *PAIRS) or len(rows["validation"]) > len(source)  # windows

    def records(**split):
        return list(task.predictions(measured(task, model, rows["validation"], **split), source, rows["validation"]))

    expected, found = records(batch_size=8), records(batch_size=batch_size, processes=processes)
    assert [record["row"] for record in found] == list(range(1, len(source) + 1))
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and all(value == about(other[name]) for name, value in one.items())
    assert json.loads(json.dumps(found)) == found


@each
def test_predictions_are_those_that_were_measured(case, splits, encoded_task):
    task, rows = encoded_task(case)
    model, source, rows = make_model(task), splits(case)["validation"], rows["validation"]
    found = measured(task, model, rows)
    metrics, records = task.metrics(found), list(task.predictions(found, source, rows))
    score = {
        "single": lambda r: [record["label"] == record["right"] for record in r],
        "multi": lambda r: [record["labels"] == record["right"] for record in r],
        "tagging": lambda r: [a == b for record in r for a, b in zip(record["tags"], record["right"], strict=True)],
        "pairs": lambda r: [record["rank"] == 1 for record in r],
    }
    score |= {"bio": score["tagging"], "triplets": score["pairs"]}
    if case in score:
        assert sum(score[case](records)) / len(score[case](records)) == pytest.approx(metrics["eval_accuracy"])
    elif case in ("regression", "scored"):
        said, right = ("value", "right") if case == "regression" else ("similarity", "score")
        errors = [(record[said] - record[right]) ** 2 for record in records]
        assert sum(errors) / len(errors) == pytest.approx(metrics["eval_loss"], rel=1e-3)
    else:
        losses = [(record["loss"] or 0) * record["tokens"] for record in records]
        tokens = sum(record["tokens"] for record in records)
        assert sum(losses) / tokens == pytest.approx(metrics["eval_loss"], rel=1e-3)
    inputs = {"single": "label", "multi": "label", "tagging": "tags", "bio": "tags"}
    if case in inputs:
        assert [record["right"] for record in records] == source[inputs[case]][:]


@each
def test_reported_metrics_are_there(case, encoded_task):
    task, rows = encoded_task(case)
    metrics = evaluate(task, make_model(task), rows["validation"])
    counted = task.baselines(rows["train"], rows["validation"])
    assert set(metrics) <= set(task.reported) and set(counted) <= set(task.counted) and counted
    assert task.baseline_loss(rows["train"], rows["validation"]) > 0
    summary = task.summary(metrics | counted)
    assert all(f"{metrics[name]:.3f}" in summary for name in ("eval_loss", "eval_accuracy") if name in metrics)


@each
def test_a_step_is_the_same_however_it_is_split(case, encoded_task, accelerator):
    task, rows = encoded_task(case)
    model = make_model(task, embedding_dropout=0.0).train()
    whole = gradients(accelerator, task, model, [batch_of(task, rows["train"], range(8))])
    for size in (1, 2, 4):
        parts = [batch_of(task, rows["train"], range(start, start + size)) for start in range(0, 8, size)]
        loss, items, found = gradients(accelerator, task, model, [*parts, task.collator(training=True)([])])
        assert loss == pytest.approx(whole[0], rel=1e-5) and items == whole[1]
        for one, other in zip(found, whole[2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(g.abs().max() for g in whole[2]))


@each
def test_an_empty_bin_teaches_nothing(case, encoded_task, accelerator):
    task, _ = encoded_task(case)
    model = make_model(task).train()
    loss, items, found = gradients(accelerator, task, model, [task.collator(training=True)([])])
    assert loss == items == 0 and all((gradient == 0).all() for gradient in found)


@each
def test_examples_can_be_read(case, encoded_task):
    task, rows = encoded_task(case, max_seq_length=64)
    model = make_model(task)
    examples = task.examples(model, rows["validation"], count=3)
    assert len(examples) == 3 and examples == task.examples(model, rows["validation"], count=3)
    assert all(example.strip() and "[PAD]" not in example for example in examples)


@each
def test_transformers_trainer_trains_the_head(case, encoded_task, tmp_path):
    task, rows = encoded_task(case)
    model, collate = make_model(task), task.collator(training=True)
    train = EncodedRows(rows["train"]).__getitems__([(0, row) for row in range(64)])
    arguments = TrainingArguments(
        str(tmp_path), max_steps=30, per_device_train_batch_size=8, learning_rate=3e-3, use_cpu=True, report_to="none",
        logging_steps=10, save_strategy="no", remove_unused_columns=False, disable_tqdm=True, seed=0,
    )  # fmt: skip

    class Contrastive(Trainer):  # `AutoModel` has no loss of its own
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if task.scored:
                return task.score_errors(model, inputs).square().mean()
            return task.contrastive_loss(task.embed(model, inputs), inputs["keys"], inputs["real"])

    kind = Contrastive if TASK_OF.get(case) == "embedding" else Trainer
    trainer = kind(model, arguments, train_dataset=train, data_collator=collate)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0]


PIPELINES = {
    "mlm": lambda pipe: pipe("the cat [MASK] the river.")[0]["token_str"],
    "causal-lm": lambda pipe: pipe("the cat", max_new_tokens=4)[0]["generated_text"].removeprefix("the cat"),
    "single": lambda pipe: {pipe("the cat")[0]["label"]} & {"cat", "dog", "none"},
    "multi": lambda pipe: {answer["label"] for answer in pipe("the cat", top_k=None)} == {"cat", "dog", "fox"},
    "regression": lambda pipe: pipe("the cat")[0]["label"] == "score",
    "bio": lambda pipe: (
        {answer["entity"] for answer in pipe("the cat", ignore_labels=[])} <= {"O", "B-animal", "I-animal"}
    ),
    "pairs": lambda pipe: torch.tensor(pipe("the cat")).shape[-1] == SIZES["hidden_size"],
    "scored": lambda pipe: torch.tensor(pipe("the cat")).shape[-1] == SIZES["hidden_size"],
}


QUICK = ("causal-lm", "single", "bio", "pairs")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in PIPELINES]
)
def test_a_run_leaves_a_folder_that_a_pipeline_serves(case, splits, tmp_path, capsys, accelerator):
    files = {}
    rows_of_splits = splits(case) | {"test": splits(case)["validation"].select(range(7, 30))}
    for split, rows in rows_of_splits.items():
        files[f"{split}_file"] = [str(tmp_path / f"{split}.parquet")]
        rows.to_parquet(files[f"{split}_file"][0])
    name = TASK_OF.get(case, case)
    args = Arguments(
        task=name, output_dir=str(tmp_path / "out"), config_overrides=json.dumps(SIZES), vocab_size=300, max_steps=3,
        max_seq_length=32, cpu_threads=1, learning_rate=0.001, **files,
    )  # fmt: skip
    metrics = run(args)
    folder = Path(args.output_dir)
    kind = TASKS[name]
    assert (
        "eval_loss" in metrics
        and set(kind.counted) & set(metrics)
        and json.loads((folder / "metrics.json").read_text()) == metrics
    )
    card = (folder / "README.md").read_text()
    assert f"pipeline_tag: {kind.pipeline_tag}" in card and "{{" not in card
    text = own_text(metrics)  # in the user's own language
    assert text == metrics["widget"][0]["text"] and kind.usage(str(folder), text) in card
    served = pipeline(kind.pipeline_tag, str(folder))
    assert PIPELINES[case](served) and all(served(tried["text"]) for tried in metrics["widget"])
    snippets = re.findall("```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 4
    for snippet in snippets:  # what the card says works
        if "sentence_transformers" not in snippet or (case == "pairs" and find_spec("sentence_transformers")):
            exec(snippet, {})

    drawn = {"single": "confusion.png", "pairs": "similarity.png", "scored": "similarity.png"}.get(case)
    assert {path.name for path in folder.glob("*.png")} == {"loss.png", *filter(None, [drawn])}
    assert all(f"]({path.name})" in card for path in folder.glob("*.png"))

    # What was measured is what the folder holds, which is enough to measure it again, without the training rows.
    for split, prefix in (("validation", "eval_"), ("test", "test_")):
        main([str(folder), f"--test_file={files[f'{split}_file'][0]}", "--per_device_eval_batch_size=5"])
        again = json.loads((folder / f"eval-{split}" / "metrics.json").read_text())
        for metric in kind.reported:
            assert metric in again or metric not in metrics
            if metric in again:
                assert again[metric] == about(metrics[metric.replace("eval_", prefix, 1)])
        lines = (folder / f"eval-{split}" / "predictions.jsonl").read_text().splitlines()
        assert [json.loads(line)["row"] for line in lines] == list(range(1, len(rows_of_splits[split]) + 1))
        assert again["eval_samples"] == len(lines)
    assert metrics["summary"] in capsys.readouterr().out and "and once, at the end, on test.parquet" in card


def test_measurements_are_joined():
    import numpy as np

    parts = [{"n": 1, "rows": np.array([1.0])}, {"n": 2, "rows": np.array([2.0, 3.0])}]
    joined = join(parts)
    assert joined["n"] == 3 and joined["rows"].tolist() == [1, 2, 3] and join([]) == {}
