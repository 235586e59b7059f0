"""The program hf-tfenc, as a user meets it."""

import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner

from hf_tfenc import TfEncForSequenceClassification
from hf_tfenc.cli import app
from hf_tfenc.presets import preset_config
from hf_tfenc.training.arguments import EVALUATION_OPTIONS

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


@pytest.fixture
def model(tmp_path, tokenizer):
    """A folder with a classifier, as somebody may have made it: without the options of a training."""
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **SIZES}
    config = preset_config("modern-tiny", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}, **options)
    TfEncForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "some.rows.jsonl"
    written = [{"text": f"the {animal} draws the river", "label": animal} for animal in ("cat", "dog", "cat")]
    path.write_text("\n".join(map(json.dumps, written)))
    return path


def call(*argv):
    return CliRunner().invoke(app, list(map(str, argv)))


def refusal(*argv):
    """The one sentence of a user's mistake."""
    result = call("eval", *argv)
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").strip()


def labels_alone(folder):
    path = folder / "labels.jsonl"
    path.write_text('{"label": 1, "other": 2}')
    return path


def test_the_commands_are_listed():
    result = call("--help")
    assert result.exit_code == 0 and "train" in result.output and "eval" in result.output


def test_train_hands_its_arguments_on(monkeypatch):
    seen = []
    monkeypatch.setattr("hf_tfenc.training.run.main", seen.append)
    assert call("train", "--max_steps", "3", "--config=a.yaml", "--no_load_best_model_at_end", "--help").exit_code == 0
    assert seen == [["--max_steps", "3", "--config=a.yaml", "--no_load_best_model_at_end", "--help"]]


def test_help_lists_the_options_of_eval_alone():
    result = call("eval", "--help")
    assert result.exit_code == 0 and all(f"--{name}" in result.output for name in EVALUATION_OPTIONS)
    assert "--optim" not in result.output and "--train_file" not in result.output


def test_a_model_is_measured_and_what_it_says_is_written(model, rows):
    result = call("eval", model, "--task", "sequence-classification", "--test_file", rows, "--cpu_threads", 1)
    assert result.exit_code == 0, result.output
    folder = model / "eval-some.rows"
    metrics = json.loads((folder / "metrics.json").read_text())
    said = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [record["right"] for record in said] == ["cat", "dog", "cat"] and metrics["eval_samples"] == 3
    assert sum(record["label"] == record["right"] for record in said) / 3 == pytest.approx(
        metrics["eval_accuracy"], rel=1e-5
    )
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "predictions.jsonl"}
    assert f"accuracy: {metrics['eval_accuracy']:.4f}" in result.output and str(folder) in result.output


