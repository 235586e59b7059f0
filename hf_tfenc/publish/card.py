"""The model card: the template model_card.md, filled with a run's own numbers."""

import dataclasses
import hashlib
import html
import logging
import re
import sysconfig
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    DatasetCard,
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
    hf_hub_download,
)
from transformers import PreTrainedConfig

from ..tasks import TASKS, Task
from ..tasks.task import own_text
from ..training.arguments import CONFIG_FILE, Arguments
from ..training.checkpointing import write_text
from .sentence_transformers import pools_there

logger = logging.getLogger(__name__)

# At the root of the repository; a wheel installs it under share/.
TEMPLATES = (
    Path(__file__).parents[2] / "model_card.md",
    Path(sysconfig.get_path("data")) / "share" / "hf_tfenc" / "model_card.md",
)
CARD_FILE, NEW_CARD_FILE = "README.md", "README.new.md"
RESULTS_FOLDER = ".eval_results"
SEAL = "\n<!-- Written by hf_tfenc; an edited card is never overwritten. {} -->\n"
# Options that say where things are, or stand elsewhere in the card.
UNSAID = {
    "train_file", "validation_file", "test_file", "dataset_name", "model_name_or_path", "task", "output_dir",
    "learning_rate", "num_train_epochs", "license", "language", "overwrite_output_dir", "resume_from_checkpoint",
    "resume_with_changes", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo",
}  # fmt: skip
ARCHITECTURES = {
    "classic": "Vaswani et al., Attention Is All You Need, 2017 (arXiv:1706.03762)",
    "bert": "Devlin et al., BERT, 2019 (arXiv:1810.04805)",
    "modern": "Warner et al., ModernBERT, 2024 (arXiv:2412.13663)",
}
# What a head's output is, by its Auto class.
SHOWN = {
    "AutoModel": "output.pooler_output",
    "AutoModelForSequenceClassification": "output.logits, model.config.id2label",
    "AutoModelForTokenClassification": "output.logits.argmax(-1), model.config.id2label",
}
SHOWN_LABELS = 12
PICTURES = {
    "loss.png": "Loss over steps",
    "confusion.png": "Which class is taken for which",
    "similarity.png": "How near held-out texts lie to each other, each beside its match",
}
PURPOSES = {
    "fill-mask": "It says what a hidden token is, and is a start for classifiers, taggers and embeddings.",
    "text-generation": "It goes on from a text, token by token.",
    "text-classification": "It says what a text is.",
    "token-classification": "It says what each word of a text is.",
    "feature-extraction": "It gives vectors of texts, near to each other where the texts mean the same.",
}


# --- What others may know --------------------------------------------------------------------------------------------


