"""Several processes, joined by gloo: the same rows, the same loss, and one file where there is to be one."""

import collections
import functools
import json
import os
import signal
import time

import pytest
from launching import Run

NO_DROPOUT = {"embedding_dropout": 0.0, "hidden_dropout": 0.0, "mlp_dropout": 0.0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def options(texts, tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("\n".join(texts))

    def options(name="out", **others):
        return {
            "output_dir": str(tmp_path / name),
            "train_file": str(path),
            "sample_by": "line",
            "preset": "classic-tiny",
            "config_overrides": json.dumps(SIZES | NO_DROPOUT),
            "vocab_size": 300,
            "max_seq_length": 32,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 4,
            "logging_steps": 1,
            "cpu_threads": 1,
            "optim": "adamw",
            "learning_rate": 0.001,
        } | others

    return options


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_of_four_micro_batches_are_one_of_eight(options, tmp_path):
    steps = {"max_steps": 50, "eval_steps": 20}
    Run(options("one", gradient_accumulation_steps=8, **steps), tmp_path / "one.log").finish()
    Run(options("two", gradient_accumulation_steps=4, **steps), tmp_path / "two.log", processes=2).finish()
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [record.keys() for record in two] == [record.keys() for record in one]
    for name in ("loss", "grad_norm", "tokens", "learning_rate", "eval_loss", "train_loss"):
        expected = [record[name] for record in one if name in record]
        assert [record[name] for record in two if name in record] == pytest.approx(expected, rel=1e-5) and expected
    assert len([record for record in one if "loss" in record]) == 50
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == files
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert second["eval_accuracy"] == first["eval_accuracy"]
    assert second["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-5)


def note_rows(path, stop_after):
    """In a process to be: write down which training rows its steps are made of, and stop after some steps."""
    from hf_tfenc.data.batching import EvaluationBins
    from hf_tfenc.data.collators import EncodedRows
    from hf_tfenc.training.trainer import Trainer

    get_items, step, done = EncodedRows.__getitems__, Trainer.step, {"steps": 0}

    def noted(self, indices):
        with open(path, "a") as file:
            for epoch, row in indices:
                if epoch != EvaluationBins.EPOCH:
                    file.write(f"{epoch} {row}\n")
        return get_items(self, indices)

    def counted(self, batches):
        done["steps"] += 1
        if done["steps"] == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches)

    EncodedRows.__getitems__, Trainer.step = noted, counted


def test_no_row_is_lost_or_repeated_when_the_number_of_processes_changes(options, tmp_path):
    changing = options(num_train_epochs=2, gradient_accumulation_steps=2, save_steps=1000)
    rows = tmp_path / "rows"
    for processes, stop_after in ((2, 7), (1, 60), (2, 1000)):
        run = Run(changing, tmp_path / "log", processes, before=functools.partial(note_rows, rows, stop_after))
        assert run.wait() == [75 if stop_after < 1000 else 0] * processes, run.output
    assert run.output.count("micro-batches, not") == 2 and run.output.count("It goes on from") == 2
    seen = collections.Counter(tuple(map(int, line.split())) for line in rows.read_text().splitlines())
    count = len({row for _, row in seen})
    assert seen == {(epoch, row): 1 for epoch in range(2) for row in range(count)} and count > 400


def note_streamed_rows(path, stop_after):
    """The same for a stream, of which it writes down the tokens."""
    from hf_tfenc.data.streaming import Bin

    load = Bin.load

    def noted(self, epoch):
        rows = load(self, epoch)
        with open(path, "a") as file:
            file.writelines(f"{epoch} {' '.join(map(str, row['input_ids']))}\n" for row in rows)
        return rows

    Bin.load = noted
    note_rows(os.devnull, stop_after)


def test_every_row_of_a_stream_is_seen_once(options, tmp_path):
    """10,000 rows in four files, read a bit more than twice; stopped in an epoch, on another number of processes."""
    texts = [f"{number}: the old fox" for number in range(10_000)]
    steps = -(-(10 * -(-950 // 100) + 500 // 100) // 2)  # of an epoch; a block ends with a bin of fewer rows
    files = [tmp_path / f"part-{part}.txt" for part in range(4)]
    for part, path in enumerate(files):
        path.write_text("\n".join(texts[part::4]))
    stream = {
        "train_file": [str(path) for path in files],
        "validation_file": str(tmp_path / "train.txt"),
        "streaming": True,
        "shuffle_buffer_size": 950,
        "max_steps": 2 * steps + 5,
        "per_device_train_batch_size": 100,
        "max_eval_samples": 10,
        "save_steps": 1000,
    }
    rows = tmp_path / "rows"
    for processes, stop_after in ((2, 20), (1, 47), (2, 1000)):
        call = options(gradient_accumulation_steps=2 // processes, **stream)
        run = Run(call, tmp_path / "log", processes, before=functools.partial(note_streamed_rows, rows, stop_after))
        assert run.wait() == [75 if stop_after < 1000 else 0] * processes, run.output
    assert run.output.count("It goes on from") == 2
    seen = [collections.Counter(), collections.Counter(), collections.Counter()]
    for line in rows.read_text().splitlines():
        epoch, _, ids = line.partition(" ")
        seen[int(epoch)][ids] += 1
    assert len(seen[0]) == 10_000 and set(seen[0].values()) == {1} and seen[0] == seen[1]
    assert 0 < seen[2].total() <= 5 * 200 and seen[2] <= seen[0]
    Run(options("whole", gradient_accumulation_steps=2, **stream), tmp_path / "whole.log").finish()
    records = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("out", "whole")]
    losses = [[record["loss"] for record in log if "loss" in record] for log in records]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == stream["max_steps"]


def test_metrics_are_exact_on_any_number_of_processes_and_batch_sizes(options, texts, tmp_path):
    """41 rows: no number of processes or rows of a batch divides them."""
    found = {}
    (tmp_path / "test.txt").write_text("\n".join(f"another {text}" for text in texts[:23]))
    for processes, batch_size in ((1, 64), (1, 1), (2, 7), (3, 4)):
        name = f"{processes}x{batch_size}"
        call = options(
            name, per_device_eval_batch_size=batch_size, max_steps=1, gradient_accumulation_steps=6 // processes,
            test_file=str(tmp_path / "test.txt"),
        )  # fmt: skip
        Run(call, tmp_path / "log", processes).finish()
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        found[name] = [
            round(metrics[f"{split}_{metric}"], 5)
            for split in ("eval", "test")
            for metric in ("accuracy", "loss", "loss_per_byte")
        ]
    assert len(set(map(tuple, found.values()))) == 1, found


def read_slowly_in_one_process():
    from hf_tfenc.training import reading

    load_splits = reading.load_splits

    def slowly(*arguments):
        if os.environ["RANK"] == "0":
            time.sleep(4)
        return load_splits(*arguments)

    reading.load_splits = slowly


@pytest.mark.parametrize("seconds, ends_well", [(1, False), (60, True)])
def test_a_process_waits_for_the_others_as_long_as_it_is_told_to(options, tmp_path, seconds, ends_well):
    run = Run(options(ddp_timeout=seconds, max_steps=2), tmp_path / "log", 2, before=read_slowly_in_one_process)
    codes = run.wait()
    assert (set(codes) == {0}) == ends_well, run.output
    assert ("1000ms" in run.output) != ends_well
