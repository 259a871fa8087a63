import io
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from haq.datasets import TensorSplit, check_fits, from_splits, load, outline
from haq.datasets.cifar10 import augment
from haq.datasets.folder import FolderSplit, middle, part
from haq.datasets.tensors import LazySplit, decode, flip, normalise, shift, stratify
from haq.errors import DataError, HaqError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, seed: int = 0, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_parquet(path: Path, images: list, labels, column: str = "img") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {column: pa.array(rows, kind), "label": pa.array(labels, pa.int64())}
    pq.write_table(pa.table(table), path)


def write_cifar10(place: Path, train: int = 20, test: int = 5, column: str = "img") -> None:
    for name, count, seed in (("train", train, 0), ("test", test, 1)):
        write_parquet(
            place / f"{name}-00000-of-00001.parquet",
            [encoded(p) for p in pictures(count, seed)],
            [i % 10 for i in range(count)],
            column,
        )


def write_binary(place: Path, count: int = 4) -> None:
    place.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for seed, name in enumerate(names):
        planes = pictures(count, seed).transpose(0, 3, 1, 2).reshape(count, 3072)
        labels = np.full((count, 1), seed, dtype=np.uint8)
        np.concatenate([labels, planes], axis=1).tofile(place / name)


def write_folder(root: Path, counts: dict[str, int], side: int = 40) -> None:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i, pixels in enumerate(pictures(count, seed=len(name), side=side)):
            (root / name / f"{i}.png").write_bytes(encoded(pixels))


def bytes_of(batch: Tensor) -> np.ndarray:
    """Undo the normalisation of (B, 3, H, W) images: bytes (B, H, W, 3)."""
    x = batch * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# A batch in memory


def test_normalising_by_hand():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)  # (1, 2, 1, 2)
    out = normalise(images, mean=(0.5, 0.2), std=(0.25, 0.1))
    assert out.dtype == torch.float32
    assert torch.allclose(out, torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]]), atol=1e-6)


def test_normalising_leaves_the_images_in_memory_alone():
    images = torch.full((1, 1, 2, 2), 0.5)
    normalise(images, (0.5,), (0.1,))
    assert images.unique().tolist() == [0.5]


def is_moved_copy(image: Tensor, original: Tensor, pixels: int, mirror: bool) -> bool:
    side = original.shape[-1]
    padded = torch.nn.functional.pad(original, [pixels] * 4)
    places = [(y, x) for y in range(2 * pixels + 1) for x in range(2 * pixels + 1)]
    copies = [padded[:, y : y + side, x : x + side] for y, x in places]
    copies += [c.flip(2) for c in copies] if mirror else []
    return any(torch.equal(image, copy) for copy in copies)


def test_every_augmented_image_is_a_moved_and_perhaps_mirrored_copy():
    images = torch.from_numpy(pictures(30)).permute(0, 3, 1, 2)
    changed = augment(images, generator(0))
    assert changed.dtype == torch.uint8
    assert all(is_moved_copy(c, o, 4, True) for c, o in zip(changed, images, strict=True))
    assert not torch.equal(changed, images)


@given(seed=st.integers(0, 2**31), pixels=st.integers(0, 3), side=st.integers(1, 6))
def test_shifted_digits_are_copies_and_never_mirrored(seed, pixels, side):
    images = torch.randint(1, 17, (3, 1, side, side), generator=generator(seed))
    moved = shift(images, generator(seed), pixels)
    assert all(is_moved_copy(m, o, pixels, False) for m, o in zip(moved, images, strict=True))


def test_all_moves_occur_and_half_the_images_are_mirrored():
    image = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    image[0, 0, 1, 1] = 1
    moved = shift(image.expand(2000, 1, 3, 3), generator(0), pixels=1)
    assert (moved.sum((0, 1)) > 150).all()  # nine moves, about 222 each
    half = torch.tensor([[[[1, 0]]]]).expand(2000, 1, 1, 2)
    assert 900 < flip(half, generator(0))[:, 0, 0, 1].sum() < 1100


