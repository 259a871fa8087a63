"""A tiny decoder like GPT-2: perplexity under a budget, and equal tokens in ONNX Runtime."""

import numpy as np
import pytest
import torch
from torch import nn

import haq
from haq.formats.onnx.runtime import opened

LETTERS, LENGTH = 12, 40


class Decoder(nn.Module):
    """One block with causal attention, and a head tied to the table of letters."""

    def __init__(self):
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, 32), nn.Embedding(LENGTH, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.mixed, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.wide, self.back = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, LETTERS, bias=False)
        self.head.weight = self.letters.weight

    def forward(self, input_ids):
        h = self.letters(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        q, k, v = self.mixed(self.first(h)).chunk(3, -1)
        h = h + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        h = h + self.back(nn.functional.gelu(self.wide(self.second(h))))
        return self.head(h)


def rows(count, seed):
    """Return texts that repeat a random word of three letters, (count, 40)."""
    words = torch.randint(LETTERS, (count, 3), generator=torch.Generator().manual_seed(seed))
    return words.repeat(1, LENGTH // 3 + 1)[:, :LENGTH]


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model, train = Decoder(), rows(256, 0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        batch = train[step % 8 * 32 :][:32]
        loss = nn.functional.cross_entropy(model(batch)[:, :-1].mT, batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), train


def greedy(answer, prompt, count):
    known = list(prompt)
    for _ in range(count):
        row = np.zeros((1, LENGTH), np.int64)
        row[0, : len(known)] = known
        known.append(int(answer(row)[0, len(known) - 1].argmax()))
    return known[len(prompt) :]


def test_a_searched_decoder_generates_the_same_tokens_in_onnx_runtime(trained, tmp_path):
    model, train = trained
    splits = tuple({"input_ids": one, "labels": one} for one in (train, rows(64, 1), rows(64, 2)))
    run = haq.search(
        model, splits, metric="perplexity", schemes=["weight-only"], groups=[32], agent="ilp",
        budgets=["avg_weight_bits=4"], finalists=0, out=tmp_path / "run",
    )  # fmt: skip
    assert run.summary["metric"] == "perplexity"
    assert run.summary["cost"]["avg_weight_bits"] <= 4
    of_float = run.summary["float_test_perplexity"]
    assert 1 < run.summary["final_test_perplexity"] < 2 * of_float
    haq.export_onnx(run, tmp_path / "decoder.onnx")
    session = opened((tmp_path / "decoder.onnx").read_bytes())
    name = session.get_inputs()[0].name

    def by_torch(row):
        with torch.no_grad():
            return run.model(torch.from_numpy(row)).numpy()

    for prompt in ([1, 2, 3], [4], [7, 7, 5, 7, 7]):
        of_file = greedy(lambda row: session.run(None, {name: row})[0], prompt, 34)
        assert of_file == greedy(by_torch, prompt, 34)
