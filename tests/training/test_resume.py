"""A run that was stopped, anyhow and anywhere, and goes on: it ends as if nothing had happened."""

import functools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from launching import Run

from hf_tfenc.training.arguments import OptionError
from hf_tfenc.training.checkpointing import checkpoints, newest_whole, verify
from hf_tfenc.training.run import run

MUON = {"optim": "muon", "preset": "modern-tiny"}
SETTINGS = [(processes, workers) for processes in (1, 2) for workers in (0, 2)]


@pytest.fixture
def train_file(tmp_path, texts):
    path = tmp_path / "train.txt"
    path.write_text("\n".join(texts))
    return str(path)


@pytest.fixture
def options(tiny, train_file, tmp_path):
    """Of a run with dropout, accumulation, epochs that end within, and checkpoints that are rotated."""

    def options(name="out", **others):  # None leaves an option out
        changed = {
            "output_dir": str(tmp_path / name),
            "train_file": [train_file],
            "sample_by": "line",
            "num_train_epochs": 2,
            "max_train_samples": 60,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "eval_steps": 8,
            "save_steps": 5,
            "logging_steps": 3,
            "optim": "adamw",
        }
        args = tiny(**changed | others)
        return {name: value for name, value in vars(args).items() if value is not None}

    return options


def result(folder):
    """What must be the same: the model's and the last checkpoint's bytes, and the log but for its clock."""
    folder = Path(folder)
    last = checkpoints(folder)[-1]
    verify(last)
    names = ["model.safetensors", "optimizer.safetensors", "rng_rank0.safetensors"]
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("tokens_per_second", None)
    metrics = json.loads((folder / "metrics.json").read_text())
    measured = {name: value for name, value in metrics.items() if name.startswith("eval_")}
    return {
        "last": last.name,
        "model": (folder / "model.safetensors").read_bytes(),
        "state": [(last / name).read_bytes() for name in names],
        "log": records,
        "metrics": measured,
    }


# --- Killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def survives(options, tmp_path):
    """Kill a run at random moments, let it go on, and compare it with one that was left alone."""

    def survives(processes, workers, times, seed, **others):
        others |= {"dataloader_num_workers": workers}
        Run(options("whole", **others), tmp_path / "whole.log", processes).finish()
        expected, choose = result(tmp_path / "whole"), random.Random(seed)
        for number in range(times):
            name, log = f"killed-{number}", tmp_path / f"killed-{number}.log"
            killed = Run(options(name, **others), log, processes)
            step = choose.randint(1, 6) * 3  # a logged one
            wait_for_step(killed, tmp_path / name, step)
            time.sleep(choose.uniform(0, 0.2))
            killed.kill()
            said = Run(options(name, **others), log, processes).finish()
            assert step < 9 or "It goes on from" in said or "holds this run, finished" in said
            assert result(tmp_path / name) == expected, said
            shutil.rmtree(tmp_path / name)

    return survives


def wait_for_step(run, folder, step):
    """Until the log has a step."""
    log = folder / "log.jsonl"
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert run.processes[0].is_alive(), run.output
        time.sleep(0.002)


@pytest.mark.parametrize(("processes", "workers"), SETTINGS)
def test_a_killed_run_ends_as_if_it_had_not_been(survives, processes, workers):
    survives(processes, workers, times=1, seed=processes * 10 + workers, **(MUON if workers else {}))


def test_a_killed_run_on_packed_rows_ends_as_if_it_had_not_been(survives):
    survives(2, 0, times=1, seed=5, packing="packed", gradient_accumulation_steps=2)


STREAM = {
    "streaming": True,
    "shuffle_buffer_size": 25,
    "max_train_samples": None,
    "num_train_epochs": None,
    "max_steps": 60,
    "max_eval_samples": 10,
}


@pytest.mark.parametrize(("processes", "workers"), [(2, 2)])
def test_a_killed_run_on_a_stream_ends_as_if_it_had_not_been(survives, processes, workers):
    """Blocks of 25 texts, and epochs of about 200: the end of both is passed within steps and between them."""
    survives(processes, workers, times=1, seed=processes * 10 + workers, **STREAM)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), SETTINGS)