@pytest.mark.parametrize("name", ["digits", "cifar10", "folder"])
def test_a_generator_decides_the_batch_and_none_augments_nothing(name, tmp_path):
    write_cifar10(tmp_path / "c")
    write_folder(tmp_path / "f", {"cat": 10, "horse": 10})
    spec = {
        "digits": "digits",
        "cifar10": f"cifar10:{tmp_path}/c",
        "folder": f"folder:{tmp_path}/f",
    }
    train = load(spec[name], size=32 if name == "folder" else None).train
    index = torch.arange(10)
    plain, labels = train.batch(index)
    assert plain.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(plain, train.batch(index)[0])
    assert torch.equal(labels, train.labels[:10])
    augmented = train.batch(index, generator(3))[0]
    assert torch.equal(augmented, train.batch(index, generator(3))[0])
    assert not torch.equal(augmented, train.batch(index, generator(4))[0])
    assert not torch.equal(augmented, plain)


def test_a_batch_follows_its_index():
    data = load("digits")
    images, labels = data.val.batch(torch.tensor([5, 2]))
    assert torch.equal(images[1], data.val.batch(torch.tensor([2]))[0][0])
    assert labels.tolist() == data.val.labels[[5, 2]].tolist()


# Splits


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(-5, 2**33))
def test_stratified_splits_share_out_every_row_once(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = stratify(labels, seed, 0.15, 0.15)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held = [int((labels[p] == label).sum()) for p in parts]
        assert held[0] >= 1
        assert count < 3 or min(held) >= 1
        assert held[1] == held[2] or count == 2


def test_stratified_shares_by_hand_and_another_seed_gives_other_rows():
    labels = np.repeat([0, 1], [100, 20])
    train, val, test = stratify(labels, 0, 0.15, 0.15)
    assert [np.bincount(labels[p]).tolist() for p in (train, val, test)] == [
        [70, 14],
        [15, 3],
        [15, 3],
    ]
    assert val.tolist() == stratify(labels, 0, 0.15, 0.15)[1].tolist()
    assert val.tolist() != stratify(labels, 1, 0.15, 0.15)[1].tolist()


def test_a_lazy_split_is_read_once_and_at_first_use():
    reads = []

    def read():
        reads.append(1)
        return TensorSplit(torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 2]), (0.0,), (1.0,))

    lazy = LazySplit(read)
    assert reads == []
    assert len(lazy) == 3 and lazy.labels.tolist() == [0, 1, 2]
    assert lazy.batch(torch.tensor([1]))[0].shape == (1, 1, 2, 2)
    assert reads == [1]


# digits


def test_digits_are_split_the_same_way_every_time():
    data = load("digits")
    assert [len(s) for s in (data.train, data.val, data.test)] == [1079, 359, 359]
    assert data.shape == (1, 8, 8) and len(data.classes) == 10
    assert data.test.labels[:10].tolist() == [5, 9, 4, 6, 8, 0, 2, 3, 6, 9]
    assert torch.equal(load("digits", seed=7).test.labels, data.test.labels)


def test_digits_hold_every_image_of_the_source_once():
    from sklearn.datasets import load_digits

    data = load("digits")
    splits = (data.train, data.val, data.test)
    images = [s.batch(torch.arange(len(s)))[0] * data.std[0] + data.mean[0] for s in splits]
    got = (torch.cat(images) * 17).round().flatten(1).int().tolist()  # value / 17 is 15 value / 255
    assert sorted(got) == sorted(load_digits().data.astype(int).tolist())


def test_digits_are_normalised():
    train = load("digits").train
    images, _ = train.batch(torch.arange(len(train)))
    assert abs(images.mean()) < 0.01 and abs(images.std() - 1) < 0.01


# cifar10


@pytest.mark.parametrize("folder", [".", "plain_text", "data"])
@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_pixels_are_exact_and_the_last_tenth_of_train_is_val(tmp_path, folder, column):
    write_cifar10(tmp_path / folder, column=column)
    data = load(f"cifar10:{tmp_path}")
    got = [bytes_of(s.batch(torch.arange(len(s)))[0]) for s in (data.train, data.val, data.test)]
    train, test = pictures(20, seed=0), pictures(5, seed=1)
    for pixels, expected in zip(got, (train[:18], train[18:], test), strict=True):
        assert np.array_equal(pixels, expected)
    assert data.val.labels.tolist() == [8, 9]
    assert data.shape == (3, 32, 32) and data.classes[9] == "truck"


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin"])
def test_binary_pixels_are_exact_and_the_batches_are_in_order(tmp_path, folder):
    write_binary(tmp_path / folder)
    data = load(f"cifar10:{tmp_path}")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 2
    assert data.val.labels.tolist() == [4] * 2
    assert data.test.labels.tolist() == [5] * 4
    assert np.array_equal(bytes_of(data.train.batch(torch.tensor([0]))[0])[0], pictures(4, 0)[0])
    assert np.array_equal(bytes_of(data.test.batch(torch.tensor([3]))[0])[0], pictures(4, 5)[3])


