"""From options to a finished folder, as a user meets it."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    GPT2Config,
    pipeline,
)

from hf_tfenc.data.batching import EvaluationBins
from hf_tfenc.data.collators import EncodedRows
from hf_tfenc.data.sources import Column, Source, load_splits
from hf_tfenc.modeling_tfenc import TfEncMLP
from hf_tfenc.tasks import join
from hf_tfenc.tasks.masked_lm import MaskedLM
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.reading import Texts
from hf_tfenc.training.run import main, run
from hf_tfenc.training.trainer import training_step

TRAIN = Path(__file__).parents[2] / "train.py"
PINNED = {
    "eval_loss", "eval_perplexity", "eval_accuracy", "eval_loss_per_byte", "eval_unigram_accuracy",
    "eval_bigram_accuracy", "train_runtime", "train_tokens_per_second",
}  # fmt: skip
FILES = {
    "README.md", "config.json", "configuration_tfenc.py", "log.jsonl", "loss.png", "metrics.json", "model.safetensors",
    "modeling_tfenc.py", "modules.json", "1_Pooling", "tokenizer.json", "tokenizer_config.json", "train_config.yaml",
}  # fmt: skip


@pytest.fixture
def train_file(tmp_path, texts):
    path = tmp_path / "train.txt"
    path.write_text("\n".join(texts))
    return str(path)


@pytest.fixture
def finished(tiny, tmp_path, train_file):
    """Options of a finished run of 6 steps, and its metrics."""
    args = tiny(train_file=[train_file], sample_by="line", max_steps=6, eval_steps=3)
    return args, run(args)


def metrics_in(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def refusal(argv, capsys):
    """The one line that a user's mistake ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(argv)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("Error: ") and error.count("\n") == 1
    return error.removeprefix("Error: ").strip()


# --- A finished folder -----------------------------------------------------------------------------------------------


def test_a_run_leaves_a_whole_folder(finished):
    args, metrics = finished
    folder = Path(args.output_dir)
    assert {path.name for path in folder.iterdir()} == FILES | {"checkpoint-000003", "checkpoint-000006"}
    assert metrics_in(folder) == metrics and metrics.keys() >= PINNED
    assert all(math.isfinite(metrics[name]) and metrics[name] >= 0 for name in PINNED)
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "AutoModelForMaskedLM" in json.loads((folder / "config.json").read_text())["auto_map"]

    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert all(
        r.keys() == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"}
        for r in steps
    )
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6] and steps[-1]["tokens"] > steps[0]["tokens"] > 0
    assert min(r["eval_loss"] for r in records if "eval_loss" in r) == pytest.approx(metrics["eval_loss"], rel=1e-5)
    card = (folder / "README.md").read_text()
    assert f"{metrics['eval_accuracy']:.3f}" in card and f"{metrics['eval_bigram_accuracy']:.3f}" in card


def test_the_model_in_the_folder_is_the_one_measured(finished):
    args, metrics = finished
    model = AutoModelForMaskedLM.from_pretrained(args.output_dir)
    task = MaskedLM(args, AutoTokenizer.from_pretrained(args.output_dir))
    splits = load_splits(Source(train_file=args.train_file, sample_by="line"), [Column("text", "text", ("text",))])
    rows = task.encode(splits)["validation"]
    bins = EvaluationBins(rows.with_format("numpy")["length"][:], 3)
    batches = DataLoader(EncodedRows(rows), batch_sampler=bins, collate_fn=task.collator(training=False))
    with torch.no_grad():
        measured = task.metrics(join([task.measure(model.eval(), batch) for batch in batches]))
    assert measured == pytest.approx({name: metrics[name] for name in measured}, rel=1e-5)


def test_the_model_in_the_folder_fills_masks(finished):
    fill = pipeline("fill-mask", finished[0].output_dir)
    answers = fill("the cat [MASK] the river.", top_k=3)
    assert len(answers) == 3 and all(0 < answer["score"] < 1 for answer in answers)


