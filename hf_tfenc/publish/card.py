"""The model card: the template model_card.md, filled with a run's own numbers."""

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..tasks import TASKS

if TYPE_CHECKING:
    from ..training.arguments import Arguments

# At the root of the repository; a wheel installs it under share/.
TEMPLATES = (
    Path(__file__).parents[2] / "model_card.md",
    Path(sysconfig.get_path("data")) / "share" / "hf_tfenc" / "model_card.md",
)


def named(files: list[str]) -> str:
    """Files without the folders they lie in, which are nobody's business."""
    return ", ".join(Path(file).name for file in files)


def data_of(args: "Arguments") -> str:
    """What the model was trained on, in a few words."""
    if args.train_file:
        return named(args.train_file)
    name = args.dataset_name or "Python's own documentation"
    return Path(name).resolve().name if Path(name).is_dir() else name


def write_card(folder: Path, args: "Arguments", model: PreTrainedModel, metrics: dict[str, Any]) -> None:
    """Write README.md into an output folder."""
    template = next(path for path in TEMPLATES if path.exists())
    data = data_of(args)
    held_out = named(args.validation_file) if args.validation_file else f"held-out part of {data}"
    test = named(args.test_file) if args.test_file else f"test split of {data}"
    task = TASKS[args.task]
    names = [name.removeprefix("eval_") for name in task.reported]
    results = [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type="text",
            dataset_name=dataset_name,
            dataset_split=split,  # by which results are told apart
            metric_type=name,
            metric_value=round(metrics[f"{prefix}_{name}"], 4),
        )
        for prefix, split, dataset_name in (("eval", "validation", held_out), ("test", "test", test))
        for name in names
        if f"{prefix}_{name}" in metrics
    ]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task.pipeline_tag,
        tags=["hf_tfenc", "tfenc"],
        model_name=Path(args.hub_model_id or folder).name,
        eval_results=results,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(template),
        model_name=Path(args.hub_model_id or folder).name,
        where=args.hub_model_id or str(folder),
        data=data,
        args=args,
        config=model.config,
        metrics=metrics,
        task=task,
        table={what: metrics[name] for name, what in (task.reported | task.counted).items() if name in metrics},
        test_table={
            task.reported[f"eval_{name}"]: metrics[f"test_{name}"] for name in names if f"test_{name}" in metrics
        },
        usage=task.usage(args.hub_model_id or str(folder)),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")