def test_jpeg_and_grey_images_become_rgb(tmp_path):
    grey = pictures(20)[:, :, :, 0]
    flat = [encoded(np.full((32, 32, 3), 100, dtype=np.uint8), "JPEG")] * 5
    write_parquet(tmp_path / "train-0.parquet", [encoded(g) for g in grey], [0] * 20)
    write_parquet(tmp_path / "test-0.parquet", flat, [0] * 5)
    data = load(f"cifar10:{tmp_path}")
    pixels = bytes_of(data.train.batch(torch.tensor([7]))[0])[0]
    assert all(np.array_equal(pixels[:, :, channel], grey[7]) for channel in range(3))
    assert np.unique(bytes_of(data.test.batch(torch.tensor([0]))[0])).tolist() == [100]


def test_several_parquet_files_are_read_in_order(tmp_path):
    for i in range(2):
        images = [encoded(p) for p in pictures(10, seed=i)]
        write_parquet(tmp_path / f"train-0000{i}-of-00002.parquet", images, [i] * 10)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", images, [0] * 10)
    assert load(f"cifar10:{tmp_path}").train.labels.tolist() == [0] * 10 + [1] * 8
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"has 1 of 2 train-\*.parquet files; copy all"):
        load(f"cifar10:{tmp_path}")


def test_the_test_split_is_not_touched_before_it_is_used(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"damaged")
    data = load(f"cifar10:{tmp_path}")
    assert len(data.train) == 18
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet cannot be read as parquet"):
        len(data.test)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("cifar10", "cifar10 needs a directory: cifar10:DIR, where DIR holds train-"),
        ("cifar10:{}/no", "cifar10: no such directory: .*/no"),
        ("cifar10:{}", "nothing found in .*: looked for train-.* or data_batch_1.bin"),
        ("digits:{}", "digits are embedded: give 'digits', not"),
        ("folder", "folder needs a directory: folder:DIR"),
        ("folder:{}/no", "folder: no such directory: .*/no"),
        ("folder:{}", "has no class folders; give each class a folder of images"),
    ],
)
def test_a_directory_that_is_not_there_or_holds_nothing(tmp_path, spec, message):
    with pytest.raises(DataError, match=message):
        load(spec.format(tmp_path))


def test_unknown_data_says_what_was_meant():
    with pytest.raises(HaqError, match=r"unknown data 'cifr10'; did you mean 'cifar10'"):
        load("cifr10:/data/cifar10")


@pytest.mark.parametrize(
    "image, label, message",
    [
        (b"no picture", 0, "the image in row 12 of .*train-0.parquet cannot be decoded"),
        (encoded(pictures(1)[0])[:-200], 0, "the image in row 12 of .* cannot be decoded"),
        (encoded(pictures(1, side=28)[0]), 0, "the image in row 12 of .* is 28x28, not 32x32"),
        (None, 0, "the image in row 12 of .* has no bytes"),
        (encoded(pictures(1)[0]), 10, "label 10 in row 12 of .* is not in 0..9"),
        (encoded(pictures(1)[0]), -1, "label -1 in row 12 of .* is not in 0..9"),
        (encoded(pictures(1)[0]), None, "has 1 images without a label"),
    ],
)
def test_a_bad_row_of_a_parquet_file_is_named(tmp_path, image, label, message):
    images, labels = [encoded(p) for p in pictures(20)], [0] * 20
    write_parquet(tmp_path / "test-0.parquet", images, labels)
    images[12], labels[12] = image, label
    write_parquet(tmp_path / "train-0.parquet", images, labels)
    with pytest.raises(DataError, match=message):
        load(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    "table, message",
    [
        ({"x": [1]}, "has no column img or image of {bytes, path}, but x"),
        ({"img": [1], "label": [1]}, "has no column img or image of {bytes, path}, but img, label"),
        ({"img": [{"bytes": b"x"}]}, "has no column label of integers, but img"),
        ({"img": [{"bytes": b"x"}], "label": [0.5]}, "has no column label of integers, but"),
    ],
)
def test_wrong_columns_are_named(tmp_path, table, message):
    write_cifar10(tmp_path)
    pq.write_table(pa.table(table), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=message):
        load(f"cifar10:{tmp_path}")


