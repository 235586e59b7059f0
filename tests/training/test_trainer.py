"""The loop: one gradient however a step is split, and a run that depends on its options alone."""

import copy
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict

from hf_tfenc.data.batching import PaddedBins
from hf_tfenc.data.collators import EncodedRows
from hf_tfenc.presets import preset_config
from hf_tfenc.tasks.masked_lm import MaskedLM
from hf_tfenc.training.arguments import RunError
from hf_tfenc.training.monitor import Monitor
from hf_tfenc.training.signals import Interrupted
from hf_tfenc.training.trainer import Totals, Trainer, in_groups, training_step

NO_DROPOUT = {"embedding_dropout": 0.0, "hidden_dropout": 0.0, "mlp_dropout": 0.0}
CLOSE = {"rel": 1e-5}
TRAIN = Path(__file__).parents[2] / "train.py"


@pytest.fixture(scope="module")
def splits(texts):
    return DatasetDict(
        train=Dataset.from_dict({"text": texts[:60]}), validation=Dataset.from_dict({"text": texts[60:80]})
    )


@pytest.fixture
def make_trainer(tiny, tokenizer, splits):
    """A trainer with the options given, over `rows` training rows."""

    def make_trainer(rows=None, **options):
        args = tiny(
            **{"optim": "adamw", "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 1.0, **options}
        )
        task = MaskedLM(args, tokenizer)
        encoded = task.encode(splits)
        train = encoded["train"] if rows is None else encoded["train"].select(range(rows))
        set_seed(args.seed)
        config = preset_config(
            args.preset, vocab_size=len(tokenizer), **args.parsed_config_overrides(), **task.config_options
        )
        model = task.auto_class.from_config(config)
        return Trainer(args, task, model, train, encoded["validation"], Accelerator(cpu=True))

    return make_trainer


def overrides(**options):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return json.dumps(sizes | options)


class NoFolder:
    """Stands for an output folder, and notes what would be saved there."""

    def __init__(self):
        self.kept, self.saved = [], []

    def keep(self, model):
        self.kept.append(model)
        return True

    def save(self, step, model, optimizer, state, best_step, required):
        self.saved.append((step, copy.deepcopy(state)))

    def publish(self, step):
        pass


def trained(trainer, path, output=None):
    """The log of a whole run, without what depends on the clock."""
    monitor = Monitor(path / f"{len(list(path.iterdir()))}.jsonl", trainer.total_steps, 6.0, active=True)
    trainer.train(monitor, output or NoFolder())
    monitor.close()
    records = [json.loads(line) for line in (path / monitor.log.name).read_text().splitlines()]
    for record in records:
        record.pop("tokens_per_second", None)
    return records


def losses(records):
    return [record["loss"] for record in records if "loss" in record]


# --- A step ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(make_trainer):
    """16 rows, whole and in parts, with very different numbers of labels."""
    trainer = make_trainer()
    rows = EncodedRows(trainer.train_loader.dataset.rows).__getitems__([(0, row) for row in range(16)])
    collator = trainer.task.collator(training=True)

    def batches(size):
        made = [collator(rows[start : start + size]) for start in range(0, 16, size)]
        for index in range(16 - 4):  # the first rows keep one label each
            batch, row = made[index // size], index % size
            labelled = (batch["labels"][row] >= 0).nonzero().flatten()
            batch["labels"][row, labelled[1:]] = -100
        for batch in made:
            batch["prediction_positions"] = (batch["labels"].flatten() >= 0).nonzero().flatten()
        return made

    return batches


def test_a_steps_loss_is_the_mean_over_its_items(make_trainer, batches):
    trainer = make_trainer(config_overrides=overrides(**NO_DROPOUT))
    (whole,), parts = batches(16), batches(4)
    model = copy.deepcopy(trainer.model).train()
    expected = model(**whole).loss
    expected.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()

    count = trainer.task.count_items
    step = training_step(trainer.accelerator, trainer.model, trainer.optimizer, parts, trainer.task)
    loss, items, grad_norm = step.loss, step.items, step.grad_norm
    assert step.finite and not step.stop
    assert items == count(whole) and len({count(part).item() for part in parts}) > 1
    assert loss.item() == pytest.approx(expected.item(), **CLOSE) and not loss.requires_grad
    assert grad_norm.item() == pytest.approx(norm.item(), **CLOSE)
    for parameter, same in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_step_in_parts_is_the_step_in_one(make_trainer, batches, size):
    def curve(size):
        trainer = make_trainer(config_overrides=overrides(**NO_DROPOUT))
        arguments = (
            trainer.accelerator,
            trainer.model.train(),
            trainer.optimizer,
            batches(size),
            trainer.task,
        )
        return [training_step(*arguments, max_grad_norm=1.0).loss.item() for _ in range(10)]

    whole = curve(16)
    assert curve(size) == pytest.approx(whole, **CLOSE) and whole[-1] < whole[0] - 0.1


def test_gradients_are_clipped_to_the_norm_asked_for(make_trainer, batches):
    trainer = make_trainer()
    arguments = trainer.accelerator, trainer.model, trainer.optimizer, batches(16), trainer.task
    for limit, norm in ((0.01, 0.01), (0.0, None)):
        found = training_step(*arguments, max_grad_norm=limit).grad_norm.item()
        left = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item()
        assert left == pytest.approx(norm or found, rel=1e-3) and found > 0.1


def test_a_step_without_items_is_no_crash_and_no_gradient(make_trainer):
    trainer = make_trainer()
    empty = [trainer.task.collator(training=True)([]) for _ in range(2)]
    step = training_step(trainer.accelerator, trainer.model, trainer.optimizer, empty, trainer.task)
    assert (step.loss.item(), step.items.item(), step.grad_norm.item()) == (0, 0, 0)


def test_in_groups():
    assert list(in_groups(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_totals_are_sums_over_items():
    totals = Totals()
    totals.add(torch.tensor(2.0), torch.tensor(3), tokens=10)
    totals.add(torch.tensor(4.0), torch.tensor(1), tokens=20)
    assert totals.read() == (10.0, 4, 30)


def test_totals_go_on_where_they_were():
    totals = Totals(10.0, 4, 30)
    totals.add(torch.tensor(1.0), torch.tensor(2), tokens=5)
    totals.started -= 10
    assert totals.read() == (12.0, 6, 35) and totals.tokens_per_second(35) == pytest.approx(0.5, rel=0.01)


# --- A run -----------------------------------------------------------------------------------------------------------


def test_one_seed_gives_one_curve_and_workers_change_nothing(make_trainer, tmp_path):
    first = trained(make_trainer(num_train_epochs=2, gradient_accumulation_steps=2), tmp_path)
    torch.rand(5)
    assert trained(make_trainer(num_train_epochs=2, gradient_accumulation_steps=2), tmp_path) == first
    with_workers = make_trainer(num_train_epochs=2, gradient_accumulation_steps=2, dataloader_num_workers=2)
    assert trained(with_workers, tmp_path) == first  # dropout included
    other = trained(make_trainer(num_train_epochs=2, gradient_accumulation_steps=2, seed=2), tmp_path)
    assert losses(other) != losses(first)


def test_accumulated_runs_equal_whole_ones(make_trainer, tmp_path):
    """Where an epoch is one step, its rows are the same for every size of the micro-batch."""

    def curve(batch_size, accumulation):
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        options = {"num_train_epochs": 12, "config_overrides": overrides(**NO_DROPOUT)}
        return losses(trained(make_trainer(rows=16, **sizes, **options), tmp_path))

    whole = curve(16, 1)
    assert len(whole) == 12 and whole[-1] < whole[0] - 0.1
    assert curve(4, 4) == pytest.approx(whole, **CLOSE)
    assert curve(3, 8) == pytest.approx(whole, **CLOSE)  # with empty bins


def test_epochs_average_over_items(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=3, seed=5)
    records = trained(trainer, tmp_path)
    rows, task = EncodedRows(trainer.train_loader.dataset.rows), trainer.task
    lengths = np.array([len(ids) for ids in rows.rows["input_ids"]])
    for epoch in range(3):
        bins = PaddedBins(8)(lengths, 5, epoch)
        batches = [task.collator(training=True)(rows.__getitems__([(epoch, row) for row in bin])) for bin in bins]
        items = [task.count_items(batch).item() for batch in batches]
        of_epoch = [record for record in records if "loss" in record and epoch < record["epoch"] <= epoch + 1]
        assert len(of_epoch) == len(bins) and of_epoch[-1]["step"] == (epoch + 1) * len(bins)
        average = sum(r["loss"] * n for r, n in zip(of_epoch, items, strict=True)) / sum(items)
        (reported,) = [r["train_loss"] for r in records if "train_loss" in r and r["epoch"] == epoch + 1]
        assert reported == pytest.approx(average, **CLOSE)
        assert len(set(items)) > 1 and abs(np.mean([r["loss"] for r in of_epoch]) - average) > 1e-6
        assert of_epoch[-1]["tokens"] == (epoch + 1) * lengths.sum()


@pytest.mark.parametrize("logging_steps", [3, 1000])
def test_logging_less_often_logs_averages(make_trainer, tmp_path, logging_steps):
    each = trained(make_trainer(num_train_epochs=2), tmp_path)
    seldom = trained(make_trainer(num_train_epochs=2, logging_steps=logging_steps, eval_steps=2), tmp_path)
    assert [r["train_loss"] for r in seldom if "train_loss" in r] == pytest.approx(
        [r["train_loss"] for r in each if "train_loss" in r], **CLOSE
    )
    per_epoch = max(r["step"] for r in each) // 2
    logged = {r["step"] for r in seldom if "loss" in r}
    assert logged == {
        step for step in range(1, 2 * per_epoch + 1) if step % logging_steps == 0 or step % per_epoch == 0
    }


def test_steps_and_evaluations_come_when_they_are_asked_for(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=10, eval_steps=4)
    records = trained(trainer, tmp_path)
    assert trainer.steps_per_epoch > 10
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 11))
    assert [r["step"] for r in records if "eval_loss" in r] == [4, 8, 10]
    assert [r["step"] for r in records if "train_loss" in r] == [10]
    assert records[0].keys() == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens"}


def test_the_model_trains_in_training_mode_after_each_evaluation(make_trainer, tmp_path):
    trainer, modes = make_trainer(max_steps=5, eval_steps=1), []
    trainer.model.register_forward_pre_hook(lambda model, _: modes.append(model.training))
    trained(trainer, tmp_path)
    evaluation = [False] * len(trainer.evaluation.loader)
    assert modes == [True, *evaluation] * 5


def test_evaluation_counts_every_row_once(make_trainer, splits, tokenizer):
    trainer, totals = make_trainer(per_device_eval_batch_size=7), Counter()
    measure = trainer.task.measure
    trainer.task.measure = lambda model, batch: totals.update(rows=len(batch["labels"])) or measure(model, batch)
    metrics = trainer.evaluate()
    assert totals["rows"] == len(trainer.evaluation.loader.dataset)
    assert metrics == trainer.evaluate() and set(metrics) >= {"eval_loss", "eval_accuracy", "eval_loss_per_byte"}
    assert make_trainer(per_device_eval_batch_size=100).evaluate()["eval_loss"] == pytest.approx(
        metrics["eval_loss"], **CLOSE
    )


def test_evaluation_is_no_part_of_the_training_speed(make_trainer, tmp_path, monkeypatch):
    clock = [0.0]

    def taking(seconds, function):
        def timed(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)

        return timed

    monkeypatch.setattr("hf_tfenc.training.trainer.training_step", taking(1, training_step))
    monkeypatch.setattr(Trainer, "evaluate", taking(100, Trainer.evaluate))
    trainer, seen = make_trainer(max_steps=10, logging_steps=4, eval_steps=3), []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monitor = Monitor(tmp_path / "log.jsonl", 10, 6.0, active=True)
    monkeypatch.setattr(monitor, "training", seen.append)
    result = trainer.train(monitor, NoFolder())
    tokens = [0, *(record["tokens"] for record in seen)]
    speeds = [(now - before) / steps for before, now, steps in zip(tokens, tokens[1:], (4, 4, 2), strict=False)]
    assert [record["tokens_per_second"] for record in seen] == pytest.approx(speeds)
    assert result["train_runtime"] == 410 and result["train_tokens_per_second"] == pytest.approx(tokens[-1] / 410)


@pytest.mark.parametrize(("best", "kept"), [(True, [5.0, 3.0]), (False, [5.0, 3.0, 4.0])])
def test_what_is_kept(make_trainer, tmp_path, monkeypatch, best, kept):
    results = iter([5.0, 3.0, 3.5, 4.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, signals: {"eval_loss": next(results)})
    trainer, steps = make_trainer(max_steps=8, eval_steps=2, load_best_model_at_end=best), []
    output = NoFolder()
    output.keep = lambda model: steps.append(trainer.progress.global_step) or True
    records = trained(trainer, tmp_path, output)
    loss_at = {r["step"]: r["eval_loss"] for r in records if "eval_loss" in r}
    assert [loss_at[step] for step in steps] == kept


@pytest.mark.slow
def test_packed_training_compiles_once(make_trainer, tmp_path):
    """And learns the same."""
    losses = []
    for compiled in (True, False):
        torch._dynamo.reset()
        counted = torch._dynamo.utils.counters["stats"]
        counted.clear()
        options = {"packing": "packed", "tokens_per_batch": 256, "max_steps": 25, "logging_steps": 1}
        no_dropout = {f"{part}_dropout": 0.0 for part in ("embedding", "hidden", "attention", "mlp")}
        trainer = make_trainer(**options, torch_compile=compiled, config_overrides=overrides(**no_dropout))
        losses.append([r["loss"] for r in trained(trainer, tmp_path, NoFolder()) if "grad_norm" in r])
        assert counted["unique_graphs"] == compiled
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 25


@pytest.mark.parametrize(
    ("asked", "kept"), [(None, 2), ("loss", 2), ("eval_accuracy", 8), ("perplexity", 6), ("loss_per_byte", 8)]
)
def test_what_says_which_model_is_the_best(make_trainer, tmp_path, monkeypatch, asked, kept):
    """A higher accuracy is better, then a lower loss; what is not a number is never the best."""
    measured = {
        "eval_loss": [1.0, 3.0, 2.5, 2.0],
        "eval_accuracy": [0.1, 0.3, 0.2, 0.3],
        "eval_perplexity": [math.nan, 3.0, 2.0, 2.1],
        "eval_loss_per_byte": [4.0, 3.0, 2.0, 1.0],
    }
    results = iter([dict(zip(measured, values, strict=True)) for values in zip(*measured.values(), strict=True)])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, signals: next(results))
    trainer = make_trainer(max_steps=8, eval_steps=2, metric_for_best_model=asked)
    trained(trainer, tmp_path, NoFolder())
    assert trainer.progress.best_step == kept


def test_a_metric_that_is_not_measured_is_named_before_training(make_trainer, monkeypatch):
    monkeypatch.setattr(MaskedLM, "metrics", lambda self, measured: {"eval_loss": 1.0, "eval_perplexity": 2.0})
    with pytest.raises(
        RunError, match=r"^--metric_for_best_model accuracy is not measured here; loss, perplexity are\.$"
    ):
        make_trainer(max_steps=2, metric_for_best_model="accuracy")


def test_another_metric_begins_anew(make_trainer, tmp_path, monkeypatch):
    results = iter([{"eval_loss": loss, "eval_accuracy": 0.1} for loss in (3.0, 2.0)])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, signals: next(results))
    trainer = make_trainer(max_steps=4, eval_steps=2)
    trainer.progress.best_name, trainer.progress.best_metric = "eval_accuracy", 0.9
    trained(trainer, tmp_path, NoFolder())
    assert (trainer.progress.best_name, trainer.progress.best_metric) == ("eval_loss", -2.0)


def test_a_model_that_could_not_be_kept_is_not_the_best_one(make_trainer, tmp_path, monkeypatch):
    results = iter([5.0, 3.0, 4.0, 4.5])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, signals: {"eval_loss": next(results)})
    trainer, output, steps = make_trainer(max_steps=8, eval_steps=2), NoFolder(), []
    output.keep = lambda model: steps.append(trainer.progress.global_step) or trainer.progress.global_step != 4
    trained(trainer, tmp_path, output)
    assert steps == [2, 4, 6] and (trainer.progress.best_metric, trainer.progress.best_step) == (-4.0, 6)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"save_steps": 4}, [4, 8, 10]),
        ({"eval_steps": 5}, [5, 10]),
        ({"eval_steps": 5, "save_steps": 3}, [3, 6, 9, 10]),
    ],
)
def test_checkpoints_come_when_they_are_asked_for(make_trainer, tmp_path, options, steps):
    output = NoFolder()
    trained(make_trainer(max_steps=10, **options), tmp_path, output)
    assert [step for step, _ in output.saved] == steps
    assert [state["progress"]["global_step"] for _, state in output.saved] == steps


