"""transformers' own Trainer takes our heads, on one process or two, to the same weights."""

import pytest
import torch
from launching import Processes
from safetensors.torch import load_file


def fine_tune(folder, per_device_train_batch_size):
    from transformers import Trainer, TrainingArguments

    from hf_tfenc import TfEncForMaskedLM
    from hf_tfenc.presets import preset_config

    torch.manual_seed(0)
    dropouts = dict.fromkeys(("embedding_dropout", "hidden_dropout", "mlp_dropout"), 0.0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    model = TfEncForMaskedLM(preset_config("modern-tiny", vocab_size=31, **sizes, **dropouts))
    ids = torch.randint(5, 31, (64, 12), generator=torch.Generator().manual_seed(0))
    # Of very different numbers of labels, so that a mean of the processes' means would not be the mean of all.
    kept = torch.arange(12) < torch.randint(1, 13, (64, 1), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row.where(mask, -100)} for row, mask in zip(ids, kept, strict=True)]
    arguments = TrainingArguments(
        folder, max_steps=6, per_device_train_batch_size=per_device_train_batch_size, gradient_accumulation_steps=2,
        learning_rate=0.01, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(folder)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    Processes(fine_tune, (str(tmp_path / "one"), 8), tmp_path / "one.log").finish()
    Processes(fine_tune, (str(tmp_path / "two"), 4), tmp_path / "two.log", processes=2).finish()
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-4, rtol=1e-4, msg=name)