def test_a_truncated_parquet_file_is_named(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet cannot be read as parquet"):
        load(f"cifar10:{tmp_path}")


def test_missing_and_truncated_batches_are_named(tmp_path):
    write_binary(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin is truncated: 12291 bytes are no multi"):
        load(f"cifar10:{tmp_path}")
    path.unlink()
    with pytest.raises(DataError, match=r"has no data_batch_3.bin; copy it there"):
        load(f"cifar10:{tmp_path}")


def test_a_binary_label_out_of_range_is_named(tmp_path):
    write_binary(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(b"\x0b" + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"label 11 in row 0 of .*data_batch_2.bin is not in 0..9"):
        load(f"cifar10:{tmp_path}")


def test_a_missing_test_file_and_too_few_images_are_named(tmp_path):
    write_cifar10(tmp_path, train=9)
    with pytest.raises(DataError, match=r"has 9 training images; at least 10 are needed"):
        load(f"cifar10:{tmp_path}")
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"has no test-\*.parquet; copy it there"):
        load(f"cifar10:{tmp_path}")


def test_files_without_images_are_named(tmp_path):
    write_cifar10(tmp_path / "parquet", train=0)
    write_binary(tmp_path / "binary", count=0)
    for place in ("parquet", "binary"):
        with pytest.raises(DataError, match=r"holds no images"):
            load(f"cifar10:{tmp_path}/{place}")


@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]), st.data())
def test_whatever_the_damage_decode_gives_an_image_or_one_sentence(kind, draw):
    whole = bytearray(encoded(pictures(1, side=8)[0], kind))
    for at in draw.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        whole[at] ^= draw.draw(st.integers(1, 255))
    cut = bytes(whole[: draw.draw(st.integers(0, len(whole)))])
    try:
        assert decode(cut, "it").mode == "RGB"
    except DataError as error:
        assert str(error).startswith("it cannot be decoded: ")


# folder


def test_a_folder_of_classes_is_split_from_the_seed(tmp_path):
    write_folder(tmp_path, {"dog": 20, "cat": 10, "ant": 3})
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"")
    data = load(f"folder:{tmp_path}", seed=1, size=32)
    assert data.classes == ("ant", "cat", "dog") and data.shape == (3, 32, 32)
    splits = (data.train, data.val, data.test)
    assert [s.labels.bincount().tolist() for s in splits] == [[1, 6, 14], [1, 2, 3], [1, 2, 3]]
    paths = [path for s in splits for path in s.paths]
    assert len(set(paths)) == 33
    assert all(
        p.parent.name == data.classes[y]
        for s in splits
        for p, y in zip(s.paths, s.labels, strict=True)
    )
    assert load(f"folder:{tmp_path}", seed=1).test.paths == data.test.paths
    assert load(f"folder:{tmp_path}", seed=2).test.paths != data.test.paths


def test_folders_for_train_val_and_test_keep_train_s_classes(tmp_path):
    write_folder(tmp_path / "train", {"b": 2, "a": 3})
    write_folder(tmp_path / "val", {"b": 1})
    write_folder(tmp_path / "test", {"a": 1, "b": 1})
    data = load(f"folder:{tmp_path}")
    assert data.classes == ("a", "b") and data.shape == (3, 224, 224)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.val.labels.tolist() == [1]
    assert data.test.batch(torch.tensor([0, 1]))[0].shape == (2, 3, 224, 224)


def test_an_image_of_the_size_asked_for_keeps_its_pixels(tmp_path):
    write_folder(tmp_path, {"a": 3}, side=16)
    train = load(f"folder:{tmp_path}", size=16).train
    expected = np.asarray(Image.open(train.paths[0]))
    assert np.array_equal(bytes_of(train.batch(torch.tensor([0]))[0])[0], expected)


