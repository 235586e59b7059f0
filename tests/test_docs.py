"""What the documents say is so: their code runs, their copies are the source, their links and commands work."""

import ast
import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
TOUR = ROOT / "docs" / "tour.md"

by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


class Block(NamedTuple):
    """A fenced block: the comment before it, the line of text between, the language and what is in it."""

    comment: str
    caption: str
    language: str
    body: str


def blocks(document):
    fenced = r"^(?:<!-- ([^\n]*) -->\n(?:([^\n]+)\n\n)?)?( *)```(\w*)\n(.*?)^ *```$"
    found = re.finditer(fenced, document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(match[1] or "", match[2] or "", match[4], dedent(match[5])) for match in found]


# --- Copies of the source --------------------------------------------------------------------------------------------

EXCERPTS = [block for document in DOCUMENTS for block in blocks(document) if block.comment.startswith("from ")]


def source(path, name):
    """The lines of a function, a class or a method (`Class.method`), moved to the left edge."""
    text = (ROOT / path).read_text(encoding="utf-8")
    node = ast.parse(text)
    for part in name.split("."):
        node = next(inner for inner in node.body if getattr(inner, "name", None) == part)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno])) + "\n"


@pytest.mark.parametrize("block", EXCERPTS, ids=lambda block: block.comment.rpartition(": ")[2])
def test_a_copy_is_the_source(block):
    path, name, part = re.fullmatch(r"from ([\w/.]+): ([\w.]+)(, part)?", block.comment).groups()
    whole = f"Part of `{name}`" if part else f"`{name}`"
    assert block.caption == f"{whole} in [{path}](../{path}):"
    original = source(path, name)
    if not part:
        assert block.body == original
        return
    lines, copied = original.splitlines(), block.body.splitlines()
    windows = (lines[start : start + len(copied)] for start in range(len(lines)))
    assert copied in [dedent("\n".join(window)).splitlines() for window in windows], original


def test_there_are_copies():
    assert {"sinusoidal_table", "TfEncLayer", "cross_entropy"} < {b.comment.rpartition(": ")[2] for b in EXCERPTS}


# --- Python ----------------------------------------------------------------------------------------------------------


def assert_about(printed, expected):
    """The same words, and numbers that differ by a fifth at most: they depend on the machine's arithmetic."""
    number = r"\d+\.\d+"
    assert re.sub(number, "#", printed) == re.sub(number, "#", expected)
    for ours, theirs in zip(re.findall(number, printed), re.findall(number, expected), strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=0.2), (printed, expected)


def test_the_tour_runs():
    """Its code from top to bottom in one session; what it prints is what stands below."""
    session, printed, compared = {}, "", 0
    for block in blocks(TOUR):
        if block.language == "python" and not block.comment:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block.body, f"{TOUR.name}: {block.body[:40]!r}", "exec"), session)
            assert not printed, "what was printed before does not stand on the page"
            printed = output.getvalue()
        elif block.language == "text":
            if block.comment == "about":
                assert_about(printed, block.body)
            else:
                assert printed == block.body
            printed, compared = "", compared + 1
    assert compared > 12
    assert session["averages"][-1] < session["averages"][0] / 2  # it learns
    assert session["averages"][-1] < session["without"][-1] / 1.3  # and needs the positions


@pytest.fixture
def outputs(tmp_path, monkeypatch, tokenizer):
    """A working folder with the models that the documents speak of, in `outputs/`, untrained and tiny."""
    from hf_tfenc import TfEncForMaskedLM, TfEncForSequenceClassification
    from hf_tfenc.presets import preset_config

    config = preset_config("modern-tiny", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16)
    for name, kind in (("mlm", TfEncForMaskedLM), ("classifier", TfEncForSequenceClassification)):
        kind(config).save_pretrained(tmp_path / "outputs" / name)
        tokenizer.save_pretrained(tmp_path / "outputs" / name)
    monkeypatch.chdir(tmp_path)


def python_of(name):
    document = ROOT / name
    return [pytest.param(b, id=document.stem) for b in blocks(document) if b.language == "python"]