@pytest.mark.parametrize("task", ["mlm", "embedding"])
def test_texts_that_are_not_for_others_are_quoted_nowhere(tiny, tmp_path, capsys, task):
    """But for the words in the tokenizer, which was trained on them."""
    rows = [{"text": f"patient mrs Quintessa{n} of ward seven", "positive": f"has fever {n}"} for n in range(60)]
    path = tmp_path / "notes.jsonl"
    path.write_text("\n".join(json.dumps(row if task == "embedding" else {"text": row["text"]}) for row in rows))
    options = {"task": task, "train_file": [str(path)], "max_steps": 2, "eval_steps": 2}
    for quoting in (True, False):
        args = tiny(quote_examples=quoting, output_dir=str(tmp_path / str(quoting)), **options)
        run(args)
        said = capsys.readouterr().out
        written = [p for p in (tmp_path / str(quoting)).rglob("*") if p.suffix in (".md", ".json", ".jsonl", ".yaml")]
        written = [path for path in written if "tokenizer" not in path.name]
        quoted = {path.name for path in written if "Quintessa" in path.read_text()}
        assert {"README.md", "metrics.json"} <= quoted if quoting else not quoted
        assert quoting or "Quintessa" not in said
        assert (tmp_path / str(quoting) / "similarity.png").exists() == (quoting and task == "embedding")


def test_written_options_run_again_as_they_are(finished, tmp_path, capsys, monkeypatch):
    args, metrics = finished
    config = tmp_path / "again.yaml"
    shutil.copy(Path(args.output_dir) / "train_config.yaml", config)
    shutil.rmtree(args.output_dir)
    main(["--config", str(config)])
    again = metrics_in(args.output_dir)
    assert {name: again[name] for name in PINNED if "train_" not in name} == {
        name: metrics[name] for name in PINNED if "train_" not in name
    }
    assert "held-out loss" in capsys.readouterr().out


def test_the_test_split_is_measured_like_the_validation_split_and_once(tiny, tmp_path, train_file, texts, monkeypatch):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("\n".join(f"held out, {text}" for text in texts[:30]))
    both = {"validation_file": [str(held_out)], "test_file": [str(held_out)]}
    args = tiny(train_file=[train_file], sample_by="line", max_steps=2, **both)
    metrics = run(args)
    measured = {name: value for name, value in metrics.items() if name.startswith("test_")}
    names = [name.removeprefix("test_") for name in measured]
    assert measured == {f"test_{name}": metrics[f"eval_{name}"] for name in names} and "loss" in names
    assert metrics_in(args.output_dir) == metrics and len(names) == 4
    monkeypatch.setattr("hf_tfenc.training.run.test_metrics", None)  # not called again
    again = run(args)
    assert {name: again[name] for name in measured} == measured


