"""The task sequence-classification: what labels make of it, and what its metrics are."""

import numpy as np
import pytest
import torch
from cases import batch_of, evaluate, make_model
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from hf_tfenc.tasks.sequence_classification import MULTI, REGRESSION, SINGLE

metrics = pytest.importorskip("sklearn.metrics")


def both(**columns):
    rows = Dataset.from_dict(columns)
    return DatasetDict(train=rows, validation=rows)


@pytest.mark.parametrize(
    ("labels", "problem", "outputs"),
    [
        (["a", "b", "c"], SINGLE, 3),
        ([5, 7, 5], SINGLE, 2),
        ([True, False, True], SINGLE, 2),
        ([["a"], ["b", "a"], []], MULTI, 2),
        ([[3], [1, 2], []], MULTI, 3),
        ([0.5, 1.0, 2.0], REGRESSION, 1),
    ],
)
def test_the_type_of_labels_says_what_the_problem_is(encoded_task, labels, problem, outputs):
    task, _ = encoded_task("single", both(text=["x", "y", "z"], label=labels))
    assert task.config_options["problem_type"] == problem and len(task.config_options["id2label"]) == outputs


def test_the_option_says_otherwise(encoded_task):
    task, rows = encoded_task("single", both(text=["x", "y"], label=[1, 4]), problem_type=REGRESSION)
    assert rows["train"]["labels"][:] == [1.0, 4.0] and make_model(task).config.num_labels == 1
    task, rows = encoded_task("single", both(text=["x", "y"], label=[1.0, 0.0]), problem_type=SINGLE)
    assert rows["train"]["labels"][:] == [1, 0] and task.config_options["id2label"] == {0: "0", 1: "1"}


def test_whole_numbers_that_are_written_as_fractions_are_asked_about(encoded_task):
    """So a table writes classes of which one is missing."""
    labels = [1.0, 0.0, 1.0, 0.0, 2.0, 1.0, 0.0]
    said = (
        "the label 1.0 is, as all training labels, a whole number written as a fraction: give --problem_type single_la"
    )
    with pytest.raises(ValueError, match=said):
        encoded_task("single", both(text=list("abcdefg"), label=labels))
    task, _ = encoded_task("single", both(text=list("abcdefg"), label=labels), problem_type=REGRESSION)
    assert make_model(task).config.num_labels == 1


@pytest.mark.parametrize(
    ("labels", "problem", "said"),
    [
        (["a", "b"], REGRESSION, "the label 'a' is no number"),
        ([1.0, float("nan")], REGRESSION, "the label nan is no number"),
        ([["a"], ["b"]], SINGLE, "is a list, which does not go with --problem_type single_label"),
        (["a", "b"], MULTI, "is no list, which does not go with --problem_type multi_label"),
    ],
)
def test_labels_of_another_problem_are_refused(encoded_task, labels, problem, said):
    with pytest.raises(ValueError, match=rf"^train, row [12]: .*{said}"):
        encoded_task("single", both(text=["x", "y"], label=labels), problem_type=problem)


def test_an_unknown_label_names_the_row(encoded_task):
    rows = DatasetDict(
        train=Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"]}),
        validation=Dataset.from_dict({"text": ["x", "y"], "label": ["a", "new"]}),
    )
    with pytest.raises(ValueError, match=r"^validation, row 2: the label 'new' is none of those"):
        encoded_task("single", rows)


def test_labels_that_a_limit_has_left_out_are_laid_to_it(encoded_task):
    rows = DatasetDict(
        train=Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"]}),
        validation=Dataset.from_dict({"text": ["x", "y"], "label": ["a", "new"]}),
    )
    with pytest.raises(
        ValueError, match=r"'new' is none of .*: --max_train_samples 2 takes the first training rows alone"
    ):
        encoded_task("single", rows, max_train_samples=2)


def test_names_are_kept_and_taken_up_again(encoded_task):
    task, _ = encoded_task("single")
    model = make_model(task)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "none"} == dict(enumerate(task.labels.names))
    later, _ = encoded_task("multi")
    later.adopt(model.config)
    assert later.labels.names == task.labels.names and later.problem == SINGLE
    without_train = later.encode(DatasetDict(validation=Dataset.from_dict({"text": ["a dog"], "label": ["dog"]})))
    assert without_train["validation"]["labels"][:] == [1]