def test_twenty_killed_runs_on_a_stream_end_as_if_they_had_not_been(survives, processes, workers):
    survives(processes, workers, times=20, seed=200 + processes * 10 + workers, **STREAM)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), SETTINGS)
def test_thirty_killed_runs_end_as_if_they_had_not_been(survives, processes, workers):
    survives(processes, workers, times=30, seed=100 + processes * 10 + workers)


# --- Asked to stop ---------------------------------------------------------------------------------------------------


def signal_at(number, step, evaluating=False):
    """In a process to be: let it send itself a signal in a step, or in the evaluation after it."""
    from hf_tfenc.tasks.masked_lm import MaskedLM
    from hf_tfenc.training import trainer

    training_step, measure, counts = trainer.training_step, MaskedLM.measure, {"steps": 0}

    def counted_step(*args, **kwargs):
        counts["steps"] += 1
        if counts["steps"] == step and not evaluating:
            os.kill(os.getpid(), number)
        return training_step(*args, **kwargs)

    def counted_measure(*args, **kwargs):
        if evaluating and counts["steps"] == step:
            os.kill(os.getpid(), number)
        return measure(*args, **kwargs)

    trainer.training_step, MaskedLM.measure = counted_step, counted_measure


@pytest.mark.parametrize(
    ("number", "step", "evaluating", "processes"),
    [
        (signal.SIGTERM, 7, False, 1),
        (signal.SIGUSR1, 8, True, 1),
        (signal.SIGINT, 1, False, 2),
        (signal.SIGTERM, 16, True, 2),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(options, tmp_path, number, step, evaluating, processes):
    Run(options("whole"), tmp_path / "whole.log", processes).finish()
    log = tmp_path / "stopped.log"
    before = functools.partial(signal_at, number, step, evaluating)
    stopped = Run(options("stopped"), log, processes, before=before)
    assert stopped.wait() == [75] * processes, stopped.output
    again = f"accelerate launch train.py --config {tmp_path / 'stopped' / 'train_config.yaml'}"
    assert f"Stopped by {number.name} after step {step}. To go on from there: {again}\n" in stopped.output
    assert stopped.output.count("Stopped by") == 1 and "Traceback" not in stopped.output
    verify(tmp_path / "stopped" / f"checkpoint-{step:06}")
    assert (
        f"goes on from {tmp_path / 'stopped'}/checkpoint-{step:06}" in Run(options("stopped"), log, processes).finish()
    )
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


def test_a_signal_to_one_process_stops_all_at_one_step(options, tmp_path):
    stopped = Run(options(max_steps=2000, eval_steps=3000, save_steps=3000), tmp_path / "log", processes=2)
    stopped.wait_for("steps,")
    os.kill(stopped.processes[1].pid, signal.SIGTERM)
    assert stopped.wait() == [75, 75], stopped.output
    assert "Stopped by a signal to another process after step" in stopped.output


def in_the_last_evaluation(number):
    """In a process to be: let it send itself a signal when the finished model is measured."""
    from hf_tfenc.training import run

    load_best = run.load_best
    run.load_best = lambda *args: (load_best(*args), os.kill(os.getpid(), number))[0]


def test_a_signal_in_the_last_evaluation(options, tmp_path):
    before = functools.partial(in_the_last_evaluation, signal.SIGTERM)
    stopped = Run(options(max_steps=4), tmp_path / "log", before=before)
    assert stopped.wait() == [75], stopped.output
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert "goes on from" in Run(options(max_steps=4), tmp_path / "log").finish()
    assert (tmp_path / "out" / "metrics.json").exists()


def save_slowly():
    """In a process to be: let a save say that it has begun, and last for ever."""
    from hf_tfenc.training.checkpointing import OutputFolder

    def save(*args, **kwargs):
        print("saving", flush=True)
        while signal.getsignal(signal.SIGINT) != signal.SIG_DFL:
            time.sleep(0.01)
        print("told to stop", flush=True)
        while True:
            time.sleep(0.01)

    OutputFolder.save = save


def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_stays(options, tmp_path):
    first = Run(options(max_steps=6, eval_steps=100, save_steps=3), tmp_path / "log")
    first.finish()
    (tmp_path / "out" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "out" / "checkpoint-000006")
    stopped = Run(options(max_steps=6, eval_steps=100, save_steps=3), tmp_path / "log", before=save_slowly)
    stopped.wait_for("saving")
    stopped.send(signal.SIGINT)
    stopped.wait_for("told to stop")
    assert stopped.processes[0].is_alive()
    stopped.send(signal.SIGINT)
    assert stopped.wait() == [-signal.SIGINT]
    assert newest_whole(tmp_path / "out").name == "checkpoint-000003"


@pytest.mark.parametrize("where", ["in_the_making_of_the_model", "in_the_reading_of_a_file"])
def test_a_signal_before_training_ends_with_the_same_code(options, tmp_path, where):
    stopped = Run(options(), tmp_path / "log", before=functools.partial(globals()[where], signal.SIGTERM))
    assert stopped.wait() == [75], stopped.output
    assert "Stopped by SIGTERM; there was nothing to save." in stopped.output and not (tmp_path / "out").exists()


def in_the_making_of_the_model(number):
    from hf_tfenc.training import run

    run.make_model = lambda *args: os.kill(os.getpid(), number)


def in_the_reading_of_a_file(number):
    from hf_tfenc.data import files

    files._load = lambda *args: os.kill(os.getpid(), number)


def test_a_folder_that_another_run_has_had_meanwhile_is_left_as_it_is(options, tmp_path):
    meanwhile = functools.partial(another_run_in_the_making_of_the_model, options(cpu_threads=1))
    late = Run(options(cpu_threads=1), tmp_path / "log", before=meanwhile)
    assert late.wait() == [2] and "has been changed by another run since this one began" in late.output, late.output
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["eval_loss"] > 0
    assert not list((tmp_path / "out").glob("*.set-aside"))


def another_run_in_the_making_of_the_model(options):
    """A whole one, in a process of its own, while this one has seen nothing in the folder and does not hold it."""
    from hf_tfenc.training import run

    make_model, log = run.make_model, Path(options["output_dir"]).parent / "other.log"

    def late(*args):
        Run(options, log).finish()
        return make_model(*args)

    run.make_model = late


def test_two_runs_do_not_share_a_folder(options, tmp_path):
    endless = {"max_steps": 2000, "eval_steps": 3000}
    first = Run(options(**endless), tmp_path / "first.log")
    wait_for_step(first, tmp_path / "out", 6)
    others = [Run(options(**endless, overwrite_output_dir=b), tmp_path / f"{b}.log") for b in (False, True)]
    for other in others:
        assert other.wait() == [2] and "is in use by another run, which may still be saving: wait" in other.output
    first.kill()
    again = Run(options(**endless), tmp_path / "first.log")  # the kernel let go of it
    again.wait_for("It goes on from")
    again.kill()


# --- Going on from where one likes -----------------------------------------------------------------------------------


def test_a_checkpoint_can_be_named_and_newer_ones_step_aside(options, tmp_path):
    Run(options("whole", save_total_limit=10), tmp_path / "log").finish()
    expected = result(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "back")
    back = options("back", save_total_limit=10, resume_from_checkpoint=str(tmp_path / "back" / "checkpoint-000010"))
    said = Run(back, tmp_path / "log").finish()
    assert "No longer part of this run" in said and (tmp_path / "back" / "checkpoint-000015.set-aside").is_dir()
    assert result(tmp_path / "back") == expected

    # An abandoned way leaves no best model behind.
    again = {"resume_from_checkpoint": str(tmp_path / "back" / "checkpoint-000010"), "resume_with_changes": True}
    Run(options("back", save_total_limit=10, max_steps=16, learning_rate=1e-6, **again), tmp_path / "log").finish()
    abandoned = result(tmp_path / "back")
    measured = [record["eval_loss"] for record in abandoned["log"] if "eval_loss" in record]
    assert abandoned["metrics"]["eval_loss"] == pytest.approx(min(measured), rel=1e-5)

    # Nor does one that other rows have chosen.
    (tmp_path / "hard.txt").write_text("\n".join(f"{number:x} zzz {number**7}" for number in range(40)))
    Run(
        options("back", save_total_limit=10, validation_file=[str(tmp_path / "hard.txt")], max_steps=16, **again),
        tmp_path / "log",
    ).finish()
    of_other_rows = result(tmp_path / "back")
    measured = [
        record["eval_loss"] for record in of_other_rows["log"] if "eval_loss" in record and record["step"] > 10
    ]
    assert of_other_rows["metrics"]["eval_loss"] == pytest.approx(min(measured), rel=1e-5)
    assert min(measured) > 1.1 * abandoned["metrics"]["eval_loss"]

    other = options("other", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-000010"))
    assert "The best model so far stays in" in Run(other, tmp_path / "log").finish()
    there = result(tmp_path / "other")
    assert there["log"] == expected["log"] and there["state"] == expected["state"]


def test_auto_takes_the_newest_whole_checkpoint_and_names_the_broken_ones(options, tmp_path, caplog):
    steps = {"save_total_limit": 10, "save_steps": 4}  # the best model, wherever it is found, is in a checkpoint, too
    Run(options(**steps), tmp_path / "log").finish()
    folder, expected = tmp_path / "out", result(tmp_path / "out")
    (folder / "metrics.json").unlink()
    newest = checkpoints(folder)
    (newest[-1] / "optimizer.safetensors").unlink()
    (newest[-2] / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    said = Run(options(**steps), tmp_path / "again.log").finish()
    assert f"{newest[-1]} lacks optimizer.safetensors: this checkpoint is skipped." in said
    assert f"{newest[-2]} holds pytorch_model.bin, which its manifest.json does not list" in said
    assert f"goes on from {newest[-3]}" in said and said.count("is skipped") == 2
    assert result(folder) == expected


def test_a_run_without_a_whole_checkpoint_starts_afresh(options, tmp_path):
    Run(options(max_steps=6), tmp_path / "log").finish()
    folder, expected = tmp_path / "out", result(tmp_path / "out")
    (folder / "metrics.json").unlink()
    for checkpoint in checkpoints(folder):
        (checkpoint / "manifest.json").write_text("{")
    said = Run(options(max_steps=6), tmp_path / "again.log").finish()
    assert "without a whole checkpoint: it starts afresh" in said and "has no readable manifest.json" in said
    assert result(folder) == expected


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nothing", "is no folder: give that of a checkpoint, auto or none"),
        ("out", "holds checkpoints: give one of them, such as"),
        ("out/checkpoint-000002", "lacks config.json. Give another one, or auto."),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(tiny, train_file, tmp_path, named, said):
    args = tiny(train_file=[train_file], sample_by="line", max_steps=2)
    run(args)
    (tmp_path / "out" / "checkpoint-000002" / "config.json").unlink()
    with pytest.raises(OptionError, match=said):
        run(tiny(train_file=[train_file], max_steps=2, resume_from_checkpoint=str(tmp_path / named)))


# --- Changes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(options, tmp_path):
    """A run of 8 steps that was stopped after 4, and how to call it again."""
    before = functools.partial(signal_at, signal.SIGTERM, 4)
    Run(options(max_steps=8), tmp_path / "first.log", before=before).wait()

    def again(processes=1, **others):
        call = Run(options(**{"max_steps": 8, **others}), tmp_path / f"{len(list(tmp_path.iterdir()))}.log", processes)
        return call.wait(), call.output

    return again


def test_what_matters_and_has_changed_is_an_error_that_names_it(interrupted, tmp_path, train_file, texts):
    checkpoint = tmp_path / "out" / "checkpoint-000004"
    for others, said in [
        ({"learning_rate": 0.5}, "--learning_rate 0.01 then and 0.5 now"),
        ({"seed": 3, "max_seq_length": 24}, "--max_seq_length 32 then and 24 now; --seed 42 then and 3 now"),
        ({"gradient_accumulation_steps": 4}, "--gradient_accumulation_steps 2 then and 4 now"),
        ({"config_overrides": '{"hidden_size": 16, "num_attention_heads": 2}'}, "--config_overrides"),
    ]:
        codes, output = interrupted(**others)
        assert codes == [2] and f"Error: {checkpoint} belongs to another run ({said}" in output, output
        assert "--resume_with_changes" in output and output.count("Error") == 1
    Path(train_file).write_text("\n".join(texts[5:]))
    codes, output = interrupted()
    assert codes == [2] and "other rows in the train split" in output, output
    moved = tmp_path / "moved.txt"
    moved.write_text("\n".join(texts))
    assert interrupted(train_file=[str(moved)])[0] == [0]


def test_a_learning_rate_left_to_the_run_is_compared_too(interrupted):
    codes, output = interrupted(learning_rate=None)
    assert codes == [2] and "--learning_rate 0.01 then and 0.015625 now" in output, output


def test_another_optimizer_begins_anew_and_another_shape_is_refused(interrupted):
    wider = '{"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}'
    codes, output = interrupted(config_overrides=wider, resume_with_changes=True)
    assert codes == [2] and "its shape cannot change on the way" in output and "LOAD REPORT" not in output, output
    codes, output = interrupted(optim="muon", resume_with_changes=True)
    assert codes == [0] and "--optim adamw then and muon now" in output, output


def test_a_tokenizer_that_was_trained_stays(interrupted, tmp_path):
    """It is in the checkpoint, so its options would change nothing."""
    codes, output = interrupted(vocab_size=400, resume_with_changes=True)
    assert codes == [2] and "which cannot change (--vocab_size" in output and "then and 400 now" in output, output
    assert interrupted()[0] == [0]
    codes, output = interrupted(vocab_size=400)
    assert codes == [2] and "holds a finished run with vocab_size" in output and "go on with it" not in output, output


def test_changes_can_be_allowed(interrupted, tmp_path):
    codes, output = interrupted(learning_rate=0.5, resume_with_changes=True)
    assert codes == [0] and "This is no longer the run of" in output
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert max(record.get("learning_rate", 0) for record in log) > 0.1


def test_rows_in_another_arrangement_begin_their_epoch_anew(interrupted, tmp_path):
    """What was consumed were bins of the old one."""
    codes, output = interrupted(packing="packed", resume_with_changes=True, logging_steps=1)
    assert codes == [0] and "--packing padded then and packed now" in output, output
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    epochs = {record["step"]: record["epoch"] for record in log if "grad_norm" in record}
    assert epochs[5] < max(epoch for step, epoch in epochs.items() if step < 5)


def test_what_changes_bits_alone_is_a_warning(interrupted):
    codes, output = interrupted(cpu_threads=2, attn_implementation="eager", logging_steps=4)
    assert codes == [0], output
    assert "The last bits of results may differ" in output and "threads 1 then and 2 now" in output
    assert "--attn_implementation not given then and eager now" in output and "logging" not in output


def test_another_stream_is_another_run(options, tmp_path, train_file, texts):
    before = functools.partial(signal_at, signal.SIGTERM, 4)
    Run(options(**STREAM), tmp_path / "first.log", before=before).wait()
    Path(train_file).write_text("\n".join([*texts, "one more"]))
    refused = Run(options(**STREAM), tmp_path / "second.log")
    assert refused.wait() == [2] and "other rows in the train split" in refused.output
    Path(train_file).write_text("\n".join(texts))
    refused = Run(options(**STREAM | {"shuffle_buffer_size": 30}), tmp_path / "third.log")
    assert refused.wait() == [2] and "--shuffle_buffer_size 25 then and 30 now" in refused.output
    changed = Run(
        options(**STREAM | {"shuffle_buffer_size": 30, "resume_with_changes": True}), tmp_path / "fourth.log"
    )
    assert "This is no longer the run of" in changed.finish()


def test_another_number_of_processes_says_what_it_changes(interrupted):
    codes, output = interrupted(processes=2)
    assert codes == [0, 0], output
    assert "A step now takes 4 micro-batches, not 2" in output and "--gradient_accumulation_steps 1 would" in output
    assert "processes 1 then and 2 now" in output and output.count("A step now takes") == 1


def test_nothing_is_said_where_nothing_has_changed(interrupted):
    codes, output = interrupted()
    assert codes == [0] and "may differ" not in output and "no longer" not in output
