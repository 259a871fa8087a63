"""Uploads: what is good becomes data and weights, and every hostile file is refused."""

import errno
import gzip
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from service_parts import ASKED, Visitor

from haq.datasets import load
from haq.errors import DataError
from haq.hw_profiles import TARGETS
from haq.models import build
from haq.service import place, store, uploads
from haq.service.limits import Limits
from haq.service.unpack import unpack

HOSTILE = Path(__file__).parents[1] / "hostile"
ARCHIVES = sorted(path for path in HOSTILE.iterdir() if path.suffix in (".zip", ".tar", ".gz"))
MLP = {**ASKED, "model": "digits_mlp", "budgets": ["avg_weight_bits=6"]}
OCTETS = {"Content-Type": "application/octet-stream"}


def picture(color, kind="PNG", size=(12, 10)):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


def archive(around="", suffix="png"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, color in (("cat", "red"), ("dog", "blue")):
            for number in range(4):
                file.writestr(f"{around}{name}/{number}.{suffix}", picture(color))
        file.writestr("__MACOSX/._cat", b"of a Mac")
    return out.getvalue()


def send(client, kind, content, **parameters):
    return client.post(f"/v1/uploads/{kind}", content=content, params=parameters, headers=OCTETS)


def nothing_is_left(visitor):
    return list((visitor.settings.files / "uploads").iterdir()) == []


@pytest.mark.parametrize("path", ARCHIVES, ids=[path.name for path in ARCHIVES])
def test_a_hostile_archive_is_refused_and_nothing_of_it_stays(path, tmp_path):
    held = tmp_path / "upload"
    held.mkdir()
    copy = held / "received"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(DataError):
        unpack(copy, held / "data", Limits())
    assert {file.name for file in held.iterdir()} <= {"received", "archive.tar"}
    assert [file.name for file in tmp_path.iterdir()] == ["upload"]


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("escape.zip", "is no name for a file here"),
        ("link.tar", "is no plain file; links are not unpacked"),
        ("bomb.zip", "is packed too tightly"),
        ("bomb.tar.gz", "the archive unpacks to more than"),
        ("pixels.zip", "has 100000000 pixels; 40000000 are allowed"),
        ("decoded-is-large.zip", "is packed too tightly to be a photograph"),
        ("header-of-gigabytes.tar", "a header of more than a megabyte"),
        ("encrypted.zip", "is encrypted"),
        ("cut.zip", "the zip archive is damaged"),
        ("cut.tar.gz", "the archive is cut short"),
        ("text-as-image.zip", "cannot be decoded as PNG, JPEG, WEBP, BMP"),
        ("twice.zip", "is in the archive twice"),
        ("half-a-split.zip", "beside train there must be train, val and test"),
        ("one-class.zip", "two at least are needed"),
    ],
)
def test_the_sentence_says_what_is_wrong(name, sentence, tmp_path):
    copy = tmp_path / "received"
    copy.write_bytes((HOSTILE / name).read_bytes())
    with pytest.raises(DataError, match=sentence):
        unpack(copy, tmp_path / "data", Limits())


def zipped(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, picture("red"))
    return out.getvalue()


@pytest.mark.parametrize(
    "names, sentence",
    [
        (
            (f"{chr(0x1F600) * 100}/0.png", "b/0.png"),
            "a name of 400 bytes in UTF-8; 200 are allowed",
        ),
        (("a/0.png", "a/0.png/1.png"), "a file and a folder in the archive have the same name"),
        (("a/0.png/1.png", "a/0.png"), "a file and a folder in the archive have the same name"),
        (("a/0.png", "A/0.PNG/1.png"), "a file and a folder in the archive have the same name"),
        (("caf\u00e9/0.png", "cafe\u0301/0.png"), "is in the archive twice"),
    ],
)
def test_names_that_no_file_system_takes_are_said(client, visitor, names, sentence):
    answer = send(client, "data", zipped(*names))
    assert answer.status_code == 422
    assert sentence in answer.json()["message"]
    assert nothing_is_left(visitor)


