"""The task embedding: losses against the obvious ones, retrieval over whole splits, gradients in parts and processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from cases import batch_of, evaluate, make_model
from datasets import Dataset, DatasetDict

from hf_tfenc.data.sources import Source, load_splits
from hf_tfenc.tasks.cached_gradients import cached_backward
from hf_tfenc.tasks.count_models import TfIdf
from hf_tfenc.tasks.embedding import Embedding, questions, text_key
from hf_tfenc.tasks.retrieval import rank
from hf_tfenc.training.arguments import Arguments

PROGRAM = Path(__file__).with_name("embedding_gradients.py")


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_chance_in_a_step_is_over_the_candidates_of_the_step(encoded_task):
    task, _ = encoded_task("triplets")
    assert task.step_baseline(9.0, 16) == pytest.approx(np.log(32))
    task, _ = encoded_task("scored")
    assert task.step_baseline(0.5, 16) == 0.5


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_first_texts_then_the_second(encoded_task):
    task, rows = encoded_task("triplets")
    batch = batch_of(task, rows["train"], [3, 5])
    for place, part in enumerate(("anchor", "positive", "negative")):
        for row, index in enumerate((3, 5)):
            ids = rows["train"][index][part]
            assert batch["input_ids"][2 * place + row, : len(ids)].tolist() == ids
            assert batch["attention_mask"][2 * place + row].sum() == len(ids)
            assert batch["keys"][row, place] == text_key(np.array(ids))
    assert batch["row"].tolist() == [3, 5] and batch["real"].tolist() == [1, 1]
    assert rows["train"]["length"][3] == sum(len(rows["train"][3][part]) for part in task.token_columns)


def test_what_is_too_long_is_cut_off_and_counted(encoded_task, caplog):
    rows = DatasetDict(train=Dataset.from_dict({"anchor": ["cat", "dog"], "positive": ["a fox " * 50, "b"]}))
    rows["validation"] = rows["train"]
    with caplog.at_level("INFO", logger="hf_tfenc"):
        encoded_task("pairs", rows)
    assert "train: 1 of 2 rows fill --max_seq_length 32 tokens; what is longer is cut off." in caplog.text


def test_scores_are_scaled_by_those_of_the_training_split(encoded_task):
    texts = {"anchor": ["a", "b", "c"], "positive": ["d", "e", "f"]}
    rows = DatasetDict(
        train=Dataset.from_dict(texts | {"score": [1.0, 5.0, 2.0]}),
        validation=Dataset.from_dict(texts | {"score": [3.0, 6.0, 1.0]}),
    )
    _, encoded = encoded_task("scored", rows)
    assert encoded["train"]["score"][:] == [0, 1, 0.25] and encoded["validation"]["score"][:] == [0.5, 1.25, 0]


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [
        ({"score": [1.0, 1.0]}, {"score": [1.0, 2.0]}, "All training scores are 1.0"),
        ({"score": [1.0, 2.0]}, {}, "validation has no column 'score'"),
        ({"negative": ["x", "y"]}, {}, "validation has no column 'negative'"),
        ({"score": [1.0, 2.0]}, {"score": [1.0, float("inf")]}, "validation, row 2: the score inf is no number"),
    ],
)
def test_what_cannot_be_learned_is_refused(encoded_task, train, validation, said):
    texts = {"anchor": ["a", "b"], "positive": ["c", "d"]}
    rows = DatasetDict(train=Dataset.from_dict(texts | train), validation=Dataset.from_dict(texts | validation))
    with pytest.raises(ValueError, match=said):
        encoded_task("pairs", rows)


# --- The loss and its gradient ---------------------------------------------------------------------------------------


def test_the_loss_is_that_of_finding_the_positive(encoded_task):
    task, _ = encoded_task("triplets", temperature=0.1)
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(4, 3, 8), dim=-1)
    keys = torch.arange(12).reshape(4, 3)
    keys[2, 1] = keys[0, 1]  # one positive for two anchors
    keys[3, 2] = keys[1, 1]  # somebody's negative is another's positive
    keys[3, 0] = keys[1, 0]  # an anchor with two positives
    keys[1, 2] = keys[2, 0]  # somebody's negative is another's anchor
    real = torch.tensor([1, 1, 1, 1])
    expected = 0.0
    for row in range(4):
        weight = {}
        for other in range(4):
            for part in (1, 2):
                right = keys[other, part] in (keys[row, 0], keys[row, 1]) or (
                    part == 1 and keys[other, 0] == keys[row, 0]
                )
                if not right or (other, part) == (row, 1):
                    weight[other, part] = np.exp((vectors[row, 0] @ vectors[other, part]).item() / 0.1)
        expected -= np.log(weight[row, 1] / sum(weight.values())) / 4
    assert task.contrastive_loss(vectors, keys, real).item() == pytest.approx(expected, rel=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    assert task.contrastive_loss(vectors[order], keys[order], real).item() == pytest.approx(expected, rel=1e-5)
    padded = torch.cat([vectors, vectors[:1]]), torch.cat([keys, keys[:1]]), torch.tensor([1, 1, 1, 1, 0])
    assert task.contrastive_loss(*padded).item() == pytest.approx(expected, rel=1e-5)


def test_dropout_is_the_same_in_both_passes(encoded_task, accelerator):
    task, rows = encoded_task("pairs")
    model = make_model(task, hidden_dropout=0.3, embedding_dropout=0.3).train()
    batches = [batch_of(task, rows["train"], range(start, start + 4)) for start in (0, 4, 8)]
    seen = []

    def embed(model, batch):
        seen.append(task.embed(model, batch))
        return seen[-1]

    torch.manual_seed(7)
    loss = cached_backward(accelerator, model, batches, embed, ("keys", "real"), task.contrastive_loss)
    after, cached = torch.get_rng_state(), [p.grad.clone() for p in model.parameters()]
    assert len(seen) == 6 and all(torch.equal(one, other) for one, other in zip(seen[:3], seen[3:], strict=True))
    assert not torch.equal(seen[0], task.embed(model, batches[0]))  # there is dropout

    torch.manual_seed(7)
    model.zero_grad()
    vectors = torch.cat([task.embed(model, batch) for batch in batches])
    whole = task.contrastive_loss(
        vectors, torch.cat([b["keys"] for b in batches]), torch.cat([b["real"] for b in batches])
    )
    assert torch.equal(torch.get_rng_state(), after)
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    for one, parameter in zip(cached, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_single_micro_batch_is_embedded_once(encoded_task, accelerator):
    task, rows = encoded_task("pairs")
    model, calls = make_model(task).train(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    task.backward(accelerator, model, [batch_of(task, rows["train"], range(4))], torch.tensor(4))
    assert len(calls) == 1


def test_no_graph_outlives_its_micro_batch(encoded_task, accelerator):
    """In the first pass nothing is kept for a gradient, in the second that of one micro-batch alone."""
    task, rows = encoded_task("pairs")
    model, kept = make_model(task).train(), []

    def embed(model, batch):
        vectors = task.embed(model, batch)
        kept.append(vectors.grad_fn is not None)
        return vectors

    batches = [batch_of(task, rows["train"], range(start, start + 2)) for start in (0, 2)]
    cached_backward(accelerator, model, batches, embed, ("keys", "real"), task.contrastive_loss)
    assert kept == [False, False, True, True]


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation():
    def gradients(processes):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] * (processes == 2)
        command = [sys.executable, *launch, str(PROGRAM)]
        environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2]), "ACCELERATE_USE_CPU": "1"}
        with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment) as process:
            try:
                stdout, stderr = process.communicate(timeout=120)
            finally:
                process.terminate()
        assert process.returncode == 0, stderr
        return json.loads(stdout.strip().splitlines()[-1])

    one, two = gradients(1), gradients(2)
    assert one.keys() == two.keys() and len(one) == 4  # pairs and scores, with whole and with uneven bins
    for case in one:
        assert two[case]["loss"] == pytest.approx(one[case]["loss"], rel=1e-5)
        assert two[case]["items"] == one[case]["items"]
        assert two[case]["gradient"] == pytest.approx(one[case]["gradient"], rel=1e-4, abs=1e-6)


# --- Metrics ---------------------------------------------------------------------------------------------------------


def test_texts_that_stand_more_than_once_are_one_candidate():
    keys = np.array([[1, 10, 20], [2, 11, 10], [1, 12, 21], [3, 10, 20]])
    anchors, candidates, relevant, ignored = questions(keys)
    assert keys.ravel()[anchors].tolist() == [1, 2, 3]
    assert keys.ravel()[candidates].tolist() == [10, 11, 12, 20, 21]
    assert relevant == [[0, 2], [1], [0]]
    assert ignored == [[], [], []]


def test_a_label_is_a_score(tmp_path):
    """Else pairs that are not alike would be learned as if they were."""
    path = tmp_path / "pairs.csv"
    path.write_text("sentence1,sentence2,label\n" + "".join(f"a {n},b {n},{n % 2}\n" for n in range(40)))
    rows = load_splits(Source(train_file=[str(path)]), Embedding.columns(Arguments(task="embedding")))
    assert set(rows["train"]["score"]) == {0.0, 1.0}
    path.write_text("sentence1,sentence2,label\n" + "".join(f"a {n},b {n},neutral\n" for n in range(40)))
    with pytest.raises(ValueError, match=r"the column 'label' holds str 'neutral', not a number: .*--label_column"):
        load_splits(Source(train_file=[str(path)]), Embedding.columns(Arguments(task="embedding")))


def test_an_anchor_is_no_wrong_answer_to_itself():
    """Paraphrases stand in both directions, and a text may be its own positive."""
    anchors, candidates, relevant, ignored = questions(np.array([[1, 2], [2, 1], [3, 3]]))
    assert (anchors.tolist(), candidates.tolist()) == ([0, 2, 4], [1, 3, 5])  # 2, 1, 3
    assert (relevant, ignored) == ([[0], [1], [2]], [[1], [0], []])
    similarities = np.array([[0.9, 1, 0], [1, 0.9, 0], [0, 0, 1]])
    assert rank(lambda part: similarities[part], relevant, ignored, 1.0).ranks == [[1], [1], [1]]


def test_metrics_by_hand(encoded_task):
    task, rows = encoded_task("triplets")
    model, batch = make_model(task), batch_of(task, rows["validation"], range(40), training=False)
    with torch.no_grad():
        vectors = model(batch["input_ids"], batch["attention_mask"]).pooler_output.double()
    vectors = F.normalize(vectors, dim=-1)
    texts = batch["input_ids"].tolist()
    anchors, positives = texts[:40], texts[40:80]
    candidates = [i for i in range(40, 120) if texts[i] not in texts[40:i]]
    itself = torch.tensor([[texts[c] == anchor for c in candidates] for anchor in anchors])
    assert itself.any()  # it is no wrong answer
    similarities = (vectors[:40] @ vectors[candidates].T).masked_fill(itself, -torch.inf)
    own = [[texts[i] for i in candidates].index(positive) for positive in positives]
    ranks = np.array([1 + (row > row[right]).sum().item() for row, right in zip(similarities, own, strict=True)])
    assert len({str(a) for a in anchors}) == 40  # so that each has one positive
    expected = {
        "eval_loss": F.cross_entropy(similarities / 0.05, torch.tensor(own)).item(),
        "eval_accuracy": (ranks == 1).mean(),
        "eval_mrr": (1 / ranks).mean(),
        "eval_ndcg_at_10": np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean(),
    }
    assert evaluate(task, model, rows["validation"]) == pytest.approx(expected, rel=1e-5)


def test_metrics_of_scores_by_hand(encoded_task):
    stats = pytest.importorskip("scipy.stats")
    task, rows = encoded_task("scored")
    model, batch = make_model(task), batch_of(task, rows["validation"], range(40), training=False)
    with torch.no_grad():
        vectors = model(batch["input_ids"], batch["attention_mask"]).pooler_output.double()
    cosines, scores = F.cosine_similarity(vectors[:40], vectors[40:]).numpy(), batch["score"].double().numpy()
    expected = {
        "eval_loss": ((cosines - scores) ** 2).mean(),
        "eval_pearson": stats.pearsonr(scores, cosines).statistic,
        "eval_spearman": stats.spearmanr(scores, cosines).statistic,
    }
    assert evaluate(task, model, rows["validation"]) == pytest.approx(expected, rel=1e-4)
    mean = rows["train"].with_format("numpy")["score"][:].mean()
    assert task.baseline_loss(rows["train"], rows["validation"]) == pytest.approx(((scores - mean) ** 2).mean())


def test_tf_idf_is_that_of_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    random = np.random.default_rng(0)
    train, asked = ([random.integers(1, 30, size=random.integers(3, 20)) for _ in range(20)] for _ in range(2))
    words = text.TfidfVectorizer(token_pattern=r"\S+", vocabulary=list(map(str, range(40))))
    words.fit([" ".join(map(str, ids)) for ids in train])
    vectors = words.transform([" ".join(map(str, ids)) for ids in asked])
    similarity = TfIdf(40, train).similarities(asked)
    ours = np.stack([similarity(ids) for ids in asked])
    assert ours == pytest.approx((vectors @ vectors.T).toarray())


def test_the_baseline_finds_what_shares_words(encoded_task):
    task, rows = encoded_task("pairs", max_seq_length=128)  # the positive has the anchor's words in another order
    assert task.baselines(rows["train"], rows["validation"])["eval_tfidf_accuracy"] > 0.9
