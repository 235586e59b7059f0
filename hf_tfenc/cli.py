"""The program hf-tfenc: one command for each thing that is done with an encoder.

    hf-tfenc train --train_file my.txt                   # what train.py does
    hf-tfenc eval outputs/mlm --test_file other.txt      # metrics and predictions on other data
    hf-tfenc demo outputs/mlm                            # a page to ask it, and to look inside

Options are read by the commands themselves, so that they are the same, with the same messages, however they are given.
"""

from typing import Annotated

import typer

app = typer.Typer(
    help="Train transformer encoders, evaluate them, and look at them.",
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
def demo(
    output_folder: Annotated[str, typer.Argument(help="where the model is")],
    port: Annotated[int, typer.Option(help="0 for any that is free")] = 7860,
    host: Annotated[str, typer.Option(help="0.0.0.0 to let other machines see the page")] = "127.0.0.1",
) -> None:
    """Show a page that asks a trained model, and looks inside it."""
    from .demo.server import main

    main(output_folder, host, port)


if __name__ == "__main__":
    app()