def test_a_name_may_have_200_bytes(tmp_path):
    (tmp_path / "received").write_bytes(zipped(f"{chr(0x1F600) * 50}/0.png", "b/0.png"))
    assert unpack(tmp_path / "received", tmp_path / "data", Limits()) == (2, 2)


def test_a_hostile_archive_is_a_422(visitor, client):
    answer = send(client, "data", (HOSTILE / "escape.zip").read_bytes())
    assert answer.status_code == 422
    assert "is no name for a file here" in answer.json()["message"]
    assert nothing_is_left(visitor) and client.get("/v1/uploads").json() == []


WEIGHTS = sorted(HOSTILE.glob("*.safetensors"))


@pytest.mark.parametrize("path", WEIGHTS, ids=[path.name for path in WEIGHTS])
def test_hostile_weights_are_refused_and_nothing_is_run(path, visitor, client, monkeypatch):
    answer = send(client, "weights", path.read_bytes())
    assert answer.status_code == 422
    assert nothing_is_left(visitor)
    assert not Path("escaped-by-pickle").exists()


def test_a_torch_file_is_not_taken(visitor, client):
    out = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, out)
    answer = send(client, "weights", out.getvalue())
    assert answer.status_code == 422
    assert "other kinds, such as .pt, can run code" in answer.json()["message"]


@pytest.mark.parametrize(
    "limits, sentence",
    [
        (Limits(files=7), "the archive holds more than 7 files"),
        (Limits(file_bytes=50), "is larger than 50 bytes"),
        (Limits(unpacked_bytes=100), "unpacks to more than 100 bytes"),
        (Limits(pixels=119), "has 120 pixels; 119 are allowed"),
    ],
)
def test_just_beyond_a_limit(limits, sentence, tmp_path):
    file = tmp_path / "received"
    file.write_bytes(archive())
    with pytest.raises(DataError, match=sentence):
        unpack(file, tmp_path / "data", limits)


def test_at_the_limits(tmp_path):
    file = tmp_path / "received"
    content = archive()
    file.write_bytes(content)
    assert unpack(file, tmp_path / "data", Limits(files=9, pixels=120)) == (2, 8)


@pytest.mark.parametrize("around", ["", "pets/"])
def test_an_archive_becomes_a_data_set_to_search_with(visitor, client, around):
    sent = send(client, "data", archive(around), name="pets")
    assert sent.status_code == 201, sent.text
    upload = sent.json()
    assert (upload["classes"], upload["images"], upload["name"]) == (2, 8, "pets")
    asked = {**ASKED, "model": "resnet20", "data": f"upload:{upload['id']}", "size": 16}
    refused = client.post("/v1/runs", json=asked)
    assert refused.json()["errors"][0]["field"] == "weights"  # nobody knows them
    made = client.post("/v1/runs", json={**asked, "float_epochs": 1})
    assert made.status_code == 201, made.text
    job = place.with_paths(store.find(visitor.engine, made.json()["id"]).job, visitor.settings)
    assert load(job.data, size=16).classes == ("cat", "dog")
    assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 409
    client.post(f"/v1/runs/{made.json()['id']}/cancel")
    assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    assert nothing_is_left(visitor)


def test_weights_are_kept_and_known_by_a_number(visitor, client):
    weights = save(build("digits_mlp").state_dict())
    upload = send(client, "weights", weights).json()
    made = client.post("/v1/runs", json={**MLP, "weights": f"upload:{upload['id']}"})
    assert made.status_code == 201, made.text
    job = place.with_paths(store.find(visitor.engine, made.json()["id"]).job, visitor.settings)
    assert job.weights.read_bytes() == weights
    assert str(visitor.settings.files) not in made.text


def test_another_users_upload_is_nobodys(tmp_path):
    visitor = Visitor(tmp_path, is_open=False)
    ada, bob = visitor.as_user("ada"), visitor.as_user("bob")
    upload = send(ada, "weights", save(build("digits_mlp").state_dict())).json()
    asked = {**MLP, "weights": f"upload:{upload['id']}"}
    assert bob.post("/v1/runs", json=asked).json()["errors"][0]["field"] == "weights"
    assert bob.delete(f"/v1/uploads/{upload['id']}").status_code == 404
    assert bob.get("/v1/uploads").json() == []
    assert ada.post("/v1/runs", json=asked).status_code == 201


