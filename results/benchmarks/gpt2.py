"""A decoder like GPT-2, trained on a text made here: perplexity under a budget, equal tokens.

python results/benchmarks/gpt2.py [--steps N] [--budgets B ...]

The text is additions, comparisons and small sentences from a grammar, from a seed; the decoder has
4 layers of 128 features and reads letters. It is trained for about three CPU minutes, searched at
3, 4 and 6 bits for each weight (embeddings and the tied head included), exported, and lets its file
and its PyTorch network continue prompts greedily. Writes results/reference/gpt2.json after every
row. About 6 CPU minutes.
"""

import argparse
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import haq
from haq.formats.onnx.runtime import Session, opened
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json

SEED, LENGTH, WORDS = 0, 64, 40_000
LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789+=<>.,"
PROMPTS = (
    "12+34=", "the red fox sees ", "57<61. ", "a small bird ", "40+8=48. the ", "99>",
    "the old cat", "a green frog and ",
)  # fmt: skip
GENERATED = 40
NAMES = ("fox", "bird", "frog", "cat", "dog", "hen", "mouse", "horse")
KINDS = ("red", "small", "green", "old", "quick", "blue", "quiet")
ACTS = ("sees", "follows", "likes", "hears", "meets")


def sentence(draw: random.Random) -> str:
    """Return an addition, a comparison or a sentence of the grammar."""
    left, right = draw.randrange(100), draw.randrange(100)
    kind = draw.randrange(3)
    if kind == 0:
        return f"{left}+{right}={left + right}. "
    if kind == 1:
        return f"{left}{'<' if left < right else '>' if left > right else '='}{right}. "
    first, second = draw.sample(NAMES, 2)
    one = f"{draw.choice(('the', 'a'))} {draw.choice(KINDS)} {first}"
    more = f" and the {draw.choice(KINDS)} {second}" if draw.random() < 0.3 else ""
    return f"{one}{more} {draw.choice(ACTS)} the {draw.choice(NAMES)}. "


def tokens(seed: int, count: int) -> Tensor:
    """Return rows (N, 64) of letters' numbers, from so many sentences."""
    draw = random.Random(seed)
    text = "".join(sentence(draw) for _ in range(count))
    numbers = torch.tensor([LETTERS.index(letter) for letter in text])
    return numbers[: len(numbers) // LENGTH * LENGTH].view(-1, LENGTH)


class Decoder(nn.Module):
    """Gives the logits of the next letter, (N, T, letters), for letters (N, T)."""

    def __init__(self, layers: int = 4, features: int = 128):
        super().__init__()
        config = GPT2Config(
            vocab_size=len(LETTERS), n_positions=LENGTH, n_embd=features, n_layer=layers, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        self.gpt = GPT2LMHeadModel(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.gpt(input_ids=input_ids, use_cache=False).logits
        return logits


def perplexity(logits: Tensor, rows: Tensor) -> float:
    """Return the perplexity of each next letter."""
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    return math.exp(float(loss))


def trained(rows: Tensor, steps: int) -> Decoder:
    """Return a decoder after so many steps of 32 rows."""
    torch.manual_seed(SEED)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (32,), generator=generator)]
        logits = model(batch)[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
    return model.eval()


def continued(answer: Any, prompt: str, count: int) -> list[int]:
    """Return the letters' numbers that follow a prompt, each the likeliest one.

    Args:
        answer: From rows (1, 64), filled up with spaces behind, to logits (1, 64, letters).
        prompt: Its letters.
        count: How many follow; with the prompt at most 64.
    """
    known = [LETTERS.index(letter) for letter in prompt]
    for _ in range(count):
        row = np.zeros((1, LENGTH), np.int64)
        row[0, : len(known)] = known
        known.append(int(answer(row)[0, len(known) - 1].argmax()))
    return known[len(prompt) :]


def by_torch(model: nn.Module) -> Any:
    """Return what answers by a PyTorch network."""

    def answer(row: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            result: NDArray[np.float32] = model(torch.from_numpy(row)).numpy()
        return result

    return answer


def by_file(session: Session) -> Any:
    """Return what answers by a file."""
    name = session.get_inputs()[0].name
    return lambda row: session.run(None, {name: row})[0]


def row_of(
    model: Decoder, budget: float, splits: tuple[Any, ...], test: Tensor, folder: Path
) -> dict[str, Any]:
    """Search, export and compare at one budget."""
    started = time.process_time()
    run = haq.search(
        model, splits, metric="perplexity", schemes=["weight-only"], groups=[32], agent="ilp",
        budgets=[f"avg_weight_bits={budget:g}"], finalists=0, seed=SEED, out=folder / f"{budget:g}",
    )  # fmt: skip
    file = folder / f"{budget:g}.onnx"
    haq.export_onnx(run, file)
    seconds = time.process_time() - started
    session = opened(file.read_bytes())
    assert run.model is not None
    ours, floats, files = by_torch(run.model), by_torch(model), by_file(session)
    equal = likewise = 0
    texts = {}
    for prompt in PROMPTS:
        own, of_file, of_float = (
            continued(one, prompt, GENERATED) for one in (ours, files, floats)
        )
        equal += sum(a == b for a, b in zip(own, of_file, strict=True))
        likewise += sum(a == b for a, b in zip(own, of_float, strict=True))
        texts[prompt] = "".join(LETTERS[number] for number in of_file)
    answers = session.run(None, {session.get_inputs()[0].name: test.numpy()})[0]
    return {
        "avg_weight_bits": round(run.summary["cost"]["avg_weight_bits"], 4),
        "size_bytes": int(run.summary["cost"]["size"]), "file_bytes": file.stat().st_size,
        "perplexity": round(perplexity(torch.from_numpy(answers), test), 4),
        "tokens": GENERATED * len(PROMPTS), "equal_in_onnx_runtime": equal,
        "equal_to_float": likewise, "cpu_s": round(seconds, 1), "generated": texts,
        "policy": {name: str(bits) for name, bits in run.policy.items()},
    }  # fmt: skip


def main() -> None:
    """Train, then search at every budget."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=700)
    options.add_argument("--budgets", type=float, nargs="*", default=[3, 4, 6])
    options.add_argument("--out", type=Path, default=REFERENCE / "gpt2.json")
    asked = options.parse_args()
    torch.set_num_threads(1)
    train, val, test = (
        tokens(SEED + place, count) for place, count in enumerate((WORDS, 2000, 2000))
    )
    started = time.process_time()
    model = trained(train, asked.steps)
    with torch.no_grad():
        before = perplexity(model(test), test)
    record: dict[str, Any] = {
        "provenance": script_provenance(), "onnxruntime": onnxruntime.__version__, "seed": SEED,
        "steps": asked.steps, "training_cpu_s": round(time.process_time() - started, 1),
        "parameters": sum(one.numel() for one in model.parameters()),
        "float": {"perplexity": round(before, 4)}, "rows": {},
    }  # fmt: skip
    print({name: record[name] for name in ("training_cpu_s", "float")}, flush=True)
    splits = tuple({"input_ids": rows, "labels": rows} for rows in (train, val, test))
    with tempfile.TemporaryDirectory() as folder:
        for budget in asked.budgets:
            row = row_of(model, budget, splits, test, Path(folder))
            record["rows"][f"{budget:g}"] = row
            write_json(asked.out, record)
            print(budget, {k: v for k, v in row.items() if k != "policy"}, flush=True)


if __name__ == "__main__":
    main()
