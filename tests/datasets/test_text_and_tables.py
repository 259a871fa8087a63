"""Text files with a tokenizer, folders of Hugging Face's datasets, dicts and loaders as data."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from haq.datasets import Reading, from_splits, load
from haq.datasets.splits import columns_of, shifted
from haq.errors import DataError
from haq.network.inputs import Batch

WORDS = "one two three four five six seven eight nine ten".split()


@pytest.fixture
def folder(tmp_path):
    """A tokenizer that makes one token of each word, and a text of 40 lines of 5 words."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: at for at, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lines = [" ".join(WORDS[(at + k) % 10] for k in range(5)) for at in range(40)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return tmp_path


def reading(folder, **more):
    return Reading(tokenizer=str(folder), **more)


def test_a_text_is_blocks_and_the_tokens_that_follow(folder):
    data = load(f"text:{folder / 'text.txt'}", reading=reading(folder, length=8, next_token=True))
    assert data.labels == "tokens" and data.classes == () and data.shape == (8,)
    inputs, labels = data.train.batch(torch.tensor([0, 1]))
    assert inputs[0, :5].tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(labels[0, :-1], inputs[0, 1:]) and labels[0, -1] == inputs[1, 0]
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 2, 2]


def test_lines_are_inputs_without_labels_of_which_each_is_in_one_split(folder):
    data = load(f"text:{folder / 'text.txt'}", reading=reading(folder, length=4))
    assert data.labels == "none" and set(data.inputs) == {"input_ids", "attention_mask"}
    assert [len(part) for part in (data.train, data.val, data.test)] == [32, 4, 4]
    inputs, _ = data.test.batch(torch.arange(4))
    assert isinstance(inputs, Batch) and inputs.get("input_ids").shape == (4, 4)
    other = load(f"text:{folder / 'text.txt'}", seed=1, reading=reading(folder, length=4))
    assert not torch.equal(other.test.batch(torch.arange(4))[0].tensors[0], inputs.tensors[0])


def test_short_lines_are_padded_and_the_mask_says_where(folder):
    (folder / "short.txt").write_text("\n".join(["one two three", "four"] * 6), encoding="utf-8")
    data = load(f"text:{folder / 'short.txt'}", reading=reading(folder, length=9))
    inputs, _ = data.train.batch(torch.arange(len(data.train)))
    ids, mask = inputs.tensors
    assert ids.shape[1] == 3 and torch.equal(mask.sum(1), (ids != 0).sum(1))


@pytest.mark.parametrize(
    "name, more, said",
    [
        ("text.txt", {"tokenizer": None}, "needs a tokenizer: give --tokenizer DIR"),
        ("text.txt", {"tokenizer": "/nowhere"}, "/nowhere has none"),
        ("text.txt", {"tokens": 5}, "has 11 tokens, and the model knows 5"),
        ("text.txt", {"length": 100, "next_token": True}, "has 200 tokens, 1 blocks of 100"),
        ("missing.txt", {}, "cannot be read: no such file"),
        ("bytes.txt", {}, "is not UTF-8"),
        ("few.txt", {}, "has 1 lines that are not empty"),
    ],
)
def test_what_is_wrong_with_a_text_is_one_sentence(folder, name, more, said):
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "few.txt").write_text("one two\n\n")
    with pytest.raises(DataError, match=said):
        load(f"text:{folder / name}", reading=Reading(**{"tokenizer": str(folder), **more}))


def test_a_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer in .* cannot be read"):
        load(f"text:{folder / 'text.txt'}", reading=reading(folder))


# --- tables ----------------------------------------------------------------------------------


def token_table(rows=30, labels=True):
    columns = {
        "input_ids": [[at % 7, 1, 2] for at in range(rows)],
        "attention_mask": [[1, 1, at % 2] for at in range(rows)],
    }  # fmt: skip
    return pa.table(columns | ({"label": [at % 3 for at in range(rows)]} if labels else {}))