def test_too_large_an_upload_is_cut_off(tmp_path):
    visitor = Visitor(tmp_path, limits=Limits(upload_bytes=1000, stored_bytes=0))
    assert send(visitor.client, "data", bytes(1001)).status_code == 413
    pieces = (bytes(300) for _ in range(4))
    assert send(visitor.client, "data", pieces).status_code == 413  # whose length nobody said
    assert nothing_is_left(visitor)


def test_a_user_may_not_fill_the_disk(tmp_path):
    visitor = Visitor(tmp_path, limits=Limits(stored_bytes=10))
    weights = save(build("digits_mlp").state_dict())
    assert send(visitor.client, "weights", weights).status_code == 201
    answer = send(visitor.client, "weights", weights)
    assert answer.status_code == 413
    assert "delete some first" in answer.json()["message"]


TABLE = "layer,weight_bits,act_bits,latency_ms\n" + "".join(
    f"{layer},{bits},8,{bits / 8}\n"
    for layer in ("conv1", "conv2", "conv3", "conv4", "linear")
    for bits in range(2, 9)
)


def brought(client, content, kind="target", name="board"):
    return client.post(
        f"/v1/uploads/{kind}?name={name}", content=content,
        headers={"Content-Type": "application/octet-stream"},
    )  # fmt: skip


def rows_of(table):
    head, *lines = [line.split(",") for line in table.splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


@pytest.mark.parametrize(
    "content, unit",
    [
        (TARGETS["bismo-edge"].read_text(encoding="utf-8"), "cycles"), (TABLE, "ms"),
        (json.dumps(rows_of(TABLE)), "ms"), ("\ufeff" + TABLE.replace(",", ";"), "ms"),
    ],
    ids=["profile", "csv", "json", "semicolons"],
)  # fmt: skip
def test_hardware_of_ones_own_costs_what_it_says(tmp_path, content, unit):
    visitor = Visitor(tmp_path)
    upload = brought(visitor.client, content).json()
    asked = {"model": "digits_cnn", "target": f"upload:{upload['id']}", "episodes": 2}
    told = visitor.client.post("/v1/ranges", json=asked).json()
    assert [row["unit"] for row in told if row["quantity"] == "latency"] == [unit]
    made = visitor.client.post("/v1/runs", json={**asked, "budgets": ["latency=90%w8a8"]})
    assert made.status_code == 201
    run = store.claim(visitor.engine, "w", 60, 3)
    target = place.with_paths(run.job, visitor.settings).target
    assert place.without_paths(f"at {target}: x", visitor.settings) == f"at {asked['target']}: x"
    assert visitor.client.delete(f"/v1/uploads/{upload['id']}").status_code == 409
    assert f'value="{asked["target"]}">board (uploaded)' in visitor.client.get("/new").text


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("{}", 'the profile cannot be used: not a profile; it must say "format"'),
        ("{", "the profile cannot be used: not JSON"),
        ("[]", "the table cannot be used: it needs a list of objects"),
        ("[" * 5000, "nested too deeply"),
        ('{"a":' * 5000, "nested too deeply"),
        ("layer,weight_bits,act_bits\nconv1,8,8\n", "it has no cost"),
        (TABLE + "conv1,8,8,1\n", "row 37"),
        (TABLE.replace("conv2,3,8,0.375", "conv2,3,8,-1"), "row 10"),
        (TABLE + "conv1,8,8,1\n" * uploads.MOST_ROWS, "more than 10000 rows"),
        (TABLE + "conv1,8,8,1\r" * uploads.MOST_ROWS, "more than 10000 rows"),
        ("[" + "{}," * uploads.MOST_ROWS + "{}]", "more than 10000 rows"),
        (b"\xff\xfe\x00", "not UTF-8 text"), ("", "it needs a header"), (b"\x00", "the table"),
    ],
)  # fmt: skip
def test_hardware_that_is_none_is_refused_with_what_is_wrong(tmp_path, content, sentence):
    visitor = Visitor(tmp_path)
    answer = brought(visitor.client, content)
    assert answer.status_code == 422 and sentence in answer.json()["message"]
    assert str(tmp_path) not in answer.text
    assert visitor.client.get("/v1/uploads").json() == []
    assert list((visitor.settings.files / "uploads").iterdir()) == []