@pytest.mark.parametrize("preset", ["modern-tiny", "bert-tiny"])
def test_pairs_are_told_apart_where_the_model_has_segments(encoded_task, preset, tmp_path):
    pairs = both(text=["the cat", "a dog"], text_pair=["draws", "watches the river"], label=["a", "b"])
    task, rows = encoded_task("single", pairs, preset=preset)
    batch = batch_of(task, rows["train"], [0, 1])
    first, second = (task.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the cat", "draws"))
    cls, sep = task.tokenizer.cls_token_id, task.tokenizer.sep_token_id
    assert rows["train"][0]["input_ids"] == [cls, *first, sep, *second, sep]
    assert ("token_type_ids" in batch) == (preset == "bert-tiny")
    if preset == "bert-tiny":
        marks = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert batch["token_type_ids"][0, : len(marks)].tolist() == marks
        assert batch["token_type_ids"].shape == batch["input_ids"].shape
    make_model(task, preset=preset)(**batch)
    task.tokenizer.save_pretrained(tmp_path)  # what serves the model asks it for the same
    assert ("token_type_ids" in AutoTokenizer.from_pretrained(tmp_path)("a", "b")) == (preset == "bert-tiny")


def test_what_is_too_long_is_cut_off_and_counted(encoded_task, caplog):
    with caplog.at_level("INFO", logger="hf_tfenc"):
        _, rows = encoded_task("single", both(text=["cat " * 50, "dog"], label=["a", "b"]))
    assert rows["train"]["length"][0] == 32
    assert "train: 1 of 2 rows fill --max_seq_length 32 tokens; what is longer is cut off." in caplog.text


@pytest.mark.parametrize("case", ["single", "multi", "regression"])
def test_metrics_equal_those_by_hand(encoded_task, case):
    task, rows = encoded_task(case)
    model, batch = make_model(task), batch_of(task, rows["validation"], range(40))
    with torch.no_grad():
        outputs = model(**batch)
    logits, labels = outputs.logits.double().numpy(), batch["labels"].numpy()
    result = evaluate(task, model, rows["validation"])
    assert result["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    if case == "single":
        said = logits.argmax(-1)
        expected = {
            "accuracy": metrics.accuracy_score(labels, said),
            "macro_f1": metrics.f1_score(labels, said, average="macro"),
            "matthews_correlation": metrics.matthews_corrcoef(labels, said),
        }
    elif case == "multi":
        said = logits > 0
        expected = {
            "accuracy": metrics.accuracy_score(labels > 0, said),
            "macro_f1": metrics.f1_score(labels > 0, said, average="macro", zero_division=0),
            "micro_f1": metrics.f1_score(labels > 0, said, average="micro"),
        }
    else:
        stats = pytest.importorskip("scipy.stats")
        expected = {
            "pearson": stats.pearsonr(labels, logits[:, 0]).statistic,
            "spearman": stats.spearmanr(labels, logits[:, 0]).statistic,
        }
    assert {
        name.removeprefix("eval_"): value for name, value in result.items() if name != "eval_loss"
    } == pytest.approx(expected, rel=1e-5)


def test_a_model_that_hardly_varies_is_not_ranked_by_its_last_bits(encoded_task):
    task, _ = encoded_task("regression")
    labels, noise = np.arange(40.0), np.random.default_rng(0).normal(size=40)
    measured = {"loss": np.ones(40), "label": labels, "prediction": 2.19283 + 1e-6 * noise}
    assert task.metrics(measured) == {"eval_loss": 1.0, "eval_pearson": 0.0, "eval_spearman": 0.0}
    measured["prediction"] = labels + 1e-6 * noise
    assert task.metrics(measured)["eval_spearman"] == 1.0


def test_baselines_by_hand(encoded_task, splits):
    task, rows = encoded_task("single")
    train, asked = (np.array(splits("single")[split]["label"][:]) for split in ("train", "validation"))
    names, counts = np.unique(train, return_counts=True)
    share = dict(zip(names, (counts + 1) / (counts + 1).sum(), strict=True))
    assert task.baselines(rows["train"], rows["validation"]) == pytest.approx(
        {
            "eval_majority_loss": -np.mean([np.log(share[name]) for name in asked]),
            "eval_majority_accuracy": (asked == names[counts.argmax()]).mean(),
        }
    )
    task, rows = encoded_task("regression")
    train, asked = (np.array(splits("regression")[split]["label"][:]) for split in ("train", "validation"))
    assert task.baseline_loss(rows["train"], rows["validation"]) == pytest.approx(((asked - train.mean()) ** 2).mean())
    task, rows = encoded_task("multi")
    said = np.stack(rows["train"].with_format("numpy")["labels"][:]).mean(axis=0)
    asked = np.stack(rows["validation"].with_format("numpy")["labels"][:])
    expected = metrics.log_loss(asked.ravel(), np.broadcast_to(said, asked.shape).ravel())
    assert task.baseline_loss(rows["train"], rows["validation"]) == pytest.approx(expected, rel=0.02)  # smoothed