# --- Numbers that are none -------------------------------------------------------------------------------------------


def spoil(trainer, steps):
    """Make the loss of these steps infinite."""

    def hook(model, arguments, output):
        if model.training and trainer.progress.global_step + 1 in steps:
            output.loss = output.loss * math.inf
        return output

    trainer.model.register_forward_hook(hook)


def weights(trainer):
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])


def test_a_step_that_is_not_finite_changes_no_weight_and_names_its_rows(make_trainer, tmp_path):
    trainer, seen = make_trainer(max_steps=5, per_device_train_batch_size=4, gradient_accumulation_steps=2), []
    spoil(trainer, {3})
    trainer.model.register_forward_pre_hook(lambda model, _: seen.append(weights(trainer)) if model.training else None)
    records = trained(trainer, tmp_path)
    before = [seen[index] for index in range(0, 10, 2)]  # each step
    assert before[2].equal(before[3]) and not any(before[i].equal(before[i + 1]) for i in (0, 1, 3))
    (skipped,) = [record for record in records if record.get("skipped")]
    bins = PaddedBins(4)(np.array(trainer.train_bins.lengths), 42, 0)
    assert skipped == {"step": 3, "skipped": True, "loss": None, "rows": [int(r) for b in bins[4:6] for r in b]}
    assert [record["loss"] is None for record in records if "grad_norm" in record] == [i == 2 for i in range(5)]


