"""Streams: every text once, blocks of bounded size, and the same bins however an epoch is cut, split or gone on with."""

import collections
import gzip
import itertools
import threading
import weakref
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from hf_tfenc.data import streaming
from hf_tfenc.data.batching import PaddedBins, TrainingBins
from hf_tfenc.data.columns import Column
from hf_tfenc.data.files import Files
from hf_tfenc.data.sources import Source, load_splits, load_stream
from hf_tfenc.data.splits import row_hashes, text_hashes
from hf_tfenc.data.streaming import ROWS_PER_BLOCK, EncodedStream, Part, StreamedBins, TextStream

TEXT = [Column("text", "text", ("text",), None, "--text_column")]


def numbered(*counts, batch=7):
    """A stream of the texts "0", "1", ... in parts of so many."""
    ends = list(itertools.accumulate(counts))
    parts = []
    for end, count in zip(ends, counts, strict=True):
        values = [str(number) for number in range(end - count, end)]
        batches = [values[start : start + batch] for start in range(0, count, batch)]
        parts.append(Part(f"--train_file {end}", lambda batches=batches: iter(batches)))
    return TextStream(parts, "digest")


def encode(texts):
    """One to three rows of a text, each of its number."""
    ids = [[int(text)] * (1 + (int(text) * 7 + part) % 13) for text in texts for part in range(1 + int(text) % 3)]
    return pa.table({"input_ids": ids, "length": list(map(len, ids))})


def sampler(stream, block_texts=50, batch_size=4, seed=1, **others):
    return StreamedBins(EncodedStream(stream, encode, block_texts), PaddedBins(batch_size), seed, **others)


def passed(bins, epoch=0, consumed=0):
    """The bins of an epoch as (row number, text)."""
    bins.begin(epoch, consumed)
    return [[(row["row"], int(row["input_ids"][0])) for row in rows] for rows in bins]


def rows_of(texts):
    return collections.Counter({text: 1 + text % 3 for text in texts})


class Meeting:
    """`gather` for samplers in threads, one a process."""

    def __init__(self, processes):
        self.barrier, self.objects = threading.Barrier(processes, timeout=20), {}

    def of(self, process):
        def gather(own):
            self.objects[process] = own[0]
            self.barrier.wait()
            everyone = [self.objects[index] for index in sorted(self.objects)]
            self.barrier.wait()
            return everyone

        return gather


def passed_by(processes, make, epoch=0, consumed=0):
    """The bins that each of several processes gives out."""
    meeting, found = Meeting(processes), {}

    def work(process):
        own = make(process_index=process, num_processes=processes, gather=meeting.of(process))
        found[process] = passed(own, epoch, consumed)

    threads = [threading.Thread(target=work, args=(process,)) for process in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[process] for process in range(processes)]