def test_the_folder_can_be_said_and_is_written_anew(model, rows, tmp_path):
    options = ["--task", "sequence-classification", "--test_file", rows, "--output_dir", tmp_path / "said"]
    assert call("eval", model, *options).exit_code == 0
    assert call("eval", model, *options, "--max_eval_samples", 2).exit_code == 0
    assert len((tmp_path / "said" / "predictions.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "said" / "metrics.json").read_text())["eval_samples"] == 2
    assert not (model / "eval-some.rows").exists()


def test_the_folder_is_named_after_the_data_and_keeps_that_of_others(model, rows, tmp_path):
    options = ["--task", "sequence-classification", "--test_file"]
    (tmp_path / "some data.v2.jsonl").write_text(rows.read_text())
    assert call("eval", model, *options, tmp_path / "some data.v2.jsonl").exit_code == 0
    assert (model / "eval-some-data.v2" / "metrics.json").exists()
    (tmp_path / "other").mkdir()
    namesake = tmp_path / "other" / rows.name
    namesake.write_text(rows.read_text())
    assert call("eval", model, *options, rows).exit_code == 0
    before = (model / "eval-some.rows" / "metrics.json").read_text()
    assert f"eval-some.rows holds the metrics of {rows}: give another --output_dir" in refusal(
        model, *options, namesake
    )
    metrics = json.loads(before)
    for changed, said in [
        ({"hf_tfenc_task": "mlm"}, "eval-some.rows holds the metrics of task mlm: give another --output_dir"),
        ({"model": "ada/letters"}, "eval-some.rows holds the metrics of model ada/letters: give another --output_dir"),
    ]:
        (model / "eval-some.rows" / "metrics.json").write_text(json.dumps(metrics | changed))
        assert said in refusal(model, *options, rows)


def test_options_of_a_models_folder_are_data(model, rows):
    trained = 'task: sequence-classification\ntext_column: ["text", "--max_eval_samples=1"]'
    (model / "train_config.yaml").write_text(trained)
    said = refusal(model, "--test_file", rows)
    assert "text_column holds '--max_eval_samples=1', which looks like an option" in said


def test_a_run_keeps_its_own_metrics(model, rows, tmp_path):
    (model / "train_config.yaml").write_text("task: sequence-classification")
    (model / "metrics.json").write_text("{}")
    said = refusal(model, "--test_file", rows, "--output_dir", model)
    assert f"--output_dir {model} holds a run with metrics of its own: choose another folder" in said
    assert (model / "metrics.json").read_text() == "{}"


def test_rows_have_the_numbers_of_their_file(model, rows):
    good = rows.read_text().splitlines()
    rows.write_text("\n".join([good[0], '{"text":', "", '{"text": " ", "label": "cat"}', *good[1:]]))
    options = ["--task", "sequence-classification", "--test_file", rows]
    assert "mend the line" in refusal(model, *options)
    assert call("eval", model, *options, "--skip_bad_rows").exit_code == 0
    said = [json.loads(line) for line in (model / "eval-some.rows" / "predictions.jsonl").read_text().splitlines()]
    assert [(record["row"], record["right"]) for record in said] == [(1, "cat"), (4, "dog"), (5, "cat")]


def test_options_are_those_of_the_training_if_the_task_is(model, rows):
    rows.write_text(rows.read_text().replace('"text"', '"body"').replace('"label"', '"kind"'))
    trained = "task: sequence-classification\ntext_column: body\nlabel_column: kind\nmax_seq_length: 8\noptim: adamw"
    (model / "train_config.yaml").write_text(trained)
    assert call("eval", model, "--test_file", rows).exit_code == 0
    assert json.loads((model / "eval-some.rows" / "metrics.json").read_text())["eval_tokens"] == 3 * 8
    (model / "train_config.yaml").write_text("task: mlm\ntext_column: nothing\nmax_seq_length: 9")
    columns = ["--text_column", "body", "--label_column", "kind"]
    assert call("eval", model, "--test_file", rows, "--task", "sequence-classification", *columns).exit_code == 0
    assert json.loads((model / "eval-some.rows" / "metrics.json").read_text())["eval_tokens"] > 3 * 9


def test_mistakes_are_one_sentence(model, rows, tmp_path, tokenizer):
    task = ["--task", "sequence-classification"]
    assert refusal("--test_file", rows).startswith("The model comes first")
    assert "holds no train_config.yaml that says what it was trained for" in refusal(model, "--test_file", rows)
    assert refusal(model, "--tset_file", rows) == "--tset_file is not an option. Did you mean --test_file?"
    assert refusal(model, *task, "--optim", "adamw").startswith("--optim is not an option.")
    assert "name a file with --test_file" in refusal(model, *task)
    assert "There is no folder" in refusal(tmp_path / "nothing", "--test_file", rows)
    assert refusal("some/thing", "--test_file", rows).startswith(
        "No folder is called some/thing, and the Hub gives no"
    )
    assert "which column holds the text is not plain" in refusal(model, *task, "--test_file", labels_alone(tmp_path))
    rows.write_text('{"text": "the fox", "label": "fox"}')
    assert f"--test_file {rows}, row 1: the label 'fox' is none of those" in refusal(model, *task, "--test_file", rows)
    assert not (model / "eval-some.rows").exists()


def test_a_model_without_the_tasks_head_is_refused(model, rows):
    assert "was not trained for --task mlm, and lacks weights for it: name the task" in refusal(
        model, "--task", "mlm", "--test_file", rows
    )


def test_a_model_of_another_kind_is_refused(tmp_path, rows, tokenizer):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=300, **small)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    assert "is a bert model" in refusal(tmp_path / "bert", "--task", "mlm", "--test_file", rows)


@pytest.mark.slow
def test_it_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "hf_tfenc.cli", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "eval" in result.stdout