def test_what_is_heard_of_a_step_one_step_later_is_the_same(make_trainer, tmp_path):
    """On a GPU the next step is under way before the last one is judged."""
    runs = []
    for lag in (0, 1):
        trainer, output = make_trainer(max_steps=10, logging_steps=4, save_steps=5), NoFolder()
        trainer.lag = lag
        spoil(trainer, {3, 8})
        records = trained(trainer, tmp_path, output)
        saved = [state["progress"] | {"seconds": None} for _, state in output.saved]
        runs.append((records, saved, weights(trainer)))
    assert [record["step"] for record in runs[0][0] if record.get("skipped")] == [3, 8]
    assert runs[0][:2] == runs[1][:2] and runs[0][2].equal(runs[1][2])


@pytest.mark.parametrize("lag", [0, 1])
def test_a_run_that_is_asked_to_stop_does_so_within_the_lag(make_trainer, tmp_path, lag):
    trainer, output = make_trainer(max_steps=10, logging_steps=100), NoFolder()
    trainer.lag = lag
    names = [None] * 3 + ["SIGTERM"] * 7  # from the fourth step on
    trainer.model.register_forward_pre_hook(
        lambda model, _: setattr(trainer.signals, "name", names[trainer.progress.global_step])
    )
    with pytest.raises(Interrupted, match=f"after step {4 + lag}"):
        trained(trainer, tmp_path, output)
    ((step, state),) = output.saved
    assert step == state["progress"]["consumed_bins"] == 4 + lag


