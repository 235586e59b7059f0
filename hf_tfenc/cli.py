"""The program hf-tfenc: one command for each thing that is done with an encoder.

    hf-tfenc train --train_file my.txt                   # what train.py does
    hf-tfenc eval outputs/mlm --test_file other.txt      # metrics and predictions on other data
    hf-tfenc export outputs/mlm graph --format onnx      # one graph, for ONNX runtimes or torch.export
    hf-tfenc convert google-bert/bert-base-uncased out   # a BERT or ModernBERT as ours, or ours as one of them

Options are read by the commands themselves, so that they are the same, with the same messages, however they are given.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Train transformer encoders; evaluate, convert and export them.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)
UNREAD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=UNREAD)
def train(context: typer.Context) -> None:
    """Train an encoder; --help lists the options."""
    from .training.run import main  # it takes seconds, which a list of commands should not

    main(context.args)


@app.command("eval", context_settings=UNREAD)
def evaluate(context: typer.Context) -> None:
    """Measure a trained model on some data, and write what it says of each row; --help lists the options."""
    from .evaluate import main

    main(context.args)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(help="a BERT, a ModernBERT or a model of ours (folder or Hub id), or a state dict (a file)"),
    ],
    out: Annotated[Path, typer.Argument(help="a new folder")],
    to: Annotated[str | None, typer.Option(help="what a model of ours becomes: bert, modernbert or torch")] = None,
    tokenizer_name: Annotated[
        str | None, typer.Option("--tokenizer_name", help="for a state dict: the tokenizer that goes with it")
    ] = None,
    config_overrides: Annotated[
        str | None,
        typer.Option("--config_overrides", help="for a state dict: options that weights do not tell, as JSON or YAML"),
    ] = None,
) -> None:
    """Convert a checkpoint to or from BERT, ModernBERT or torch.nn.TransformerEncoder, exactly or not at all.

    For example: hf-tfenc convert outputs/mlm served --to modernbert, which loads anywhere without remote code; or
    hf-tfenc convert encoder.pt out --tokenizer_name outputs/mlm --config_overrides '{nhead: 8, norm_position: pre}'.
    """
    from transformers.utils import logging

    from .publish.conversion import convert
    from .training.arguments import parsed_overrides
    from .training.run import ending_well

    def work() -> None:
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what matters of what transformers tells is said below
        for sentence in convert(source, out, to, tokenizer_name, parsed_overrides(config_overrides)):
            typer.echo(sentence)

    ending_well(work)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="a model of ours (folder or Hub id)")],
    out: Annotated[Path, typer.Argument(help="a new folder")],
    kind: Annotated[str, typer.Option("--format", help="onnx or torch-export")] = "onnx",
) -> None:
    """Write a model as one graph with open batch and length, and compare the graph with the model.

    For example: hf-tfenc export outputs/mlm graph --format onnx
    """
    from transformers.utils import logging

    from .publish.export import export
    from .training.run import ending_well

    def work() -> None:
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what matters of what transformers tells is said below
        for sentence in export(model, out, kind):
            typer.echo(sentence)

    ending_well(work)


if __name__ == "__main__":
    app()
