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


def write_card(folder: Path, args: "Arguments", model: PreTrainedModel, metrics: dict[str, Any]) -> None:
    """Write README.md into an output folder."""
    template = next(path for path in TEMPLATES if path.exists())
    data = named(args.train_file) if args.train_file else "Python's own documentation"
    held_out = named(args.validation_file) if args.validation_file else f"held-out part of {data}"
    task = TASKS[args.task]
    results = [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type="text",
            dataset_name=held_out,
            metric_type=name.removeprefix("eval_"),
            metric_value=round(metrics[name], 4),
        )
        for name in task.reported
        if name in metrics
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
        usage=task.usage(args.hub_model_id or str(folder)),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")