def test_too_many_such_steps_end_the_run_with_the_last_good_state(make_trainer, tmp_path):
    trainer, output, last_good = make_trainer(max_steps=50, max_skipped_steps=3, eval_steps=100), NoFolder(), []
    spoil(trainer, {2, 3, *range(5, 50)})
    trainer.model.register_forward_pre_hook(
        lambda model, _: last_good.append(weights(trainer)) if trainer.progress.global_step == 4 else None
    )
    with pytest.raises(
        ValueError, match=r"^3 steps in a row, up to step 7, .* were skipped: .* holds the last good .*\.$"
    ):
        trained(trainer, tmp_path, output)
    ((step, state),) = output.saved
    assert step == 7 and state["progress"]["consumed_bins"] == 7 and weights(trainer).equal(last_good[0])
    assert state["progress"]["skipped_in_a_row"] == 0  # a run that goes on has all of them again


def test_a_run_that_ends_so_at_an_epochs_end_can_go_on(make_trainer, tmp_path):
    trainer, output = make_trainer(rows=32, num_train_epochs=3, max_skipped_steps=2), NoFolder()
    spoil(trainer, {3, 4})
    with pytest.raises(RunError):
        trained(trainer, tmp_path, output)
    progress = output.saved[-1][1]["progress"]
    assert (progress["epoch"], progress["consumed_bins"], progress["evaluation_due"]) == (1, 0, True)


