"""A dry run: what it says is what the run then is, and it writes no output folder."""

import json
import re
from pathlib import Path

import pytest
from launching import Run

from hf_tfenc.training import dry_run as dry_run_module
from hf_tfenc.training.arguments import Arguments, OptionError
from hf_tfenc.training.run import main, run
from hf_tfenc.training.trainer import training_step


@pytest.fixture
def train_file(tmp_path, texts):
    path = tmp_path / "data" / "train.txt"
    path.parent.mkdir()
    path.write_text("\n".join(texts))
    return str(path)


def said(text, name):
    """The line of a report that begins with a name."""
    (line,) = re.findall(rf"^{name}: (.*)$", text, re.MULTILINE)
    return line


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "length",
    [
        pytest.param({"max_steps": 7}, marks=pytest.mark.slow),
        pytest.param({"max_steps": 9, "eval_steps": 4}, marks=pytest.mark.slow),
        {"num_train_epochs": 2},
    ],
)
def test_it_says_what_the_run_then_is(tiny, train_file, tmp_path, capsys, length):
    options = {"train_file": [train_file], "sample_by": "line", "test_file": [train_file], **length}
    assert run(tiny(dry_run=True, **options)) == {} and not (tmp_path / "out").exists()
    report = capsys.readouterr().out.partition("\n\n")[2]  # what a run says before its first step is said before
    metrics = run(tiny(**options))
    out = capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    evaluations = sum("eval_loss" in record for record in records) + 1
    assert said(report, "steps").startswith(f"{metrics['train_steps']}, ")
    assert said(report, "steps").endswith(f" an epoch, with {evaluations} evaluations")
    assert said(report, "model") == f"{metrics['parameters']:,} parameters"
    assert said(report, "test").startswith("200 rows of the source")
    for split in ("train", "validation", "test"):
        tokens = re.findall(r"[\d,]+ tokens$", said(out, split))[0]
        assert any(line.startswith(f"{split}: ") and line.endswith(tokens) for line in report.splitlines())
    assert re.fullmatch(
        r"about \d+:\d\d, \d+:\d\d of it for evaluations; [\d,]+ tokens/s in training", said(report, "time")
    )
    memory = float(re.match(r"([\d.]+) GiB of RAM at the peak$", said(report, "memory"))[1])
    assert 0.05 < memory < 64


def test_it_leaves_a_folder_as_it_is(tiny, train_file, tmp_path, capsys):
    options = {"train_file": [train_file], "sample_by": "line", "max_steps": 2}
    run(tiny(**options))
    before = files(tmp_path / "out")
    assert run(tiny(dry_run=True, **options)) == {} and files(tmp_path / "out") == before
    main([*(f"--{name}={value}" for name, value in flat(tiny(**options)).items()), "--dry_run"])
    assert files(tmp_path / "out") == before and "A dry run writes no output folder" in capsys.readouterr().out
    assert "dry_run" not in (tmp_path / "out" / "train_config.yaml").read_text()


def flat(args):
    defaults = vars(Arguments())
    options = {name: value for name, value in vars(args).items() if value != defaults[name]}
    return {name: value[0] if isinstance(value, list) else value for name, value in options.items()}


def test_ten_steps_are_made_and_the_first_is_of_the_longest_rows(tiny, train_file, monkeypatch):
    seen = []

    def noted(accelerator, model, optimizer, batches, task, norm):
        seen.append((len(batches), [int(batch["attention_mask"].sum()) for batch in batches]))
        return training_step(accelerator, model, optimizer, batches, task, norm)

    monkeypatch.setattr(dry_run_module, "training_step", noted)
    run(tiny(train_file=[train_file], sample_by="line", max_steps=3, gradient_accumulation_steps=2, dry_run=True))
    assert len(seen) == 10 and {batches for batches, _ in seen} == {2}
    tokens = [most for _, counts in seen for most in counts]
    assert seen[0][1] == [max(tokens)] * 2 == [8 * 32] * 2


def test_what_diverges_is_said(tiny, train_file, tmp_path):
    with pytest.raises(ValueError, match=r"^Step \d+ of the dry run has the loss .* lower --learning_rate"):
        run(tiny(train_file=[train_file], sample_by="line", dry_run=True, learning_rate=1e30, optim="adam"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_the_run_would_refuse_is_refused(tiny, train_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(OptionError, match=r"holds something that is no run of train\.py: choose another folder"):
        run(tiny(train_file=[train_file], sample_by="line", dry_run=True))


def test_a_mistake_is_said_once_by_two_processes(tiny, tmp_path):
    run = Run(flat(tiny(train_file=[str(tmp_path / "nothere.txt")])), tmp_path / "log", processes=2)
    assert set(run.wait()) != {0}
    assert run.output.count("nothere.txt: there is no such file or folder, check the path.") == 1
    assert "hf_tfenc/training" not in run.output  # no traceback of ours


def test_two_processes_say_it_once(tiny, train_file, tmp_path):
    options = flat(tiny(train_file=[train_file], sample_by="line", num_train_epochs=1))
    report = Run(options | {"dry_run": True}, tmp_path / "log", processes=2).finish()
    assert said(report, "memory").endswith("in the process that needs most")
    one = Run(options | {"dry_run": True, "gradient_accumulation_steps": 2}, tmp_path / "one").finish()
    assert said(report, "steps") == said(one, "steps") and not Path(options["output_dir"]).exists()