def test_the_middle_of_a_wide_image_by_hand(tmp_path):
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 2:6] = pictures(1, side=4)[0]
    (tmp_path / "wide.png").write_bytes(encoded(pixels))
    split = FolderSplit((tmp_path / "wide.png",), torch.tensor([0]), size=4)
    assert np.array_equal(bytes_of(split.batch(torch.tensor([0]))[0])[0], pixels[:, 2:6])
    assert middle(8, 4, 64) == (2, 0, 6, 4)
    assert middle(256, 512, 65) == (16, 144, 240, 368)


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    draw=st.tuples(*[st.floats(0, 1, exclude_max=True, width=32)] * 4),
)
def test_a_random_part_lies_in_the_image_and_has_the_area_drawn(width, height, draw):
    left, upper, right, lower = part(width, height, draw)
    assert 0 <= left < right <= width and 0 <= upper < lower <= height
    area = (right - left) * (lower - upper)
    drawn = (0.08 + 0.92 * draw[0]) * width * height
    assert area <= drawn * (1 + 1e-9)
    if right - left < width and lower - upper < height:
        assert area == pytest.approx(drawn)
        assert 3 / 4 - 1e-9 <= (right - left) / (lower - upper) <= 4 / 3 + 1e-9


@given(st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**31))
def test_images_of_any_shape_can_be_augmented(width, height, seed):
    image = Image.new("RGB", (width, height), (9, 9, 9))
    draws = torch.rand(5, 4, generator=generator(seed)).tolist()
    boxes = [part(width, height, d) for d in draws] + [middle(width, height, 8)]
    assert all(image.resize((8, 8), box=box).getpixel((7, 7)) == (9, 9, 9) for box in boxes)


def test_a_file_that_is_no_image_and_an_empty_class_are_named(tmp_path):
    write_folder(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "dog" / "notes.txt").write_text("a good dog")
    with pytest.raises(DataError, match=r"dog/notes.txt is not an image; remove it"):
        load(f"folder:{tmp_path}")
    (tmp_path / "dog" / "notes.txt").unlink()
    (tmp_path / "eel").mkdir()
    with pytest.raises(DataError, match=r"class 'eel' has no images in"):
        load(f"folder:{tmp_path}")


def test_a_truncated_image_is_named_when_it_is_read(tmp_path):
    write_folder(tmp_path, {"cat": 3})
    train = load(f"folder:{tmp_path}").train
    train.paths[0].write_bytes(train.paths[0].read_bytes()[:2000])
    with pytest.raises(DataError, match=r"image .*cat/\d.png cannot be decoded: .*; replace or"):
        train.batch(torch.tensor([0]))


def test_classes_and_splits_of_a_folder_must_agree(tmp_path):
    write_folder(tmp_path / "train", {"cat": 1})
    with pytest.raises(DataError, match=r"has no folder val; give train, val and test, or"):
        load(f"folder:{tmp_path}")
    write_folder(tmp_path / "val", {"cat": 1, "dog": 1})
    write_folder(tmp_path / "test", {"cat": 1})
    with pytest.raises(
        DataError, match=r"class 'dog' in .*val is unknown to train .known: cat.; a"
    ):
        load(f"folder:{tmp_path}")


def test_a_folder_needs_a_class_with_three_images_and_a_positive_size(tmp_path):
    write_folder(tmp_path, {"cat": 2, "dog": 1})
    with pytest.raises(DataError, match=r"no class in .* has three images"):
        load(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=r"size 0 is not positive"):
        load(f"folder:{tmp_path}", size=0)


# A factory of the user's


def pair(count: int = 4, side: int = 4, dtype=torch.float32, classes: int = 2):
    return torch.ones(count, 3, side, side, dtype=dtype), torch.arange(count) % classes


@pytest.fixture
def module():
    made = ModuleType("my_data")
    sys.modules["my_data"] = made
    made.__spec__ = SimpleNamespace(name="my_data")
    yield made
    del sys.modules["my_data"]


