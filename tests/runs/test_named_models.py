"""Searches of networks by prefix: a folder of transformers on text, from its run to files."""

import json
import shutil

import pytest
import torch
from language_models import write_language_model

import haq
from haq.datasets import from_splits
from haq.errors import DataError, HaqError, ModelError, RunError
from haq.formats.checkpoint import load
from haq.metrics import METRICS
from haq.models import build
from haq.network.inputs import call, tensors_of
from haq.runs.float_network import fresh_model
from haq.runs.folder import new_folder, read_job
from haq.runs.job import parse_job
from haq.runs.named import reading_of
from haq.runs.restored import restored
from haq.runs.run import run
from haq.runs.sample import load_sample, save_sample

transformers = pytest.importorskip("transformers")

QUICK = {
    "agent": "ilp", "budgets": ("avg_weight_bits=7",), "rounding_steps": 1,
    "calibration_images": 8, "clipping": "max",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny language model with its tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("models")
    write_language_model(folder)
    return folder


def job(place, **more):
    fields = {"model": f"hf:{place / 'gpt'}", "data": f"text:{place / 'text.txt'}", "length": 6}
    return parse_job(**fields | QUICK | more)


@pytest.fixture(scope="module")
def finished(place):
    folder = new_folder(job(place), place / "run")
    return folder, run(job(place), folder)


def test_a_language_model_is_scored_by_perplexity(finished):
    folder, summary = finished
    assert summary["state"] == "finished" and summary["metric"] == "perplexity"
    assert not [name for name in summary if "accuracy" in name]
    assert 1 < summary["float_val_perplexity"] < 20
    assert summary["final_test_perplexity"] == pytest.approx(
        summary["float_test_perplexity"], rel=0.2
    )
    line = json.loads((folder / "trials.jsonl").read_text().splitlines()[0])
    assert "accuracy" not in line and line["perplexity"] > 1


def test_its_weights_are_those_of_the_folder(place):
    ours = build(f"hf:{place / 'gpt'}")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(place / "gpt")
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(ours.eval()(ids).logits, theirs.eval()(ids).logits)


def test_a_finished_run_is_restored_with_the_inputs_it_kept(finished):
    folder, _ = finished
    again = restored(folder)
    kept = load_sample(folder)
    assert kept.dtype == torch.int64 and torch.equal(again.sample, kept)
    with torch.no_grad():
        assert again.network(kept).logits.shape == (len(kept), 6, 12)


def test_its_checkpoint_is_the_same_network(finished, place, tmp_path):
    folder, _ = finished
    haq.export_checkpoint(folder, tmp_path / "m.safetensors")
    again, kept = (
        load(tmp_path / "m.safetensors", build(f"hf:{place / 'gpt'}")),
        load_sample(folder),
    )
    with torch.no_grad():
        assert torch.equal(again(kept).logits, restored(folder).network(kept).logits)


def test_a_finished_run_goes_on_as_it_is_and_a_changed_folder_is_noticed(place, tmp_path):
    shutil.copytree(place / "gpt", tmp_path / "gpt")
    asked = job(place, model=f"hf:{tmp_path / 'gpt'}")
    folder = new_folder(asked, tmp_path / "run")
    before = run(asked, folder)
    assert run(read_job(folder), folder) == before
    weights = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt")
    with torch.no_grad():
        weights.transformer.wpe.weight.add_(1)
    weights.save_pretrained(tmp_path / "gpt")
    with pytest.raises(
        RunError, match=r"model.safetensors of model hf:.* is another one since run"
    ):
        run(read_job(folder), folder)
    assert restored(folder).summary["state"] == "finished"  # the run has its own weights
    config = json.loads((tmp_path / "gpt" / "config.json").read_text())
    (tmp_path / "gpt" / "config.json").write_text(json.dumps(config | {"n_head": 1}))
    with pytest.raises(RunError, match=r"config.json of model hf:.* is another one"):
        restored(folder)
    shutil.rmtree(tmp_path / "gpt")
    with pytest.raises(ModelError, match="does not exist"):
        restored(folder)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("model.safetensors", b"", "model.safetensors is cut off or no safetensors file"),
        ("model.safetensors", b"PK" + bytes(30), "is cut off or no safetensors file"),
        ("model.safetensors", None, "is cut off or no safetensors file"),
        ("config.json", b'{"a":', "is not JSON"),
        ("tokenizer.json", b"{}", "the tokenizer in .* cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_by_the_file_and_leaves_nothing(
    place, tmp_path, name, content, said
):
    shutil.copytree(place / "gpt", tmp_path / "gpt")
    file = tmp_path / "gpt" / name
    file.write_bytes(file.read_bytes()[:300] if content is None else content)
    folder = new_folder(job(place, model=f"hf:{tmp_path / 'gpt'}"), tmp_path / "run")
    with pytest.raises(HaqError, match=said):
        run(job(place, model=f"hf:{tmp_path / 'gpt'}"), folder)
    assert not folder.exists()


def test_weights_of_another_config_are_named(place, tmp_path):
    shutil.copytree(place / "gpt", tmp_path / "gpt")
    config = json.loads((tmp_path / "gpt" / "config.json").read_text())
    (tmp_path / "gpt" / "config.json").write_text(json.dumps(config | {"n_embd": 4}))
    with pytest.raises(ModelError, match=r"c_attn.bias is 24 in the file and 12 by config"):
        build(f"hf:{tmp_path / 'gpt'}")


@pytest.mark.parametrize(
    "more, kind, said",
    [
        ({"metric": "miou"}, HaqError, "metric miou needs labels, and the data have none"),
        ({"metric": "top3"}, HaqError, "unknown metric 'top3'; did you mean 'top"),
        ({"metric": "cosine", "tokenizer": "/nowhere"}, DataError, "/nowhere has none"),
        ({"metric": "cosine", "evaluation": "finetune"}, DataError, "nothing can be trained"),
        ({"model": "hf:/nowhere"}, ModelError, "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(place, tmp_path, more, kind, said):
    asked = job(place, **{**more, "budgets": ("avg_weight_bits=7",)})
    folder = new_folder(asked, tmp_path / "run")
    with pytest.raises(kind, match=said):
        run(asked, folder)
    assert not folder.exists()


def test_dicts_are_searched_by_cosine_and_their_file_takes_the_same_names(tmp_path):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    mask = (torch.arange(6) < torch.randint(2, 7, (40, 1))).long()
    inputs = {"input_ids": torch.randint(20, (40, 6)) * mask, "attention_mask": mask}
    searched = haq.search(model, inputs, metric="cosine", out=tmp_path / "run", **QUICK)
    assert (
        searched.summary["metric"] == "cosine" and 0.9 < searched.summary["final_val_cosine"] <= 1
    )
    kept = load_sample(searched.folder)
    assert kept.names == ("input_ids", "attention_mask")
    assert torch.equal(tensors_of(kept)[0], inputs["input_ids"][:16])
    again = restored(searched.folder, model)
    with torch.no_grad():
        own = call(searched.model, kept).last_hidden_state
        assert torch.equal(call(again.network, kept).last_hidden_state, own)


def test_a_folder_is_searched_on_tensors_of_ones_own(place, tmp_path):
    ids = torch.randint(11, (40, 6), generator=torch.Generator().manual_seed(0))
    name = f"hf:{place / 'gpt'}"
    searched = haq.search(name, ids, metric="cosine", out=tmp_path / "run", **QUICK)
    assert searched.summary["state"] == "finished" and read_job(tmp_path / "run").model == name
    assert restored(tmp_path / "run").summary["metric"] == "cosine"
    env = haq.make_env(name, ids, "avg_weight_bits=7", metric="cosine", clipping="max")
    assert env.reset(seed=0)[0].shape == env.observation_space.shape
    with pytest.raises(HaqError, match="its weights do not come with it"):
        haq.search("digits_cnn", ids)


def test_labels_beyond_the_classes_of_a_folder_are_refused_before_any_work(tmp_path):
    config = transformers.SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[8], patch_sizes=[3],
        strides=[2], num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=8, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "seg")
    name, masks = f"hf:{tmp_path / 'seg'}", torch.randint(3, (12, 8, 8))
    masks[:, 0] = 255
    splits = [(torch.randn(12, 3, 8, 8), masks)] * 3
    searched = haq.search(name, splits, out=tmp_path / "run", **QUICK)
    assert searched.summary["metric"] == "miou" and searched.summary["final_test_mean_iou"] >= 0
    masks[0, 1, 1] = 7
    data = from_splits([splits[0]] * 3, "mine")
    with pytest.raises(ModelError, match=r"3 classes, and the train split of mine has label 7"):
        fresh_model(name, data, 1.0, 0, METRICS["miou"])


@pytest.mark.parametrize(
    "inputs, said",
    [
        ({"ids": torch.zeros(4, 3).long()}, r"has no input 'ids' \(its forward takes input_ids,"),
        ({"input_id": torch.zeros(4, 3).long()}, "no input 'input_id'; did you mean 'input_ids'"),
        ({"input_ids": torch.zeros(4, 3).long(), "attention_mask": torch.ones(3, 3)}, "rows"),
    ],
)
def test_inputs_that_do_not_fit_the_forward_are_named(inputs, said):
    config = transformers.GPT2Config(
        vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1
    )
    with pytest.raises(HaqError, match=said):
        haq.search(transformers.GPT2LMHeadModel(config), inputs, metric="cosine")


def test_images_are_read_as_the_models_own_config_says(tmp_path):
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    about = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    reading = reading_of(parse_job(model=f"hf:{tmp_path}"))
    assert reading.size == 16 and reading.mean == (0.5, 0.4, 0.3) and reading.std == (0.2,) * 3
    assert reading_of(parse_job(model=f"hf:{tmp_path}", size=32)).size == 32


def test_few_inputs_are_kept_and_come_back(tmp_path):
    images = torch.randn(5, 3, 4, 4)
    save_sample(tmp_path, images)
    assert torch.equal(load_sample(tmp_path), images[:2])
    (tmp_path / "sample.safetensors").write_bytes(b"no")
    with pytest.raises(RunError, match="cannot be read"):
        load_sample(tmp_path)


def tokens_of(rows, low=0, high=12, length=6):
    ids = torch.randint(low, high, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"high": 40}, r"has token \d\d, and model hf:.* knows 0 to 11"),
        ({"low": -3}, r"has token -\d, and model hf:.* knows 0 to 11"),
        ({"length": 64}, "has inputs of 64 tokens, and model hf:.* takes 16: cut them"),
    ],
)
def test_tokens_that_a_model_does_not_know_are_named_before_it_runs(place, wrong, said):
    others = tokens_of(8, length=wrong.get("length", 6))
    data = from_splits([others, tokens_of(8, **wrong), others], "mine")
    with pytest.raises(DataError, match=said):
        fresh_model(f"hf:{place / 'gpt'}", data, 1.0, 0, METRICS["cosine"])


