"""Options: a file and the command line fill the same fields, and every mistake gets a sentence."""

import dataclasses
import re

import pytest
import yaml

from hf_tfenc.tasks import TASKS
from hf_tfenc.training.arguments import Arguments, OptionError, parse_arguments


@pytest.fixture
def config(tmp_path):
    """Writes a file of options and returns the arguments that name it."""

    def config(text):
        path = tmp_path / "options.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return config


def test_every_option_has_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(Arguments))


def test_command_line_wins_over_file_and_file_over_default(config):
    file = config(
        "learning_rate: 1e-3\nseed: 7\nbf16: true\nload_best_model_at_end: false\ntrain_file: [a.txt, b.txt]\n"
    )
    args = parse_arguments([*file, "--seed", "8", "--train_file", "c.txt", "d.txt"])
    assert (args.learning_rate, args.seed, args.bf16, args.load_best_model_at_end) == (1e-3, 8, True, False)
    assert args.train_file == ["c.txt", "d.txt"] and args.vocab_size == Arguments().vocab_size
    assert parse_arguments(["--seed=8", *file]) == dataclasses.replace(args, train_file=["a.txt", "b.txt"])
    assert parse_arguments([*file, "--bf16", "false", "--load_best_model_at_end"]).bf16 is False


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),  # which YAML takes for a string
        ("learning_rate: 0.00001", "learning_rate", 1e-5),
        ("warmup_steps: 10", "warmup_steps", 10.0),
        ("train_file: a.txt", "train_file", ["a.txt"]),
        ("train_file: [my text.txt, 2024]", "train_file", ["my text.txt", "2024"]),
        ("text_column: -text", "text_column", "-text"),
        ("text_column: null", "text_column", None),
        ("output_dir: 2024-01-02", "output_dir", "2024-01-02"),
        ("config_overrides: {hidden_size: 32}", "config_overrides", '{"hidden_size": 32}'),
        ("full_determinism: yes", "full_determinism", True),
        ("", "seed", Arguments().seed),
    ],
)
def test_values_in_a_file(config, line, name, value):
    assert getattr(parse_arguments(config(line)), name) == value


@pytest.mark.parametrize("given, meant", [("batch_size", "per_device_train_batch_size"), ("lr", "learning_rate")])
def test_names_that_others_use_are_translated(given, meant):
    with pytest.raises(OptionError, match=rf"^--{given} is not an option\. Did you mean --{meant}\?$"):
        parse_arguments([f"--{given}", "1"])


def test_names_may_be_written_with_dashes():
    assert parse_arguments(["--learning-rate", "0.5", "--per-device-train-batch-size=3"]).learning_rate == 0.5


def test_written_options_are_read_back(config):
    args = Arguments(
        train_file=["a b.txt", "ü.txt"],
        config_overrides='{"hidden_size": 32, "hidden_act": "gelu"}',
        learning_rate=1.5e-7,
        max_steps=3,
        load_best_model_at_end=False,
        overwrite_output_dir=True,
        output_dir="-out",
    )
    again = parse_arguments(config(args.to_yaml()))
    # Whoever runs the file again does not mean to remove what it made.
    assert again == dataclasses.replace(args, overwrite_output_dir=False)
    assert again.to_yaml() == args.to_yaml() and "ü.txt" in args.to_yaml()
    assert yaml.safe_load(Arguments().to_yaml()).keys() == {f.name for f in dataclasses.fields(Arguments)} - {
        "overwrite_output_dir",
        "resume_from_checkpoint",
        "resume_with_changes",
        "dry_run",
    }


def test_output_dir_follows_the_task():
    assert Arguments().output_dir == "outputs/mlm" and Arguments(output_dir="x").output_dir == "x"