def test_a_factory_gives_three_splits_that_are_not_augmented(module):
    module.make = lambda: (pair(6), pair(2), pair(2))
    data = load("my_data:make")
    assert data.name == "my_data:make" and data.classes == ("0", "1")
    assert data.shape == (3, 4, 4) and data.mean == (0, 0, 0) and data.std == (1, 1, 1)
    images, labels = data.train.batch(torch.tensor([1, 2]), generator(0))
    assert torch.equal(images, torch.ones(2, 3, 4, 4)) and labels.tolist() == [1, 0]


def test_bytes_are_divided_by_255_and_doubles_become_float32():
    data = from_splits([pair(dtype=torch.uint8), pair(dtype=torch.float64), pair()])
    assert data.train.batch(torch.tensor([0]))[0].unique().item() == pytest.approx(1 / 255)
    assert data.val.batch(torch.tensor([0]))[0].dtype == torch.float32


def test_numpy_pairs_map_style_data_sets_and_splits_can_be_mixed():
    own = TensorSplit(torch.ones(2, 3, 4, 4), torch.tensor([0, 1]), (0.5,) * 3, (0.1,) * 3)
    plain = [(torch.zeros(3, 4, 4), 1)] * 3
    arrays = (np.ones((2, 3, 4, 4), dtype=np.float32), np.array([0, 1]))
    data = from_splits([own, plain, arrays])
    assert data.train is own and data.mean == (0.5,) * 3 and data.std == (0.1,) * 3
    assert len(data.val) == 3 and data.val.labels.tolist() == [1, 1, 1]
    assert from_splits([TensorDataset(*pair()), plain, own]).train.labels.tolist() == [0, 1, 0, 1]


def with_nan():
    images, labels = pair()
    images[3, 0, 0, 0] = float("nan")
    return images, labels


@pytest.mark.parametrize(
    "splits, message",
    [
        ((pair(), pair()), r"data must return three splits \(train, val, test\), got 2"),
        (pair()[0], r"data must return three splits \(train, val, test\), got Tensor"),
        ((pair(), pair(), pair(0)), "the test split of data is empty"),
        ((pair(), [], pair()), "the val split of data is empty"),
        ((pair(), 7, pair()), "the val split of data is a int; give a Split, a pair"),
        ((pair(), ["a", "b", "c"], pair()), r"item 0 of the val split of data is not a pair"),
        ((pair(), pair(), with_nan()), "image 3 of the test split of data holds NaN or infinity"),
        ((pair(), pair(side=5), pair()), "the val split of data has 3x5x5 images, the train split"),
        (
            (pair(dtype=torch.int16),) * 3,
            "the train split of data has torch.int16 inputs; give uint8",
        ),
        (((torch.ones(4), pair()[1]),) * 3, "has inputs of shape 4; give .N, C, H, W"),
        (((pair()[0], torch.arange(3)),) * 3, "the train split of data has 4 images and 3 labels"),
        (
            (pair(), pair(classes=3), pair()),
            "label 2 of image 2 in the val split of data is not in 0",
        ),
        (
            (pair(), pair(), (pair()[0], torch.tensor([0, -1, 0, 0]))),
            "label -1 of image 1 in the te",
        ),
        (((pair()[0], pair()[1] - 1), pair(), pair()), "label -1 of image 0 in the train split"),
        (
            ((pair()[0], pair()[1] * 1.5), pair(), pair()),
            "the train split of data has label 1.5; l",
        ),
        (
            ((pair()[0], ["a"] * 4), pair(), pair()),
            "the train split of data has labels that are no",
        ),
        (((pair()[0], torch.eye(4)), pair(), pair()), "has labels of shape 4x4; one integer an im"),
        (
            ([(torch.ones(3, 4, 4), 0), (torch.ones(3, 4, 5), 0)], pair(), pair()),
            "image 1 of the train split of data is 3x4x5, image 0 3x4x4; bring all to one size",
        ),
    ],
)
def test_what_is_wrong_with_a_users_splits_is_named(splits, message):
    with pytest.raises(DataError, match=message):
        from_splits(splits)


