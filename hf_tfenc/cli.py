"""The program hf-tfenc: one command for each thing that is done with an encoder.

    hf-tfenc train --train_file my.txt                   # what train.py does
    hf-tfenc eval outputs/mlm --test_file other.txt      # metrics and predictions on other data
    hf-tfenc embed my.csv my.parquet --model_name_or_path outputs/embedding
    hf-tfenc export outputs/mlm graph --format onnx      # one graph, for ONNX runtimes or torch.export
    hf-tfenc convert google-bert/bert-base-uncased out   # a BERT or ModernBERT as ours, or ours as one of them
    hf-tfenc push outputs/mlm --hub_model_id you/name    # to the Hub, as a private model
    hf-tfenc demo outputs/mlm                            # a page to ask it, and to look inside

Options are read by the commands themselves, so that they are the same, with the same messages, however they are given.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Train transformer encoders; evaluate, convert, serve and publish them; look at them.",
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
    """Measure a trained model on other data; --help lists the options."""
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
    """Convert to or from BERT, ModernBERT and torch's encoder.

    Weights come and go bit for bit; what the other side cannot compute is refused by name.
    For example: hf-tfenc convert outputs/mlm served --to modernbert, which loads anywhere without remote code; or
    hf-tfenc convert encoder.pt out --tokenizer_name outputs/mlm --config_overrides '{nhead: 8, norm_position: pre}'.
    """
    from transformers.utils import logging

    from .publish.conversion import convert
    from .training.arguments import parsed_overrides
    from .training.ending import ending_well

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
    """Write a model as one graph, for ONNX or torch.export.

    Batch and length stay open, and what the graph gives is compared with the model.
    For example: hf-tfenc export outputs/mlm graph --format onnx
    """
    from transformers.utils import logging

    from .publish.export import export
    from .training.ending import ending_well

    def work() -> None:
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what matters of what transformers tells is said below
        for sentence in export(model, out, kind):
            typer.echo(sentence)

    ending_well(work)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="the output folder of a run, or another folder with a model")],
    hub_model_id: Annotated[str, typer.Option("--hub_model_id", help="where to, as user/name")],
    public: Annotated[bool, typer.Option("--public", help="make a public repository, not a private one")] = False,
    include_checkpoints: Annotated[
        bool, typer.Option("--include_checkpoints", help="upload checkpoints and training state too")
    ] = False,
) -> None:
    """Upload a finished model with its card to the Hub.

    Training state stays here. A second call sends what is missing. Log in first, by hf auth login.
    For example: hf-tfenc push outputs/mlm --hub_model_id you/name
    """
    from .publish.hub import push_folder
    from .training.arguments import check_repo_id
    from .training.ending import ending_well

    def work() -> None:
        check_repo_id(hub_model_id)
        typer.echo(push_folder(folder, hub_model_id, not public, include_checkpoints))

    ending_well(work)


@app.command()
def embed(
    file: Annotated[str, typer.Argument(help="what has the texts: csv, tsv, json(l), parquet, or a text a line")],
    out: Annotated[Path, typer.Argument(help="a parquet file, to be made")],
    model_name_or_path: Annotated[str, typer.Option("--model_name_or_path", help="folder or Hub id of the model")],
    text_column: Annotated[str | None, typer.Option("--text_column", help="where its name does not say so")] = None,
    sample_by: Annotated[
        Literal["document", "paragraph", "line"],
        typer.Option("--sample_by", help="of a text file a row is a line, a paragraph, or the document"),
    ] = "line",
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", min=1, help="texts at once; 64 on a CPU, 256 on a GPU if not given")
    ] = None,
    max_seq_length: Annotated[
        int | None,
        typer.Option("--max_seq_length", min=1, help="tokens of a text that are read; else the model's limit"),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="vectors of length 1")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="compute in bfloat16")] = False,
    torch_compile: Annotated[
        bool, typer.Option("--torch_compile", help="compile the layers; pays for many texts, on a GPU")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
) -> None:
    """Write a vector for each row of a file.

    A call that was stopped goes on where it was when it is given again.
    For example: hf-tfenc embed articles.csv articles.parquet --model_name_or_path outputs/embedding
    """
    from transformers.utils import logging

    from .embed import Encoding, embed
    from .training.ending import ending_well

    def work() -> None:
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # a head that vectors do not need is no news
        encoding = Encoding(batch_size, max_seq_length, normalize, bf16, torch_compile)
        typer.echo(embed(file, out, model_name_or_path, text_column, sample_by, encoding, overwrite))

    ending_well(work)


@app.command()
def demo(
    output_folder: Annotated[str, typer.Argument(help="where the model is")],
    port: Annotated[int, typer.Option(help="0 for any that is free")] = 7860,
    host: Annotated[str, typer.Option(help="0.0.0.0 to let other machines see the page")] = "127.0.0.1",
) -> None:
    """Show a page that asks a trained model, and looks inside it.

    For example: hf-tfenc demo outputs/mlm
    """
    from .demo.server import main

    main(output_folder, host, port)


if __name__ == "__main__":
    app()