# --- Bins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("texts", "block_texts"), [(1, 50), (49, 50), (50, 50), (51, 50), (1000, 50), (1000, 1)])
def test_every_row_is_in_one_bin_of_its_block(texts, block_texts):
    bins = passed(sampler(numbered(texts), block_texts))
    rows = [pair for rows in bins for pair in rows]
    assert collections.Counter(text for _, text in rows) == rows_of(range(texts))
    assert len({number for number, _ in rows}) == len(rows)
    assert all(number // ROWS_PER_BLOCK == text // block_texts for number, text in rows)
    blocks = [{number // ROWS_PER_BLOCK for number, _ in rows} for rows in bins]
    assert all(len(block) == 1 for block in blocks) and blocks == sorted(blocks, key=min)


def test_one_block_is_an_epoch_of_a_data_set():
    table = encode(map(str, range(200)))
    lengths = table["length"].to_numpy()
    expected = [rows.tolist() for rows in PaddedBins(4)(lengths, 1, 3)]
    assert [[number for number, _ in rows] for rows in passed(sampler(numbered(200), 1000), epoch=3)] == expected


def test_blocks_and_epochs_have_orders_of_their_own():
    def order(epoch, block, seed=1):
        return [
            number % ROWS_PER_BLOCK
            for rows in passed(sampler(numbered(120), 60, seed=seed), epoch)
            for number, _ in rows
            if number // ROWS_PER_BLOCK == block
        ]

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1), order(0, 0, seed=2)]
    assert all(sorted(one) == list(range(120)) for one in orders)
    assert len(set(map(tuple, orders))) == len(orders) and order(0, 1) == orders[1]


def test_files_change_places_from_epoch_to_epoch():
    stream = numbered(*[10] * 8)
    first = [int(text) for _, text in stream.read()]
    assert first == list(range(80))
    orders = [[int(text) for _, text in stream.read(stream.order(5, epoch))] for epoch in range(3)]
    assert all(sorted(order) == first for order in orders) and len(set(map(tuple, orders))) == 3
    for order in orders:
        assert all(
            order[start : start + 10] == list(range(order[start], order[start] + 10)) for start in range(0, 80, 10)
        )


@pytest.mark.parametrize("block_texts", [9, 50, 1000])
def test_an_epoch_goes_on_at_any_bin(block_texts):
    """As from a checkpoint: with the bookmark of a sampler that was ahead, and without one."""
    make = {"block_texts": block_texts, "accumulation_steps": 1}
    whole = passed(sampler(numbered(30, 40, 50), **make), epoch=2)
    ahead = sampler(numbered(30, 40, 50), **make)
    ahead.begin(2)
    given = iter(ahead)
    for consumed in range(1, len(whole)):
        next(given)
        mark = list(ahead.bookmark(consumed))  # as it comes back from JSON
        assert mark[1] <= consumed
        resumed = sampler(numbered(30, 40, 50), bookmark=mark, **make)
        assert passed(resumed, 2, consumed) == whole[consumed:]
        assert resumed.share(len(whole)) == 1 and resumed.share(len(whole) - 1) == 0
    assert passed(sampler(numbered(30, 40, 50), **make), 2, len(whole) // 2) == whole[len(whole) // 2 :]
    assert passed(resumed, 3) == passed(sampler(numbered(30, 40, 50), **make), 3)


def test_a_bookmark_saves_the_tokenizing():
    encoded = []

    def noted(texts):
        encoded.extend(texts)
        return encode(texts)

    def make(**others):
        return StreamedBins(EncodedStream(numbered(1000), noted, 50), PaddedBins(4), 1, **others)

    whole = make()
    bins = passed(whole)
    assert encoded == [str(number) for number in range(1000)]
    mark = whole.bookmark(len(bins) // 2)
    encoded.clear()
    passed(make(bookmark=mark), consumed=len(bins) // 2)
    assert encoded == [str(number) for number in range(mark.rows, 1000)] and 450 <= mark.rows <= 550


@pytest.mark.parametrize(("texts", "consumed"), [(1, 0), (120, 0), (120, 3), (333, 0), (333, 13)])
def test_a_step_sees_the_same_rows_however_it_is_split(texts, consumed, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_TEXTS", 6)  # several in a block, for several processes

    def steps(processes, accumulation_steps):
        def make(**place):
            return sampler(numbered(texts), 50, accumulation_steps=accumulation_steps, **place)

        bins = passed_by(processes, make, epoch=5, consumed=consumed)
        assert len(set(map(len, bins))) == 1 and len(bins[0]) % accumulation_steps == 0
        return [
            [row for micro in range(start, start + accumulation_steps) for own in bins for row in own[micro]]
            for start in range(0, len(bins[0]), accumulation_steps)
        ]

    expected = steps(1, 4)
    assert steps(2, 2) == expected and steps(4, 1) == expected
    alone = passed(sampler(numbered(texts)), 5)[consumed:]
    assert list(itertools.chain(*expected)) == list(itertools.chain(*alone))


def test_each_process_tokenizes_its_share(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_TEXTS", 5)
    encoded = collections.defaultdict(list)

    def make(process_index, **place):
        def noted(texts):
            encoded[process_index] += texts
            return encode(texts)

        return StreamedBins(
            EncodedStream(numbered(300), noted, 50), PaddedBins(4), 1, process_index=process_index, **place
        )

    passed_by(2, make)
    assert sorted(map(int, encoded[0] + encoded[1])) == list(range(300))
    assert len(encoded[0]) == len(encoded[1]) == 150


def test_what_fails_in_one_process_fails_in_all(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_TEXTS", 5)
    said = {}

    def make(process_index, **place):
        def failing(texts):
            if process_index == 1:
                raise ValueError("no such thing")
            return encode(texts)

        bins = StreamedBins(
            EncodedStream(numbered(300), failing, 50), PaddedBins(4), 1, process_index=process_index, **place
        )

        class Told:
            def begin(self, *place):
                bins.begin(*place)

            def __iter__(self):
                with pytest.raises(ValueError, match="no such thing") as error:
                    next(iter(bins))
                said[process_index] = str(error.value)
                return iter([])

        return Told()

    passed_by(2, make)
    assert said == {0: "no such thing", 1: "no such thing"}


def test_the_end_is_known_with_the_last_step_and_not_before():
    for texts in (50, 51, 100, 120):
        bins = sampler(numbered(texts), accumulation_steps=2)
        bins.begin(0)
        ended = [bins.share(given) for given, _ in enumerate(bins, 1) if given % 2 == 0]
        assert ended == [0] * (len(ended) - 1) + [1]


def test_a_stream_that_has_become_shorter_is_told():
    bins = sampler(numbered(100), bookmark=[4, 60, 90])
    bins.begin(2, 80)
    with pytest.raises(ValueError, match="ends before batch 81 of its epoch 3, up to which this run had come"):
        next(iter(bins))


def test_rows_of_a_step_can_be_named():
    bins = sampler(numbered(300), accumulation_steps=3)
    found = passed(bins)
    for first in (0, 3, 30):
        assert bins.rows(0, first) == [number for rows in found[first : first + 3] for number, _ in rows]


def test_it_is_given_out_as_training_bins_are():
    """What the trainer asks of either."""
    shared = {"begin", "share", "rows", "bins_per_epoch", "bins_per_step", "__iter__"}
    lengths = np.ones(10, dtype=np.int64)
    for bins in (TrainingBins(lengths, PaddedBins(4), 1), sampler(numbered(10))):
        assert shared <= set(dir(bins))


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_no_more_than_two_blocks_are_held(write, monkeypatch):
    """Of a file of 200 blocks."""
    alive = weakref.WeakSet()

    class Counted(streaming.EncodedRows):
        def __init__(self, rows):
            super().__init__(rows)
            alive.add(self)

    monkeypatch.setattr(streaming, "EncodedRows", Counted)
    path = write("numbers.txt", "\n".join(map(str, range(10_000))))
    bins = sampler(Files.of("--train_file", [Path(path)], "line").stream("text"), block_texts=50)
    given, most, texts_read = 0, 0, []
    for batch in bins:
        given += len(batch)
        most = max(most, sum(map(len, alive)))
        texts_read.append(bins.bookmarks[-1].rows)
    assert given == rows_of(range(10_000)).total()
    assert 50 < most <= 2 * 50 * 3
    assert texts_read[0] == 0 and len(set(texts_read)) >= 200  # it was read as it was needed


def test_long_texts_make_smaller_blocks_and_chunks(monkeypatch):
    monkeypatch.setattr(streaming, "CHARACTERS_PER_TEXT", 10)
    monkeypatch.setattr(streaming, "CHUNK_CHARACTERS", 300)
    texts = ["x" * 100] * 23 + ["y"] * 100
    stream = TextStream([Part("made", lambda: iter([texts]))], "digest")
    blocks = [list(block) for block in EncodedStream(stream, encode, 50).blocks(0, 0)]
    sizes = [[len(chunk) for _, chunk in block] for block in blocks]
    assert sizes == [[3, 2]] * 4 + [[3, 47], [50], [3]]
    assert [end for block in blocks for end, _ in block][-1] == 123


# --- Sources ---------------------------------------------------------------------------------------------------------


CONTENTS = {
    "rows.jsonl": [{"id": number, "text": f"text {number}"} for number in range(2500)],
    "rows.json": [{"text": f"text {number}"} for number in range(50)],
    "rows.csv": "id,text\n" + "".join(f'{number},"text\n{number}"\n' for number in range(2500)),
    "rows.tsv": "text\tid\n" + "".join(f"text {number}\t{number}\n" for number in range(60)),
    "rows.parquet": [{"text": f"text {number}"} for number in range(2500)],
    "lines.txt": "\ufeff" + "".join(f"text {number}\n\n" for number in range(300)),
    "mixed.txt": "one\r\ntwo\n\n three \n\n\nfour\n" * 100,
}


@pytest.mark.parametrize(
    ("name", "sample_by"),
    [
        (name, sample_by)
        for name in CONTENTS
        for sample_by in ("document", "line", "paragraph")
        if sample_by == "document" or name.endswith(".txt")
    ],
)
@pytest.mark.usefixtures("cache")
def test_a_stream_has_the_texts_of_a_data_set(write, name, sample_by):
    path = write(name, CONTENTS[name])
    other = write(f"validation/{name}", CONTENTS[name])
    source = Source(train_file=path, validation_file=other, sample_by=sample_by)
    rows = load_splits(source, TEXT)["train"]["text"][:]
    stream, splits = load_stream(source, TEXT)
    assert [text for _, text in stream.read()] == rows == splits["train"]["text"][:]
    assert splits["validation"]["text"][:] == rows
    numbers = [number for number, _ in stream.read()]
    assert all(low < high for low, high in itertools.pairwise(numbers))
    for place in (0, len(rows) // 2, len(rows) - 1):
        assert [text for _, text in stream.read(skip=numbers[place])] == rows[place + 1 :]


def by_line(name):
    """What is one row of a file: of plain text a line."""
    return "line" if ".txt" in name else "document"


@pytest.mark.usefixtures("cache")
def test_a_compressed_file(tmp_path):
    for name in ("lines.jsonl.gz", "lines.txt.gz"):
        line = '{"text": "text %d"}\n' if "json" in name else "text %d\n"
        with gzip.open(tmp_path / name, "wt") as file:
            file.writelines(line % number for number in range(1500))
        stream = load_stream(Source(train_file=str(tmp_path / name), sample_by=by_line(name)), TEXT)[0]
        assert {text for _, text in stream.read()} <= {f"text {number}" for number in range(1500)}
        assert len(list(stream.read())) + len(stream.held_out) == 1500


@pytest.mark.usefixtures("cache")
def test_a_long_document_is_read_in_parts(write, monkeypatch):
    monkeypatch.setattr("hf_tfenc.data.files.LONG_DOCUMENT", 1000)
    monkeypatch.setattr("hf_tfenc.data.files.PART_CHARACTERS", 100)
    text = "".join(f"line {number}\n" for number in range(1000))
    stream = Files.of("--train_file", [Path(write("long.txt", text))], "document").stream("text")
    parts = [text for _, text in stream.read()]
    assert "".join(parts) == text and len(parts) > 80


@pytest.mark.parametrize("max_eval_samples", [None, 20])
def test_held_out_texts_are_left_out_wherever_they_stand(write, monkeypatch, log, max_eval_samples):
    monkeypatch.setattr("hf_tfenc.data.sources.HEAD_TEXTS", 1000)
    lines = [f"text {number % 3000}" for number in range(6000)]  # each twice
    source = Source(
        train_file=write("lines.txt", "\n".join(lines)), sample_by="line", max_eval_samples=max_eval_samples
    )
    stream, splits = load_stream(source, TEXT)
    held_out = splits["validation"]["text"][:]
    read = collections.Counter(text for _, text in stream.read())
    assert read == {text: 2 for text in lines if text not in held_out}
    assert sorted(held_out + splits["train"]["text"][:]) == sorted(lines[:1000])
    assert len(held_out) == (max_eval_samples or pytest.approx(50, abs=25))
    assert f"{len(held_out)} of the first 1000 texts are held out" in log.text
    again = load_stream(source, TEXT)[0]
    assert EncodedStream(again, encode, 9).digest() == EncodedStream(stream, encode, 9).digest()


def test_the_hash_of_a_text_is_that_of_its_row():
    texts = ["one", "two", "Ünïcode"]
    assert text_hashes(texts).tolist() == row_hashes(Dataset.from_dict({"text": texts}), ["text"]).tolist()


def test_splits_by_name_and_a_folder_as_on_the_hub(write, tmp_path):
    for split, count in (("train", 30), ("validation", 5), ("test", 4)):
        write(f"data/{split}.jsonl", [{"text": f"{split} {number}"} for number in range(count)])
    write("data/README.md", "---\nconfigs:\n- config_name: default\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "validation", "test")
    ) + "---\n")  # fmt: skip
    for source in (Source(train_file=str(tmp_path / "data")), Source(dataset_name=str(tmp_path / "data"))):
        stream, splits = load_stream(source, TEXT)
        assert [text for _, text in stream.read()] == [f"train {number}" for number in range(30)]
        assert {split: len(rows) for split, rows in splits.items()} == {"train": 30, "validation": 5, "test": 4}


def test_a_folder_that_datasets_reads(write, tmp_path):
    """With an option that is not ours to read: as a dataset on the Hub is streamed."""
    for split, count in (("train", 3000), ("validation", 50)):
        write(f"data/{split}.csv", "n;text\n" + "".join(f"{number};{split} {number}\n" for number in range(count)))
    write("data/README.md", "---\nconfigs:\n- config_name: default\n  sep: ';'\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: {split}.csv\n" for split in ("train", "validation")
    ) + "---\n")  # fmt: skip
    stream, splits = load_stream(Source(dataset_name=str(tmp_path / "data")), TEXT)
    assert [text for _, text in stream.read(skip=5)] == [f"train {number}" for number in range(5, 3000)]
    assert splits["validation"]["text"][:] == [f"validation {number}" for number in range(50)]
    assert stream.digest == load_stream(Source(dataset_name=str(tmp_path / "data")), TEXT)[0].digest


def test_nothing_is_copied(write, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, content in CONTENTS.items():
        stream, _ = load_stream(Source(train_file=write(name, content), sample_by=by_line(name)), TEXT)
        assert list(stream.read())
    assert not sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())  # locks alone


# --- Bad rows --------------------------------------------------------------------------------------------------------


def test_a_row_without_text_is_named_or_skipped(write, log):
    good = write("good.jsonl", [{"text": f"text {number}"} for number in range(10)])
    bad = write("bad.jsonl", [{"text": "one"}, {"text": None}, {"text": " "}, {"text": "two"}])
    with pytest.raises(ValueError, match=rf"^--train_file {bad}, row 2: the text is null, not a string: mend the row"):
        load_stream(Source(train_file=[good, bad]), TEXT)
    stream, _ = load_stream(Source(train_file=[good, bad], skip_bad_rows=True, validation_file=good), TEXT)
    log.clear()
    assert [number for number, _ in stream.read()] == [*range(1, 12), 14]
    assert log.messages == [
        f"1 of 14 rows of the stream are bad and left out, such as --train_file {bad}, row 2: the text is null, not a "
        "string."
    ]


def test_bytes_that_are_no_text_are_named(write):
    bad = write("bad.txt", b"good\n" * 3000 + b"caf\xe9\n")
    with pytest.raises(ValueError, match=rf"^--train_file {bad}, line 3001: the byte 0xe9 is not UTF-8"):
        load_stream(Source(train_file=bad, sample_by="line"), TEXT)


def test_a_source_with_no_text_is_refused(write):
    with pytest.raises(ValueError, match="there is no text in it"):
        load_stream(Source(train_file=write("empty.txt", "\n\n"), sample_by="line"), TEXT)
    with pytest.raises(ValueError, match="one row repeated, so none can be held out"):
        load_stream(Source(train_file=write("same.txt", "a\na\na\n"), sample_by="line"), TEXT)


# --- Versions --------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_what_files_hold(write, tmp_path):
    def digest(path):
        return Files.of("--train_file", [Path(path)], "line").stream("text").digest

    text = "".join(f"line {number}\n" for number in range(3000))
    first = write("a.txt", text)
    assert digest(first) == digest(write("b/other.txt", text))
    for other in (text + "more\n", "L" + text[1:], text[:-2] + "x\n"):
        assert digest(first) != digest(write("c.txt", other))