def test_config_overrides_are_a_mapping():
    assert Arguments(config_overrides="{hidden_size: 32}").parsed_config_overrides() == {"hidden_size": 32}
    assert Arguments(config_overrides='{"layer_norm_eps": 1e-12}').parsed_config_overrides() == {
        "layer_norm_eps": 1e-12
    }
    assert Arguments().parsed_config_overrides() == {}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--learning_rat", "1"], "--learning_rat is not an option. Did you mean --learning_rate?"),
        (["--learning_rat=1"], "--learning_rat is not an option. Did you mean --learning_rate?"),
        (["--qqqq"], "--qqqq is not an option. --help lists the options."),
        (["my.txt"], "my.txt is neither an option nor the value of one. --help lists the options."),
        (["-seed", "1"], "-seed is neither an option nor the value of one. --help lists the options."),
        (["--no_seed"], "--no_seed is neither an option nor the value of one. --help lists the options."),
        (["--config"], "Argument --config: expected one argument. --help lists the options."),
        (["--config", "none.yaml"], "--config none.yaml cannot be read: No such file or directory."),
        (["--seed"], "Argument --seed: expected one argument. --help lists the options."),
        (["--seed", "x"], "Argument --seed: invalid int value: 'x'. --help lists the options."),
        (["--max-steps", "1.5"], "Argument --max_steps: invalid int value: '1.5'. --help lists the options."),
        (["--learning_rate", "x"], "Argument --learning_rate: invalid float value: 'x'. --help lists the options."),
        (["--optim", "adamw2"], r"Argument --optim: invalid choice: 'adamw2' .*adamw.*muon.*"),
        (["--sample_by", "word"], r"Argument --sample_by: invalid choice: 'word' .*document.*paragraph.*line.*"),
        (["--bf16", "perhaps"], r"Argument --bf16: .*perhaps.*true/false.*"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(argv, sentence):
    with pytest.raises(OptionError) as error:
        parse_arguments(argv)
    assert_sentence(error, sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rates: 1", "learning_rates in FILE is not an option. Did you mean learning_rate?"),
        ("3: 1", "3 in FILE is not an option. --help lists the options."),
        ("- learning_rate", "--config FILE is no list of options; write lines such as 'learning_rate: 0.001'."),
        ("a: [", r"--config FILE is no YAML: .*"),
        ("seed: x", "Argument --seed: invalid int value: 'x'. --help lists the options."),
        ("max_steps: 1.5", "Argument --max_steps: invalid int value: '1.5'. --help lists the options."),
        ("train_file: []", "Argument --train_file: expected at least one argument. --help lists the options."),
    ],
)
def test_mistakes_in_a_file(config, text, sentence):
    argv = config(text)
    with pytest.raises(OptionError) as error:
        parse_arguments(argv)
    assert_sentence(error, sentence.replace("FILE", argv[1]))


def test_a_preset_is_for_a_new_model():
    assert Arguments().preset == "modern-tiny" and parse_arguments(["--preset", "bert-base"]).preset == "bert-base"
    with pytest.raises(OptionError) as error:
        parse_arguments(["--preset", "modern-tiny", "--model_name_or_path", "outputs/mlm"])
    assert_sentence(
        error,
        "--preset modern-tiny is for a new model, and --model_name_or_path outputs/mlm has a shape of its own: "
        "leave one of the two out.",
    )


def test_a_run_from_a_trained_model_runs_again_from_its_file(config):
    args = parse_arguments(["--model_name_or_path", "outputs/mlm"])
    assert args.preset is None and parse_arguments(config(args.to_yaml())) == args


STREAM = {"streaming": True, "train_file": ["a.txt"], "max_steps": 250}


def test_a_run_on_a_stream_is_evaluated_ten_times():
    assert Arguments(**STREAM).eval_steps == 25
    assert Arguments(**STREAM | {"max_steps": 3}).eval_steps == 1
    assert Arguments(**STREAM, eval_steps=7).eval_steps == 7
    assert Arguments(max_steps=250).eval_steps is None


