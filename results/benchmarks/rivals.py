"""Other tools at the same task as ptq.py: weights in few bits, without labels or fine-tuning.

python results/benchmarks/rivals.py TOOL --weights W.safetensors --data cifar10:DIR

TOOL is "mct" (Sony's model-compression-toolkit) or "modelopt" (NVIDIA's Model-Optimizer), in an
environment that has its package. Adds its rows to results/reference/rivals.json. Average bits over
all layers, none pinned, activations float; each tool chooses the bits of layers itself, among those
that it offers: 2, 4 and 8 (mct), or 2, 3, 4 and 8, per channel (modelopt). Images as for ptq.py.
"""

import argparse
import copy
import time
from importlib.metadata import version

import torch
from torch.nn import functional

from haq.datasets import load
from haq.models.weights import load_weights
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.evaluation import ROUNDED_ON
from haq.runs.float_network import fresh_model
from haq.training.scoring import score

SENSITIVITY_IMAGES, BATCH = 256, 32
PACKAGES = {"mct": "model-compression-toolkit", "modelopt": "nvidia-modelopt"}

parser = argparse.ArgumentParser()
parser.add_argument("tool", choices=PACKAGES)
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--bits", type=float, nargs="+", default=[4, 3])
parser.add_argument("--epochs", type=int, default=10, help="of MCT's GPTQ; 0: without it")
parser.add_argument("--clips", choices=("max", "mse"), default="max", help="of Model-Optimizer")
parser.add_argument("--seed", type=int, default=0)
asked = parser.parse_args()

torch.set_num_threads(1)
data = load(asked.data)
len(data.test)  # is read at its first use, which is not to count
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
model.eval()
generator = torch.Generator().manual_seed(asked.seed)
order = torch.randperm(len(data.train), generator=generator)
WEIGHTS = sum(
    module.weight.numel() for module in model.modules()
    if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
)  # fmt: skip


def batches(count):
    """Return images of the training split, normalised, in batches."""
    return [data.train.batch(some)[0] for some in order[:count].split(BATCH)]


def write(method, bits, achieved, network, seconds):
    """Score a network, and put its row in the place of an older one."""
    path = REFERENCE / "rivals.json"
    record = results.read_json(path) if path.exists() else {"rows": []}
    row = {
        "tool": PACKAGES[asked.tool], "version": version(PACKAGES[asked.tool]), "method": method,
        "avg_weight_bits": bits, "achieved_bits": round(achieved, 3),
        "test_accuracy": score(network, data.test).accuracy, "cpu_seconds": round(seconds, 1),
        **script_provenance(),
    }  # fmt: skip
    same = ("tool", "method", "avg_weight_bits")
    rows = [old for old in record["rows"] if any(old[key] != row[key] for key in same)]
    record = {
        "what": __doc__.splitlines()[0], "model": asked.model, "data": data.name,
        "seed": asked.seed, "rows": sorted([*rows, row], key=lambda row: row["tool"]),
    }  # fmt: skip
    results.write_json(path, record)
    print(row, flush=True)


def mct(bits):
    """Sony's mixed precision, then its gradient-based rounding."""
    import model_compression_toolkit as toolkit
    from model_compression_toolkit.core.common.matchers.node_matcher import BaseNodeMatcher
    from model_compression_toolkit.core.common.network_editors import EditRule, actions
    from model_compression_toolkit.core.common.quantization.node_quantization_config import (
        ActivationQuantizationMode,
    )

    class Every(BaseNodeMatcher):
        def apply(self, node):
            return True

    floats = actions.ChangeCandidatesActivationQuantConfigAttr(
        quant_mode=ActivationQuantizationMode.NO_QUANT
    )
    core = toolkit.core.CoreConfig(
        mixed_precision_config=toolkit.core.MixedPrecisionQuantizationConfig(
            num_of_images=SENSITIVITY_IMAGES
        ),
        debug_config=toolkit.core.DebugConfig(network_editor=[EditRule(Every(), floats)]),
    )
    limit = toolkit.core.ResourceUtilization(weights_memory=WEIGHTS * bits / 8)
    common = {
        "target_resource_utilization": limit, "core_config": core,
        "target_platform_capabilities": toolkit.get_target_platform_capabilities(),
    }  # fmt: skip

    def images(count):
        def some():
            for batch in batches(count):
                yield [batch]

        return some

    started = time.process_time()
    network, info = toolkit.ptq.pytorch_post_training_quantization(
        copy.deepcopy(model), images(SENSITIVITY_IMAGES), **common
    )
    used = info.final_resource_utilization.weights_memory * 8 / WEIGHTS
    write("mixed precision", bits, used, network, time.process_time() - started)
    if asked.epochs:
        started = time.process_time()
        network, info = toolkit.gptq.pytorch_gradient_post_training_quantization(
            copy.deepcopy(model), images(ROUNDED_ON),
            gptq_config=toolkit.gptq.get_pytorch_gptq_config(n_epochs=asked.epochs), **common,
        )  # fmt: skip
        used = info.final_resource_utilization.weights_memory * 8 / WEIGHTS
        seconds = time.process_time() - started
        write(f"mixed precision, GPTQ of {asked.epochs} epochs", bits, used, network, seconds)


def modelopt(bits):
    """NVIDIA's auto_quantize, by the divergence from the float network."""
    import modelopt.torch.quantization as mtq

    formats = [
        {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": width, "axis": 0}},
            ],
            "algorithm": asked.clips,
        }
        for width in (2, 3, 4, 8)
    ]
    images = batches(SENSITIVITY_IMAGES)
    started = time.process_time()
    network, state = mtq.auto_quantize(
        copy.deepcopy(model), constraints={"effective_bits": float(bits)},
        quantization_formats=formats, data_loader=images, method="kl_div",
        forward_step=lambda network, batch: network(batch),
        loss_func=lambda output, batch: functional.mse_loss(output, output.detach()),
        num_calib_steps=len(images), num_score_steps=len(images),
    )  # fmt: skip
    used = float(state["best"]["constraints"]["effective_bits"])
    write(
        f"auto_quantize, kl_div, {asked.clips} clips",
        bits,
        used,
        network,
        time.process_time() - started,
    )


for bits in asked.bits:
    {"mct": mct, "modelopt": modelopt}[asked.tool](bits)