def public_name(name: str) -> str:
    """A Hub id as it is; of a path what it leads to, since the folders on the way are nobody's business."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() or name.startswith((".", "~")) else name


def named(files: list[str]) -> str:
    """Files without the folders they lie in."""
    return ", ".join(Path(file).name for file in files)


def data_of(args: Arguments) -> str:
    """What the model was trained on, in a few words."""
    if args.train_file:
        return named(args.train_file)
    return public_name(args.dataset_name) if args.dataset_name else "Python's own documentation"


def hub_id(name: str | None) -> str | None:
    """A name if it is one of the Hub, and no path."""
    return name if name is not None and public_name(name) == name and not Path(name).exists() else None


def data_card(args: Arguments) -> dict[str, Any]:
    """`license` and `language` of the training data, as far as its own card says: README.md on the Hub, or in its folder.

    Beside a `train_file`, a README.md is the card of a dataset if its metadata has `configs`.
    """
    if args.train_file is None and args.dataset_name is None:
        return {"language": "en"}
    name = args.dataset_name
    try:
        if name is not None and hub_id(name):
            card = hf_hub_download(name, CARD_FILE, repo_type="dataset", revision=args.dataset_revision)
        else:
            first = Path(name or (args.train_file or [""])[0]).expanduser()
            card = str((first if first.is_dir() else first.parent) / CARD_FILE)
        if not Path(card).exists():
            return {}
        found = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # what is not known is no reason to stop
        logger.info("What the data says of itself could not be read (%s).", type(error).__name__)
        return {}
    if name is None and "configs" not in found:
        return {}
    return {key: found[key] for key in ("license", "language") if isinstance(found.get(key), str | list)}


# --- The card --------------------------------------------------------------------------------------------------------


def write_card(folder: Path, args: Arguments, config: PreTrainedConfig, metrics: dict[str, Any]) -> None:
    """Write README.md into an output folder, and what the Hub's leaderboards read of a dataset that is there.

    A README.md that somebody has edited, or made, stays as it is, and the new card lies beside it.
    """
    text = sealed(card_text(folder, args, config, metrics, args.hub_model_id))
    card = folder / CARD_FILE
    if card.exists() and not is_ours(card.read_text(encoding="utf-8")):
        logger.warning("%s has been edited and stays as it is; the card of this run is %s.", card, NEW_CARD_FILE)
        card = folder / NEW_CARD_FILE
    _write_changed(card, text)
    if entry := leaderboard_entry(args, metrics):
        file = folder / RESULTS_FOLDER / f"{entry.dataset_id.replace('/', '--')}.yaml"
        file.parent.mkdir(exist_ok=True)
        _write_changed(file, yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False))


def renew_card(folder: Path, args: Arguments, config: PreTrainedConfig, metrics: dict[str, Any]) -> None:
    """Write the card of a run that was finished before, with what is now said of its licence, language and place.

    What is not said stays as it was; what is said is noted among the run's options. Where nothing is new, no file changes.
    """
    then = saved_arguments(folder)
    said = {
        name: value for name in ("license", "language", "hub_model_id") if (value := getattr(args, name)) is not None
    }
    if (now := dataclasses.replace(then, **said)) != then:
        write_text(folder / CONFIG_FILE, now.to_yaml())
    write_card(folder, now, config, metrics)


def saved_arguments(folder: Path) -> Arguments:
    """The options of a run, from its output folder. Raises OSError, ValueError or TypeError where there are none."""
    options = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    known = {option.name for option in dataclasses.fields(Arguments)}  # another version may have had others
    return Arguments(**{name: value for name, value in options.items() if name in known})


def _write_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def sealed(text: str) -> str:
    """A card, with a line at its end by which it is known to be as it was written."""
    return text + SEAL.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def is_ours(text: str) -> bool:
    """Whether a card is as `sealed` made it."""
    return sealed(text[: -len(SEAL.format("0" * 16))]) == text


def card_text(
    folder: Path, args: Arguments, config: PreTrainedConfig, metrics: dict[str, Any], repo_id: str | None
) -> str:
    """The card of a finished run, whose snippets load from `repo_id`, or where there is none from its folder.

    Args:
        metrics: what metrics.json holds
    """
    task, where, data = TASKS[args.task], repo_id or str(folder), data_of(args)
    held_out, test = measured_on(args)
    known = metrics.get("data_card", {})
    learned = [
        (what, number(metrics[name]), number(metrics.get(test_name(name))))
        for name, what in task.reported.items()
        if name in metrics
    ]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task.pipeline_tag,
        license=args.license,
        language=args.language or known.get("language"),
        datasets=hub_id(args.dataset_name),
        base_model=hub_id(args.model_name_or_path),
        tags=["hf_tfenc", "tfenc"] + ["sentence-transformers"] * (args.task == "embedding" and pools_there(config)),
        widget=metrics.get("widget") or None,
        model_name=Path(where).name,
        eval_results=eval_results(args, metrics),
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(next(path for path in TEMPLATES if path.exists())),
        name=Path(where).name,
        where=where,
        author=repo_id.split("/")[0] if repo_id else None,
        start=public_name(args.model_name_or_path) if args.model_name_or_path else None,
        data=data,
        licence=licence_text(args, known),
        counts=counts_of(metrics),
        held_out=held_out,
        test=test if "test_loss" in metrics else None,
        learned=learned,
        counted=[(what, number(metrics[name])) for name, what in task.counted.items() if name in metrics],
        args=args,
        config=config,
        metrics=metrics,
        task=task,
        positions=config.position_limit,
        labels=labels_of(task, config),
        fence=fence_of(metrics["examples"]),
        usage=task.usage(where, own_text(metrics)),
        auto_class=task.auto_class.__name__,
        shown=SHOWN.get(task.auto_class.__name__, "output.logits.shape"),
        vectors=(folder / "modules.json").exists(),
        pictures={name: what for name, what in PICTURES.items() if (folder / name).exists()},
        purpose=PURPOSES[task.pipeline_tag],
        duration=duration(metrics["train_runtime"]),
        options=options_of(args),
        citation_key=re.sub(r"\W+", "-", Path(where).name),
        architecture=None if args.model_name_or_path else ARCHITECTURES.get(str(args.preset).split("-")[0]),
    )
    return str(card)


# --- Its parts -------------------------------------------------------------------------------------------------------


def test_name(name: str) -> str:
    """The name of a metric on the test split."""
    return name.replace("eval_", "test_", 1)


def measured_on(args: Arguments) -> tuple[str, str]:
    """The held-out data, and the test data."""
    data = data_of(args)
    held_out = named(args.validation_file) if args.validation_file else f"held-out part of {data}"
    return held_out, named(args.test_file) if args.test_file else f"test split of {data}"


def eval_results(args: Arguments, metrics: dict[str, Any]) -> list[EvalResult]:
    """What was measured, as metadata."""
    task, (held_out, test) = TASKS[args.task], measured_on(args)
    results = []
    for split, where, prefix in (("validation", held_out, "eval_"), ("test", test, "test_")):
        for key, what in task.reported.items():
            name = key.removeprefix("eval_")
            if prefix + name in metrics:
                result = EvalResult(
                    task_type=task.pipeline_tag,
                    dataset_type=hub_id(args.dataset_name) or "text",
                    dataset_name=where,
                    dataset_config=args.dataset_config_name,
                    dataset_split=split,  # by which results are told apart
                    dataset_revision=args.dataset_revision,
                    metric_type=name,
                    metric_name=what,
                    metric_value=round(metrics[prefix + name], 4),
                )
                results.append(result)
    return results


def leaderboard_entry(args: Arguments, metrics: dict[str, Any]) -> EvalResultEntry | None:
    """The task's first metric on a dataset of the Hub, of the test split if that was measured."""
    dataset = hub_id(args.dataset_name)
    if dataset is None or args.validation_file or args.test_file:
        return None
    task = TASKS[args.task]
    name, what = next((name, what) for name, what in task.reported.items() if name in metrics)
    tested = test_name(name) in metrics
    return EvalResultEntry(
        dataset_id=dataset,
        task_id=args.dataset_config_name or "default",
        value=round(metrics[test_name(name) if tested else name], 4),
        dataset_revision=args.dataset_revision,
        date=metrics.get("date"),
        notes=f"{what}, on {measured_on(args)[tested]}",
    )