def test_a_diverged_run_stops_and_saves_nothing_of_it(make_trainer, tmp_path):
    trainer, output = (
        make_trainer(max_steps=50, learning_rate=1e30, max_grad_norm=0.0, max_skipped_steps=3),
        NoFolder(),
    )
    with pytest.raises(ValueError, match=r"^3 steps in a row, .* lower --learning_rate .* last whole checkpoint"):
        trained(trainer, tmp_path, output)
    assert trainer.progress.global_step < 50 and not output.saved and not output.kept


def test_a_held_out_loss_that_is_not_finite_ends_the_run(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda self, signals: {"eval_loss": math.nan})
    with pytest.raises(ValueError, match=r"^The held-out loss is nan at step 2, .* lower --learning_rate"):
        trained(make_trainer(max_steps=8, eval_steps=2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["classic-tiny", "modern-tiny"])  # with a buffer, and without
def test_two_processes_are_one_with_twice_the_accumulation(tiny, texts, tmp_path, preset):
    (tmp_path / "train.txt").write_text("\n".join(texts))

    def run(processes, accumulation):
        folder = tmp_path / f"{processes}x{accumulation}"
        options = tiny(
            preset=preset,
            config_overrides=overrides(**NO_DROPOUT) if preset == "classic-tiny" else overrides(),
            train_file=[str(tmp_path / "train.txt")],
            sample_by="line",
            output_dir=str(folder),
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=1000,  # one batch for two processes
            optim="adamw",
            learning_rate=1e-3,
            max_steps=12,
            eval_steps=5,
        )
        (tmp_path / "options.yaml").write_text(options.to_yaml())
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] * (processes == 2)
        command = [sys.executable, *launch, str(TRAIN), "--config", str(tmp_path / "options.yaml")]
        with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
            try:
                stdout, stderr = process.communicate(timeout=120)
            finally:
                process.terminate()  # torchrun ends its own children
        assert process.returncode == 0, stderr
        assert f"{processes} process" in stdout and stdout.count(": held-out loss") == 3  # said by one process
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return records, json.loads((folder / "metrics.json").read_text())

    (one, metrics_of_one), (two, metrics_of_two) = run(1, 4), run(2, 2)
    assert [r.keys() for r in two] == [r.keys() for r in one]
    for name in ("loss", "grad_norm", "tokens", "learning_rate", "eval_loss", "train_loss"):
        expected = [r[name] for r in one if name in r]
        assert [r[name] for r in two if name in r] == pytest.approx(expected, **CLOSE) and expected, name
    assert metrics_of_two["eval_loss"] == pytest.approx(metrics_of_one["eval_loss"], **CLOSE)
    assert yaml.safe_load((tmp_path / "2x2" / "train_config.yaml").read_text())["gradient_accumulation_steps"] == 2