@pytest.mark.parametrize("learning_rate", [pytest.param(0.01, marks=pytest.mark.slow), None])
def test_a_finished_folder_is_measured_again(tiny, train_file, capsys, learning_rate):
    args = tiny(train_file=[train_file], max_steps=2, learning_rate=learning_rate)
    metrics, folder = run(args), Path(args.output_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    again = run(Arguments(**{**vars(args), "learning_rate": learning_rate}))  # and no SystemExit
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    assert {name: again[name] for name in numbers} == pytest.approx(numbers) and again.keys() == metrics.keys()
    out = capsys.readouterr().out
    assert f"{folder} holds this run, finished; it is measured once more" in out and metrics["summary"] in out
    config = folder / "train_config.yaml"
    assert (
        f"To run it again from the start: accelerate launch train.py --config {config} --overwrite_output_dir" in out
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    (folder / "of_the_first_run.txt").touch()
    main(["--config", str(config), "--overwrite_output_dir"])
    assert {path.name for path in folder.iterdir()} == FILES | {"checkpoint-000002"}
    assert len((folder / "log.jsonl").open().readlines()) == 4
    assert (folder / "model.safetensors").stat().st_mtime_ns > before[folder / "model.safetensors"]
    assert metrics_in(folder)["eval_loss"] == pytest.approx(metrics["eval_loss"])
    capsys.readouterr()
    main(["--config", str(config)])  # the file does not say to remove anything
    assert "holds this run, finished" in capsys.readouterr().out


def test_a_folder_of_another_run_is_refused(finished, capsys, monkeypatch):
    args, _ = finished
    config, folder = ["--config", str(Path(args.output_dir) / "train_config.yaml")], Path(args.output_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    said = refusal([*config, "--learning_rate", "0.5"], capsys)
    assert "a finished run with learning_rate 0.01, not 0.5" in said and "--overwrite_output_dir" in said
    (folder.parent / "open.yaml").write_text((folder / "train_config.yaml").read_text().replace("max_steps: 6\n", ""))
    assert "max_steps 6, not None" in refusal(["--config", str(folder.parent / "open.yaml")], capsys)

    assert "holds a finished run: --resume" in refusal([*config, "--resume_from_checkpoint", "none"], capsys)
    (folder / "metrics.json").rename(folder.parent / "metrics.json")
    said = refusal([*config, "--resume_from_checkpoint", "none"], capsys)
    assert "holds an unfinished run: --resume_from_checkpoint auto goes on with it, --overwrite_output_dir" in said
    (folder.parent / "metrics.json").rename(folder / "metrics.json")
    # A mistake that is found only later must not have cost the old run.
    assert "none.txt" in refusal([*config, "--overwrite_output_dir", "--train_file", "none.txt"], capsys)
    assert "vocab_size" in refusal([*config, "--overwrite_output_dir", "--vocab_size", "10"], capsys)
    monkeypatch.setenv("HOME", str(folder.parent))
    for source in (folder / "*.safetensors", f"~/{folder.name}/model.safetensors", folder):
        said = refusal([*config, "--overwrite_output_dir", "--train_file", str(source)], capsys)
        assert f"--overwrite_output_dir would remove --train_file {source}: leave one" in said
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_refused(tiny_argv, train_file, tmp_path, capsys, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    said = refusal(tiny_argv(train_file=train_file, overwrite_output_dir=overwrite), capsys)
    assert "holds something that is no run of train.py: choose another folder" in said
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    said = refusal(tiny_argv(train_file=train_file, output_dir=train_file, overwrite_output_dir=overwrite), capsys)
    assert "no run of train.py" in said and Path(train_file).read_text()


# --- What comes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["json", "folder", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("txt", "jsonl", "csv", "parquet"))],
)
def test_files_of_every_kind_train(tiny_argv, texts, tmp_path, kind):
    source, rows = tmp_path / f"source.{kind}", Dataset.from_dict({"number": list(range(len(texts))), "body": texts})
    if kind == "txt":
        source.write_text("\n".join(texts))
    elif kind == "json":
        source.write_text(json.dumps(rows.to_list()))
    elif kind == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows.to_list()))
    elif kind == "csv":
        rows.to_csv(source, index=False)
    elif kind == "parquet":
        rows.to_parquet(source)
    else:
        source.mkdir()
        for half in range(2):
            (source / f"{half}.txt").write_text("\n".join(texts[half::2]))
    column = {} if kind in ("txt", "folder") else {"text_column": "body"}
    main(tiny_argv(train_file=source, max_steps=2, **column))
    metrics = metrics_in(tmp_path / "out")
    assert metrics.keys() >= PINNED and 1000 < metrics["train_tokens"] < 20_000
    saved = yaml.safe_load((tmp_path / "out" / "train_config.yaml").read_text())
    assert saved["train_file"] == [str(source)]


def test_a_stream_trains(tiny, train_file, tmp_path, capsys):
    stream = {"train_file": [train_file], "sample_by": "line", "streaming": True, "shuffle_buffer_size": 60}
    metrics = run(tiny(**stream, task="causal-lm", max_steps=80))
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "eval_loss" in record] == list(range(8, 81, 8))
    ends = [record["epoch"] for record in records if "train_loss" in record]
    assert ends[0] == 1 and ends == sorted(ends) and records[0]["epoch"] == 0
    assert metrics["train_tokens"] == max(record.get("tokens", 0) for record in records) > 1000
    assert metrics["eval_loss"] < metrics["baseline_loss"] + 1
    said = capsys.readouterr().out
    assert "train: a stream that begins with 1" in said and "80 steps, on a stream" in said


def test_texts_for_a_tokenizer_are_read_anew_each_time():
    texts = Texts(Dataset.from_dict({"text": ["one", "two"] * 600}), MaskedLM)
    assert list(texts) == list(texts) == ["one", "two"] * 600
    assert not isinstance(texts, Iterator)  # which a tokenizer would have to keep