@pytest.mark.parametrize("block", [*python_of("README.md"), *python_of("docs/finetune.md")])
def test_python_with_a_trained_model_runs(outputs, block, capsys):
    whole_models = "bert-base" in block.body  # whose weights nobody looks at
    session = {}
    with torch.device("meta") if whole_models else contextlib.nullcontext():
        exec(block.body, session)
    if whole_models:
        assert [session[name].config.hidden_size for name in ("textbook", "bert", "modern")] == [256, 768, 768]
    else:
        assert "'score'" in capsys.readouterr().out
        assert "vectors" not in session or session["vectors"].shape[-1] == 16


# --- Pictures --------------------------------------------------------------------------------------------------------


def test_the_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in ROOT.glob("docs/*.png")} - {"page.png"}  # a browser's, of hf-tfenc demo

    everywhere = torch.ones(8, 8, dtype=torch.bool)
    near = everywhere.tril(1) & everywhere.triu(-1)
    expected = {
        "padding": torch.arange(8).expand(8, 8) < 5,
        "look-ahead": everywhere.tril(),
        "both": everywhere.tril() & (torch.arange(8) < 5),
        "sliding window": near,
        "packed sequences": torch.block_diag(*(torch.ones(size, size) for size in (3, 4, 1))).bool(),
    }
    masks = pictures.masks()
    assert masks.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(masks[name], mask), name


# --- Links -----------------------------------------------------------------------------------------------------------


def without_code(document):
    return re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(document):
    """The names that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.*)$", without_code(document), re.M)
    titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.strip().replace(" ", "-") for title in titles}


@by_name
def test_links_resolve(document):
    links = re.findall(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]", document.read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", path):
            continue
        target = document if not path else (document.parent / path).resolve()
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_guide_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in ROOT.glob("docs/*.md") if f"](docs/{path.name})" not in readme] == []


# --- Lines -----------------------------------------------------------------------------------------------------------


GUIDES = [document for document in DOCUMENTS if document.name not in ("CONTRIBUTING.md", "SECURITY.md")]


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_lines_fit_the_width_of_the_code(document):
    """Prose, that is: tables, titles and the captions of copies have their lines whole."""
    long = [line for line in without_code(document).splitlines() if len(line) > 119]
    assert [line for line in long if not line.startswith(("|", "#", "<!--")) and "in [hf_tfenc" not in line] == []


# --- Commands --------------------------------------------------------------------------------------------------------


def commands(document):
    """The words of each command that runs a program of ours, without its comment."""
    shell = [block.body for block in blocks(document) if block.language in ("", "sh", "bash")]
    lines = [line for body in shell for line in body.replace("\\\n", " ").splitlines()]
    ours = re.compile(r"(\S*/)?(accelerate|torchrun|python|hf-tfenc) .*(\.py|eval|train|demo)\b")
    return [shlex.split(line, comments=True) for line in lines if ours.match(line)]


COMMANDS = [(document.name, command) for document in DOCUMENTS for command in commands(document)]


def demo_command():
    import typer

    from hf_tfenc.cli import app

    return typer.main.get_command(app).commands["demo"]


def parse(command):
    """Give a command to the parsers of the programs that it names."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    from hf_tfenc.training.arguments import parse_arguments, parse_evaluation

    program, *rest = command
    if Path(program).name == "hf-tfenc":
        verb, *rest = rest
        assert verb in ("train", "eval", "demo"), verb
        if verb == "demo":
            return demo_command().make_context("demo", rest)
        if verb == "eval":
            return parse_evaluation(rest, lambda model: {"task": "sequence-classification"})
        return parse_arguments(rest)
    if Path(program).name == "accelerate":
        assert rest[0] == "launch"
        launched = launch_command_parser().parse_args(rest[1:])
        assert launched.config_file is None or (ROOT / launched.config_file).exists(), launched.config_file
        rest = [launched.training_script, *launched.training_script_args]
    elif program == "torchrun":
        launched = get_args_parser().parse_args(rest)
        rest = [launched.training_script, *launched.training_script_args]
    script, *rest = rest
    assert (ROOT / script).exists() or script == "-m", script
    return parse_arguments(rest) if script == "train.py" and "--help" not in rest else None


@pytest.mark.parametrize("name, command", COMMANDS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(COMMANDS)])
def test_commands_have_these_options(monkeypatch, name, command):
    monkeypatch.chdir(ROOT)
    parse(command)


def test_there_are_commands():
    assert {"README.md", "tour.md", "pretrain.md", "finetune.md", "many_gpus.md"} <= {name for name, _ in COMMANDS}