def test_floats_in_the_place_of_tokens_and_unknown_inputs_are_named(place):
    name, metric = f"hf:{place / 'gpt'}", METRICS["cosine"]
    floats = {"input_ids": torch.rand(8, 6)}
    with pytest.raises(DataError, match="has inputs of torch.float32, and model .* takes tokens"):
        fresh_model(name, from_splits([floats] * 3, "mine"), 1.0, 0, metric)
    pixels = {"input_id": tokens_of(8)["input_ids"]}
    with pytest.raises(ModelError, match="no input 'input_id'; did you mean 'input_ids'"):
        fresh_model(name, from_splits([pixels] * 3, "mine"), 1.0, 0, metric)


def test_a_single_class_is_refused_as_such():
    data = from_splits([(torch.randn(4, 1, 8, 8), torch.zeros(4).long())] * 3, "mine")
    with pytest.raises(DataError, match="mine has a single class"):
        fresh_model("digits_cnn", data, 1.0, 0)


def test_a_run_that_was_killed_ends_like_one_that_was_not(place, tmp_path):
    asked = job(place, agent="random", episodes=4, finalists=0)
    whole = new_folder(asked, tmp_path / "whole")
    run(asked, whole)

    class Killed(BaseException):
        """Stands for a kill: nothing is written after it."""

    def die(progress):
        lines = (part / "trials.jsonl").read_text() if (part / "trials.jsonl").exists() else ""
        if lines.count("\n") >= 2:
            raise Killed

    part = new_folder(asked, tmp_path / "part")
    with pytest.raises(Killed):
        run(asked, part, die)
    run(read_job(part), part)
    told = [
        [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "cached")}
         for line in (folder / "trials.jsonl").read_text().splitlines()]
        for folder in (whole, part)
    ]  # fmt: skip
    assert told[0] == told[1] and len(told[0]) == 4
    assert (whole / "weights.safetensors").read_bytes() == (
        part / "weights.safetensors"
    ).read_bytes()