def test_hardware_of_too_many_bytes_is_refused_as_it_comes(tmp_path):
    visitor = Visitor(tmp_path)
    answer = brought(visitor.client, b" " * (uploads.TARGET_BYTES + 1))
    assert answer.status_code == 413
    assert list((visitor.settings.files / "uploads").iterdir()) == []


def test_hardware_of_others_is_not_there(tmp_path):
    visitor = Visitor(tmp_path, is_open=False)
    ada, bob = visitor.as_user("ada"), visitor.as_user("bob")
    upload = brought(ada, TABLE).json()
    asked = {"model": "digits_cnn", "target": f"upload:{upload['id']}", "episodes": 2}
    answer = bob.post("/v1/ranges", json=asked)
    assert answer.status_code == 422 and "there is no upload" in answer.json()["message"]
    weights = ada.post("/v1/ranges", json={**asked, "target": None, "weights": asked["target"]})
    assert weights.status_code == 422  # hardware is no weights


def test_hardware_can_be_pasted_without_a_script(tmp_path):
    client = Visitor(tmp_path).client
    answer = client.post("/uploads", data={"text": TABLE + "x", "name": "my <board>"})
    assert answer.status_code == 422 and 'id="text-error"' in answer.text
    assert "conv2,3,8,0.375" in answer.text  # nothing typed is lost
    assert client.post("/uploads", data={"text": " "}).status_code == 422
    sent = client.post("/uploads", data={"text": TABLE, "name": "my <board>"})
    assert sent.status_code == 200 and "my &lt;board&gt;" in sent.text
    [upload] = client.get("/v1/uploads").json()
    assert upload["kind"] == "target"
    client.post(f"/uploads/{upload['id']}/delete")
    assert client.get("/v1/uploads").json() == []


def packed(method):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, color in (("a/0.png", "red"), ("b/\u00e9.png", "blue")):
            file.writestr(name, picture(color))
    return out.getvalue()


def tarred(kind):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as file:
        for name, color in (("a/0.png", "red"), ("b/\u00e9.png", "blue")):
            info = tarfile.TarInfo(name)
            info.size = len(picture(color))
            file.addfile(info, io.BytesIO(picture(color)))
    return out.getvalue()


SOUND = {
    **{f"zip-{method}": packed(method) for method in (
        zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)},
    **{f"tar-{kind}": tarred(kind) for kind in (
        tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)},
    "tar-gz": gzip.compress(tarred(tarfile.PAX_FORMAT), mtime=0),
}  # fmt: skip


@pytest.mark.parametrize("content", SOUND.values(), ids=SOUND)
def test_every_kind_of_archive_is_unpacked(tmp_path, content):
    (tmp_path / "received").write_bytes(content)
    assert unpack(tmp_path / "received", tmp_path / "data", Limits()) == (2, 2)


@pytest.mark.parametrize("content", SOUND.values(), ids=SOUND)
def test_an_archive_with_any_byte_changed_is_unpacked_or_refused(tmp_path, content):
    file, folder = tmp_path / "received", tmp_path / "data"
    for at in range(0, len(content), 1 + len(content) // 150):
        for byte in (content[at] ^ 1, 0xFF, 0):
            file.write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
            try:
                unpack(file, folder, Limits())
                shutil.rmtree(folder)
            except DataError:
                pass
            assert not folder.exists()


def test_a_disk_that_fails_is_no_fault_of_the_archive(tmp_path, monkeypatch):
    (tmp_path / "received").write_bytes(SOUND["zip-8"])

    def broken(self, size):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", broken)
    with pytest.raises(OSError, match="Input/output error"):
        unpack(tmp_path / "received", tmp_path / "data", Limits())