ABOVE_0 = [
    "vocab_size", "max_seq_length", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "eval_steps", "logging_steps",
    "cpu_threads", "max_train_samples", "max_eval_samples", "shuffle_buffer_size", "tokens_per_batch", "learning_rate", "adam_epsilon", "temperature",
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *[({name: 0}, f"--{name} is 0; it must be above 0.") for name in ABOVE_0],
        ({"learning_rate": float("nan")}, "--learning_rate is nan; it must be above 0."),
        *[
            ({name: -1}, f"--{name} is -1; it must not be below 0.")
            for name in ("warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers", "seed")
        ],
        ({"mlm_probability": 1.0}, "--mlm_probability is 1.0; it is a share, between 0 and 1."),
        ({"eval_mlm_probability": 0}, "--eval_mlm_probability is 0; it is a share, between 0 and 1."),
        ({"adam_beta1": 1.0}, "--adam_beta1 is 1.0; it must be at least 0 and below 1."),
        ({"adam_beta2": -0.1}, "--adam_beta2 is -0.1; it must be at least 0 and below 1."),
        ({"max_seq_length": 7}, "--max_seq_length is 7; rows need at least 8 tokens."),
        ({"mlm_masking": "word"}, "--mlm_masking is 'word'; it is one of token, whole-word, span."),
        (
            {"task": "sequence-classification", "problem_type": "binary"},
            "--problem_type is 'binary'; it is one of single_label_classification, multi_label_classification, regression.",
        ),
        ({"label_column": "token"}, "--label_column is for --task sequence-classification, token-classification and embedding; the task is mlm."),
        ({"label_column": "y"}, "--label_column is for --task sequence-classification, token-classification and embedding; the task is mlm."),
        ({"task": "causal-lm", "mlm_masking": "span"}, "--mlm_masking is for --task mlm; the task is causal-lm."),
        ({"task": "embedding", "streaming": True}, "--streaming is for --task causal-lm and mlm; the task is embedding."),
        (STREAM | {"max_steps": None}, "--streaming needs --max_steps, for nobody knows how long the stream is."),
        (STREAM | {"train_file": None}, "--streaming has nothing to read: give --train_file or --dataset_name, or leave it out."),
        (STREAM | {"dry_run": True}, "--dry_run counts rows, and nobody knows how many a stream has: leave one of the two out."),
        ({"packing": "both"}, "--packing is 'both'; it is one of padded, packed."),
        ({"metric_for_best_model": "f1"}, "--metric_for_best_model f1 is no metric of --task mlm; accuracy, loss, perplexity, loss_per_byte are."),
        ({"packing": "packed", "task": "embedding"}, "--packing is for --task causal-lm and mlm; the task is embedding."),
        ({"torch_compile_mode": "fast"}, "--torch_compile_mode is 'fast'; it is one of default, reduce-overhead."),
        ({"torch_compile_mode": "reduce-overhead"}, "--torch_compile_mode reduce-overhead is for --packing packed, whose batches have one shape: choose that, or the mode default."),
        ({"packing": "packed", "torch_compile_mode": "reduce-overhead"}, "--torch_compile_mode reduce-overhead needs --torch_compile: add it, or choose the mode default."),
        ({"tokens_per_batch": 512}, "--tokens_per_batch is for --packing packed: without it, a batch has rows."),
        ({"packing": "packed", "tokens_per_batch": 64}, "--tokens_per_batch 64 is less than a row of --max_seq_length 128 tokens: raise it."),
        (STREAM | {"packing": "packed"}, "--packing packed needs to know how long rows are, and nobody knows it of a stream."),
        (STREAM | {"max_train_samples": 9}, "--max_train_samples is not for --streaming: --max_steps says how far it is read."),
        ({"bf16": True, "fp16": True}, "--bf16 and --fp16 exclude each other: choose one."),
        ({"push_to_hub": True}, "--push_to_hub needs --hub_model_id user/name to know where to."),
        ({"hub_model_id": "mine"}, "--hub_model_id is 'mine'; it is of the form user/name, of letters, digits, '-', '_' and '.'."),
        ({"hub_model_id": "a/b/c"}, "--hub_model_id is 'a/b/c'; it is of the form user/name, of letters, digits, '-', '_' and '.'."),
        ({"license": "Apache 2.0"}, "--license is 'Apache 2.0'; the Hub writes it in the manner of apache-2.0."),
        ({"language": ["en", "English"]}, "--language is 'English'; the Hub writes it in the manner of en."),
        ({"config_overrides": "[1]"}, """--config_overrides '[1]' is no mapping; write it as '{"hidden_size": 192}'."""),
        ({"config_overrides": '{"dtype": "foo"}'}, "--config_overrides dtype is no option of an architecture: leave it out."),
        ({"config_overrides": '{"output_attentions": true}'}, "--config_overrides output_attentions is no option of an architecture: leave it out."),
        ({"config_overrides": "{"}, """--config_overrides '{' is no mapping; write it as '{"hidden_size": 192}'."""),
    ],
)  # fmt: skip
def test_values_that_cannot_work(options, sentence):
    with pytest.raises(OptionError) as error:
        Arguments(**options)
    assert str(error.value) == sentence


def assert_sentence(error, sentence):
    message = str(error.value)
    assert message == sentence or re.fullmatch(sentence, message), message
    assert "\n" not in message


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and all(f"--{field.name}" in shown for field in dataclasses.fields(Arguments))


def test_each_task_has_its_own_number_of_epochs():
    for name, kind in TASKS.items():
        assert Arguments(task=name).num_train_epochs == kind.epochs >= 1
        assert Arguments(task=name, num_train_epochs=3).num_train_epochs == 3


def test_a_home_folder_is_found_where_no_shell_has_read_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = Arguments(output_dir="~/mine", model_name_or_path="~/model", tokenizer_name="~/tokenizer")
    assert (args.output_dir, args.model_name_or_path, args.tokenizer_name) == tuple(
        str(tmp_path / name) for name in ("mine", "model", "tokenizer")
    )