def test_a_run_can_start_from_another_ones_model(finished, tmp_path, capsys):
    args, metrics = finished
    start = vars(args) | {"preset": None, "model_name_or_path": args.output_dir, "output_dir": str(tmp_path / "more")}
    further = run(Arguments(**start | {"learning_rate": 1e-9, "max_steps": 1}))
    assert further["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(args.output_dir).get_vocab()


@pytest.mark.parametrize("best", [True, False])
def test_the_best_model_is_kept(tiny_argv, tmp_path, texts, best):
    """The held-out text has other letters than the training text: the more is learned, the worse it gets."""
    (tmp_path / "train.txt").write_text("\n".join(texts))
    (tmp_path / "held_out.txt").write_text("\n".join(["QUICK JUMPY VEX ZIG %$#@!"] * 20))
    files = {"train_file": tmp_path / "train.txt", "validation_file": tmp_path / "held_out.txt"}
    steps = {"max_steps": 30, "eval_steps": 5, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    main(tiny_argv(**files, **steps, sample_by="line", load_best_model_at_end=best))
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    curve = [record["eval_loss"] for record in log if "eval_loss" in record]
    assert len(curve) == 6 and min(curve) < curve[-1] - 0.5
    assert metrics_in(tmp_path / "out")["eval_loss"] == pytest.approx(min(curve) if best else curve[-1], rel=1e-4)


# --- Mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_end_with_one_line(tiny_argv, train_file, tmp_path, capsys, tokenizer):
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    for options, said in [
        ({"learning_rate": "much"}, "invalid float value: 'much'"),
        ({"train_file": tmp_path / "none.txt"}, "none.txt: there is no such file or folder"),
        ({"text_column": "body"}, "has no column 'body'"),
        ({"vocab_size": 100}, "vocab_size is 100, too small"),
        ({"tokenizer_name": tmp_path}, "holds no tokenizer"),
        (
            {"model_name_or_path": tmp_path / "gpt2"},
            "is a gpt2 model; only tfenc models, and bert and modernbert ones",
        ),
        ({"config_overrides": '{"hiden_size": 8}'}, "Did you mean 'hidden_size'?"),
        ({"config_overrides": '{"hidden_size": "x"}'}, "'hidden_size' expected int, got str"),
        (
            {"config_overrides": '{"hidden_size": 30, "num_attention_heads": 4}'},
            "not divisible by num_attention_heads",
        ),
        ({"config_overrides": '{"max_position_embeddings": 31}'}, "--max_seq_length 32 is longer than the model's 31"),
        ({"config_overrides": '{"vocab_size": 200}'}, "tokens, and the model's vocab_size is 200"),
        ({"attn_implementation": "magic"}, "magic"),
    ]:
        assert said in refusal(tiny_argv(**{"train_file": train_file, "max_steps": 1, **options}), capsys), options
        assert not (tmp_path / "out").exists()  # so that the mended command just runs


def test_a_diverged_run_ends_with_one_line(tiny_argv, train_file, capsys):
    options = {"learning_rate": 1e30, "max_grad_norm": 0, "warmup_steps": 0, "max_steps": 20, "max_skipped_steps": 5}
    assert "5 steps in a row, up to step" in refusal(tiny_argv(train_file=train_file, **options), capsys)


def test_gradient_checkpointing_changes_nothing_but_memory(tiny, train_file, tmp_path, monkeypatch):
    runs, passes, forward = [], [0, 0], TfEncMLP.forward
    for given in (False, True):

        def counted(self, x, given=given):
            passes[given] += 1
            return forward(self, x)

        monkeypatch.setattr(TfEncMLP, "forward", counted)
        out = tmp_path / str(given)
        run(tiny(train_file=[train_file], sample_by="line", gradient_checkpointing=given, output_dir=str(out)))
        lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
        runs.append([record["grad_norm"] for record in lines if "grad_norm" in record])
    assert passes[1] > passes[0]  # the backward pass computes what was not kept
    assert runs[0] and runs[1] == pytest.approx(runs[0], rel=1e-5)


def test_a_run_with_a_skipped_step_finishes(tiny, train_file, monkeypatch):
    step, factors = training_step, iter([1.0, math.inf, 1.0, 1.0])

    def spoiled(accelerator, model, optimizer, batches, task, *args):
        factor = next(factors)
        hook = model.register_forward_hook(lambda *outputs: setattr(outputs[-1], "loss", outputs[-1].loss * factor))
        result = step(accelerator, model, optimizer, batches, task, *args)
        hook.remove()
        return result

    monkeypatch.setattr("hf_tfenc.training.trainer.training_step", spoiled)
    args = tiny(train_file=[train_file], max_steps=4)
    assert math.isfinite(run(args)["eval_loss"])
    log = [json.loads(line) for line in (Path(args.output_dir) / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log if record.get("skipped")] == [2]


def test_what_a_run_is_made_of_is_never_removed(tiny_argv, train_file, finished, capsys):
    args, _ = finished
    folder = Path(args.output_dir)
    (folder / "kept").mkdir()
    shutil.copytree(folder / "checkpoint-000003", folder / "kept" / "checkpoint-000003")
    (folder / "text.txt").write_text(Path(train_file).read_text())
    for name, path in [
        ("resume_from_checkpoint", folder / "checkpoint-000006"),
        ("resume_from_checkpoint", folder / "kept" / "checkpoint-000003"),
        ("train_file", folder / "text.txt"),
        ("model_name_or_path", folder),
        ("tokenizer_name", folder),
    ]:
        said = refusal(tiny_argv(**{"train_file": train_file, "overwrite_output_dir": True, name: path}), capsys)
        assert f"--overwrite_output_dir would remove --{name} {path}: leave one of the two out" in said
    assert (folder / "metrics.json").exists() and (folder / "text.txt").exists()


def test_a_finished_run_on_other_rows_is_refused(finished, train_file, texts, capsys):
    args, _ = finished
    Path(train_file).write_text("\n".join(texts[3:]))
    said = refusal(["--config", str(Path(args.output_dir) / "train_config.yaml")], capsys)
    assert "holds a finished run on other rows" in said


def test_what_a_killed_process_left_is_no_hindrance(tiny_argv, train_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".shared-1").touch()
    (tmp_path / "out" / ".train_config.yaml.saving").touch()
    main(tiny_argv(train_file=train_file, max_steps=1))
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "options, named", [({}, "--per_device_train_batch_size 4"), ({"packing": "packed"}, "--tokens_per_batch 128")]
)
def test_too_little_memory_ends_with_one_line_that_names_the_batch(
    tiny_argv, train_file, capsys, monkeypatch, options, named
):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("hf_tfenc.training.trainer.training_step", too_much)
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8, "max_seq_length": 32}
    with pytest.raises(SystemExit) as ended:
        main(tiny_argv(train_file=train_file, **sizes, **options))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert error.startswith(f"Error: This device has too little memory for {named}, or in an evaluation for ")
    assert "--per_device_eval_batch_size 8: halve it" in error


def test_ctrl_c_before_training_ends_with_one_line(tiny_argv, train_file, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_tfenc.training.run.make_model", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(tiny_argv(train_file=train_file))
    error = capsys.readouterr().err
    assert ended.value.code == 130 and error.startswith("Stopped.") and error.count("\n") == 1


# --- The real command ------------------------------------------------------------------------------------------------

WATCH = '''
import os, sys

def watch(event, arguments):
    """Ends the process that asks for anything beyond this machine, and leaves word of it."""
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        where = arguments[0] if event.startswith("socket.get") else arguments[1]
        host = where[0] if isinstance(where, tuple) else where
        local = host in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", b"localhost") or "/" in str(host)
        if not local:
            with open(os.environ["WATCH_LOG"], "a") as log:
                log.write(f"{event} {where}\\n")
            raise PermissionError(f"{event} {where} is forbidden")

sys.addaudithook(watch)
open(os.environ["WATCH_LOG"] + ".started", "a").write(f"{os.getpid()}\\n")
'''


@pytest.fixture
def command(tmp_path):
    """Runs a real command, watched, where a newcomer would: with no cache, and nothing that says offline."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ACCELERATE_"))}
    environment |= {
        "HF_HOME": str(tmp_path / "hf"),
        "WATCH_LOG": str(tmp_path / "sockets"),
        "PYTHONPATH": str(tmp_path),
    }

    def command(*arguments):
        arguments = [sys.executable, *map(str, arguments)]
        return subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return command


def test_the_default_job_opens_no_socket_beyond_this_machine(command, tmp_path):
    options = ["--max_steps", 3, "--max_train_samples", 40, "--max_eval_samples", 5, "--vocab_size", 1000]
    done = command("-m", "accelerate.commands.launch", TRAIN, *options)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "sockets").exists(), (tmp_path / "sockets").read_text()
    assert len((tmp_path / "sockets.started").read_text().splitlines()) >= 2  # the launcher and the run were watched
    assert {path.name for path in (tmp_path / "outputs" / "mlm").iterdir()} == FILES | {"checkpoint-000003"}
    assert "held-out loss" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_mistake_is_all_that_the_real_command_prints(command):
    done = command(TRAIN, "--learning_rat", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: --learning_rat is not an option. Did you mean --learning_rate?\n"