def save(table, folder):
    """Write a table as ``Dataset.save_to_disk`` does."""
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_saved_dataset_of_three_splits(tmp_path):
    names = ("train", "validation", "test")
    for name, rows in zip(names, (20, 10, 12), strict=True):
        save(token_table(rows), tmp_path / "set" / name)
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": names}))
    data = load(f"dataset:{tmp_path / 'set'}")
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 10, 12]
    inputs, labels = data.val.batch(torch.tensor([4]))
    assert inputs.get("input_ids").tolist() == [[4, 1, 2]] and labels.tolist() == [1]
    assert data.classes == ("0", "1", "2")


def test_a_table_alone_is_divided_by_the_seed(tmp_path):
    save(token_table(), tmp_path / "set")
    data = load(f"dataset:{tmp_path / 'set'}", seed=3)
    assert [len(part) for part in (data.train, data.val, data.test)] == [24, 3, 3]
    assert set(data.val.labels.tolist()) == {0, 1, 2}


def test_rows_that_were_selected_are_those_that_are_read(tmp_path):
    save(token_table(labels=False), tmp_path / "set")
    indices = pa.table({"indices": pa.array(range(29, 9, -1), pa.uint64())})
    with pa.OSFile(str(tmp_path / "set" / "indices.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, indices.schema) as writer:
            writer.write_table(indices)
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    data = load(f"dataset:{tmp_path / 'set'}")
    assert sum(len(part) for part in (data.train, data.val, data.test)) == 20
    assert data.labels == "none"


def test_parquet_files_are_splits_by_how_their_names_begin(tmp_path):
    for name, rows in (("train", 20), ("test", 10)):
        pq.write_table(token_table(rows), tmp_path / f"{name}-00000-of-00001.parquet")
    data = load(f"dataset:{tmp_path}")
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 10]


def test_texts_are_tokenized_and_keep_their_labels(folder):
    table = pa.table({"text": ["one two three", "four"] * 10, "label": [0, 1] * 10})
    pq.write_table(table, folder / "rows.parquet")
    data = load(f"dataset:{folder}", reading=reading(folder, length=5))
    inputs, labels = data.train.batch(torch.tensor([0]))
    assert data.labels == "classes" and inputs.get("input_ids").shape[1] == 3
    assert inputs.get("attention_mask").sum() == (3 if labels[0] == 0 else 1)


def test_images_come_at_the_models_size_and_normalisation(tmp_path):
    import io

    from PIL import Image

    rows = []
    for at in range(12):
        content = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 20 * at, np.uint8)).save(content, "PNG")
        rows.append({"bytes": content.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 6}), tmp_path / "rows.parquet")
    about = Reading(size=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    data = load(f"dataset:{tmp_path}", reading=about)
    images, _ = data.train.batch(torch.tensor([0]))
    assert data.shape == (3, 4, 4) and images.shape == (1, 3, 4, 4)
    levels = {round(20 * at / 255 / 0.25 - 2, 3) for at in range(12)}
    assert round(float(images[0, 0, 0, 0]), 3) in levels


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda place: None, "holds no dataset"),
        (lambda place: (place / "a.parquet").write_text("no"), "a.parquet cannot be read"),
        (lambda place: pq.write_table(pa.table({"x": [1] * 20}), place / "a.parquet"),
         "has the columns x, and none of"),
        (lambda place: pq.write_table(token_table(5), place / "a.parquet"), "has 5 rows; give 10"),
        (lambda place: pq.write_table(pa.table({"input_ids": [[1], [1, 2]] * 10}),
                                      place / "a.parquet"), "rows of 1 to 2 numbers; pad them"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_one_sentence(tmp_path, make, said):
    make(tmp_path)
    with pytest.raises(DataError, match=said):
        load(f"dataset:{tmp_path}")


# --- dicts and loaders -----------------------------------------------------------------------


def columns(rows=6):
    ids = torch.arange(rows * 3).view(rows, 3)
    return {"input_ids": ids, "attention_mask": torch.ones(rows, 3, dtype=torch.int64)}


def test_splits_of_dicts_keep_names_and_labels():
    labelled = columns() | {"labels": torch.tensor([0, 1, 0, 1, 0, 1])}
    data = from_splits([labelled] * 3)
    inputs, labels = data.val.batch(torch.tensor([1, 2]))
    assert inputs.names == ("input_ids", "attention_mask") and labels.tolist() == [1, 0]
    assert data.labels == "classes" and set(data.inputs) == {"input_ids", "attention_mask"}


def test_splits_without_labels_have_none():
    data = from_splits([columns(), columns(), columns()])
    assert data.labels == "none" and data.train.labels.tolist() == [0] * 6


def test_labels_that_repeat_the_tokens_become_those_of_the_next_one():
    inputs = Batch((torch.tensor([[5, 6, 7]]), torch.ones(1, 3)), ("input_ids", "attention_mask"))
    assert shifted(torch.tensor([[5, 6, 7]]), inputs).tolist() == [[6, 7, -100]]
    assert shifted(torch.tensor([[5, 6, -100]]), inputs).tolist() == [[6, -100, -100]]
    assert shifted(torch.tensor([[6, 7, 0]]), inputs).tolist() == [[6, 7, 0]]


def test_a_loader_is_read_once_into_memory():
    pairs = TensorDataset(torch.arange(10.0).view(5, 2), torch.tensor([0, 1, 0, 1, 1]))
    whole = columns_of(DataLoader(pairs, batch_size=2), "it")
    assert torch.equal(whole.inputs, pairs.tensors[0]) and whole.labels.tolist() == [0, 1, 0, 1, 1]
    items = [{name: value[at] for name, value in columns().items()} for at in range(6)]
    dicts = columns_of(DataLoader(items, batch_size=4), "it")
    assert torch.equal(dicts.inputs.get("input_ids"), columns()["input_ids"])
    assert dicts.labels is None


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("outputs", [None, lambda inputs, labels: 3])
def test_masks_do_not_count_where_they_are_255(kind, outputs):
    images = torch.zeros(2, 3, 4, 4)
    masks = torch.zeros(2, 4, 4, dtype=kind)
    masks[1, 1, 1] = 2
    void = masks.clone()
    void[0, 0, 0] = 255
    data = from_splits([(images, masks), (images, void), (images, masks)], outputs=outputs)
    assert data.labels == "pixels" and int(data.val.labels.min()) == -100
    assert data.classes == ("0", "1", "2")


@pytest.mark.parametrize("more, outputs", [(256, None), (255, 300)])
def test_255_is_a_class_where_there_are_so_many(more, outputs):
    masks = torch.zeros(2, 4, 4, dtype=torch.int64)
    masks[0, 0, 0], masks[0, 0, 1] = 255, more
    given = None if outputs is None else lambda inputs, labels: outputs
    data = from_splits([(torch.zeros(2, 3, 4, 4), masks)] * 3, outputs=given)
    assert int(data.train.labels.min()) == 0


@pytest.mark.parametrize(
    "split, said",
    [
        ({"labels": torch.zeros(3)}, "no inputs beside its labels"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(2, 2)}, "inputs of 3 and of 2 rows"),
        (DataLoader([["x", "y"]], batch_size=1), "batch 0 of the train split"),
        (DataLoader(TensorDataset(torch.zeros(0, 2))), "is empty"),
    ],
)
def test_what_is_wrong_with_a_split_is_named(split, said):
    with pytest.raises(DataError, match=said):
        from_splits([split] * 3)


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"label": ["good"] * 20}, "column 'label' of .* holds 'good'; labels are whole numbers"),
        ({"label": [None, *[1] * 19]}, "column 'label' of .* holds None"),
        ({"label": [0.5] * 20}, "column 'label' of .* holds 0.5"),
        ({"label": [True] * 20}, "column 'label' of .* holds True"),
        ({"text": ["one"] * 19 + [None]}, "has no token in column 'text'"),
        ({"text": [""] * 20}, "row 0 of .* has no token in column 'text'"),
    ],
)
def test_tables_of_texts_whose_rows_cannot_be_are_refused_by_the_column(folder, columns, said):
    place = folder / "rows"
    place.mkdir()
    table = {"text": ["one two"] * 20, "label": [0, 1] * 10} | columns
    pq.write_table(pa.table(table), place / "train.parquet")
    with pytest.raises(DataError, match=said):
        load(f"dataset:{place}", reading=reading(folder, length=8))