def test_a_class_may_have_no_image():
    sparse = (pair()[0], torch.tensor([0, 2, 5, 2]))
    assert from_splits([sparse, pair(), sparse]).classes == tuple("012345")
    ten = from_splits(
        [sparse, (pair()[0], torch.tensor([9, 0, 0, 0])), sparse], outputs=lambda x, kind: 10
    )
    assert ten.classes == tuple("0123456789")
    with pytest.raises(DataError, match="label 5 of image 2 in the train split of data is not in "
                                        "0..4: the network gives 5 outputs"):  # fmt: skip
        from_splits([sparse] * 3, outputs=lambda x, kind: 5)
    with pytest.raises(DataError, match="has label 999999999; labels count the classes from 0"):
        from_splits([(pair()[0], torch.tensor([0, 1, 2, 999_999_999]))] * 3)


@pytest.mark.parametrize("shape", [(7,), (3, 16), (5,), (2, 4, 4, 4)])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32]
)
def test_inputs_need_not_be_images(shape, dtype):
    inputs = torch.arange(4 * math.prod(shape)).reshape(4, *shape).to(dtype)
    data = from_splits([(inputs, torch.tensor([0, 1, 1, 0]))] * 3)
    batch, labels = data.train.batch(torch.tensor([2, 0]))
    assert (data.shape, data.mean, data.std) == (shape, (), ())
    tokens = not dtype.is_floating_point
    assert batch.dtype == (torch.int64 if tokens else torch.float32)
    assert torch.equal(batch.double(), inputs[[2, 0]].double())
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("spec", ["digits", "folder", "cifar10"])
def test_an_outline_says_before_reading_what_the_data_turn_out_to_be(tmp_path, spec):
    if spec == "folder":
        write_folder(tmp_path, {"dog": 3, "cat": 4})
    if spec == "cifar10":
        write_cifar10(tmp_path)
    where = spec if spec == "digits" else f"{spec}:{tmp_path}"
    about, data = outline(where), load(where)
    assert about == (
        data.name, data.classes, data.shape, data.mean, data.std, data.labels, data.inputs
    )  # fmt: skip


def test_an_outline_refuses_what_is_not_there():
    with pytest.raises(DataError, match="no such directory: /nowhere"):
        outline("cifar10:/nowhere")
    with pytest.raises(DataError, match="no such directory: /nowhere"):
        outline("folder:/nowhere")
    with pytest.raises(HaqError, match="unknown data 'digit'; did you mean 'digits'"):
        outline("digit")
    with pytest.raises(DataError, match="only folder:DIR brings images to another size"):
        outline("digits", size=32)


def test_a_factory_may_lie_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "lying_here.py").write_text(
        "import torch\ndef make():\n    return [(torch.ones(2, 1, 3, 3), torch.arange(2))] * 3\n"
    )
    assert load("lying_here:make").shape == (1, 3, 3)


def test_a_factory_that_is_not_there_is_named(module):
    module.make = pair
    with pytest.raises(
        DataError, match=r"module my_data has no function 'mak'; did you mean 'make'"
    ):
        load("my_data:mak")
    with pytest.raises(DataError, match=r"data not.there:make cannot be imported: No module named"):
        load("not.there:make")


# Does it fit the model?


def test_images_that_do_not_fit_the_model_are_named():
    digits = load("digits")
    with pytest.raises(DataError, match=r"model resnet20 takes 3x32x32 images, digits gives 1x8x8"):
        check_fits(digits, "resnet20", (3, 32, 32))
    check_fits(digits, "cnn", (1, 8, 8))
    check_fits(digits, "my.module:net", None)


def test_only_a_folder_changes_the_size_of_its_images():
    with pytest.raises(DataError, match=r"digits gives 1x8x8 images, not 224x224; only folder:DIR"):
        load("digits", size=224)
    assert load("digits", size=8).shape == (1, 8, 8)


def test_digits_need_no_other_library():
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('sklearn', 'pyarrow', 'pandas'))\n"
        "from haq.datasets import load\n"
        "print(len(load('digits').train))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1079\n"


@pytest.mark.parametrize("kind", ["cifar10", "dataset"])
def test_what_reads_tables_says_what_to_install(tmp_path, monkeypatch, kind):
    for name in ("train", "test"):
        (tmp_path / f"{name}-00000-of-00001.parquet").write_bytes(b"")
    for module in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow, .*: pip install 'haq\[data\]'"):
        load(f"{kind}:{tmp_path}")
