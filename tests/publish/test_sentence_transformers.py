"""sentence-transformers loads our folders, and its vectors are our pooled output."""

import pytest
import torch
from datasets import Dataset

import hf_tfenc
from hf_tfenc.embed import Encoding, load_model
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.conversion import convert
from hf_tfenc.publish.sentence_transformers import ACTIVATIONS, write_modules

library = pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")

TEXTS = ["the cat", "the old fox never forgets the river. my neighbour draws a red house.", "3:"]


@pytest.fixture
def make(tmp_path, tokenizer):
    def make(preset, head="Model", **options):
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        config = preset_config(preset, vocab_size=len(tokenizer), max_position_embeddings=64, **sizes | options)
        torch.manual_seed(0)
        model = getattr(hf_tfenc, f"TfEnc{head}")(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        write_modules(model, tmp_path / "model")
        return model.eval(), tmp_path / "model"

    return make


def vectors_of(folder):
    return torch.from_numpy(library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("preset", ["classic-tiny", "bert-tiny", "modern-tiny"])
def test_vectors_are_our_pooled_output(make, tokenizer, preset, pooling):
    model, folder = make(preset, pooling=pooling)
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(vectors_of(folder), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_other_heads_give_the_vectors_of_their_body(make, tokenizer, head):
    model, folder = make("modern-tiny", head, pooling="mean")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = model.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    expected = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(vectors_of(folder), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("preset, family", [("bert-tiny", "bert"), ("modern-tiny", "modernbert")])
def test_a_converted_model_gives_the_same_vectors(make, tokenizer, tmp_path, preset, family):
    model, folder = make(preset)
    convert(str(folder), tmp_path / "served", family)
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(vectors_of(tmp_path / "served"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_those_of_transformers(make, tokenizer, activation):
    model, folder = make("bert-tiny", pooler_activation=activation)
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(vectors_of(folder), expected, atol=1e-5, rtol=1e-5)


def test_an_activation_that_cannot_be_named_leaves_nothing_wrong_behind(make):
    _, folder = make("bert-tiny", pooler_activation="quick_gelu")
    assert not (folder / "modules.json").exists()
    with pytest.raises(
        ValueError, match=r"^sentence-transformers has no pooler_activation 'quick_gelu', as the model"
    ):
        load_model(str(folder), Encoding())


def test_its_trainer_fine_tunes_our_model(make, tmp_path, texts):
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    _, folder = make("modern-tiny", pooling="mean")
    model = library.SentenceTransformer(str(folder), device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = Dataset.from_dict({"anchor": [text[:20] for text in texts[:32]], "positive": texts[:32]})
    arguments = library.SentenceTransformerTrainingArguments(
        str(tmp_path / "out"),
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = library.SentenceTransformerTrainer(model, arguments, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 3 and torch.isfinite(torch.tensor(losses)).all()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 2
    model.save(str(tmp_path / "saved"))
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS)
    torch.testing.assert_close(torch.from_numpy(again), torch.from_numpy(model.encode(TEXTS)))