def counts_of(metrics: dict[str, Any]) -> list[list[str]]:
    """A line for each split: its name, rows of the source, sequences, tokens."""
    return [
        [split, *("unknown" if count is None else f"{count:,}" for count in counts.values())]
        for split, counts in metrics.get("data", {}).items()
    ]


def licence_text(args: Arguments, known: dict[str, Any]) -> str:
    """The licence of the training data, or that it is not known."""
    if args.train_file is None and args.dataset_name is None:
        return "the Python Software Foundation License"
    found = known.get("license")
    return (", ".join(found) if isinstance(found, list) else found) or "not known"


def labels_of(task: type[Task], config: PreTrainedConfig) -> str | None:
    """The names of a classifier's labels, as many as a table holds."""
    if "Classification" not in task.auto_class.__name__ or config.problem_type == "regression":
        return None
    labels = [in_a_cell(str(label)) for label in config.id2label.values()]
    return ", ".join(labels[:SHOWN_LABELS]) + f", … ({len(labels)})" * (len(labels) > SHOWN_LABELS)


def in_a_cell(text: str) -> str:
    """A text as it is, in a table of Markdown: one line, with nothing in it that is taken for HTML or a border."""
    return html.escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", r"\|")


def fence_of(texts: list[str]) -> str:
    """A fence of more backticks than stand together in any of the texts."""
    return "`" * max(3, *(len(run) + 1 for run in re.findall("`+", "\n".join(texts)) or [""]))


def options_of(args: Arguments) -> str:
    """The options that are not the defaults, as YAML."""
    changed, defaults = dataclasses.asdict(args), dataclasses.asdict(Arguments())
    changed = {
        name: value for name, value in changed.items() if name not in UNSAID and value not in (None, defaults[name])
    }
    changed |= {name: public_name(changed[name]) for name in ("tokenizer_name",) if name in changed}
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).strip() if changed else ""


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def number(value: float | None) -> str:
    """A metric in a table."""
    return "" if value is None else f"{value:.3f}"
