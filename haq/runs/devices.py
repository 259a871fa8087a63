"""Where a search computes: training, calibration, sensitivities and scores on a GPU.

A network computes where its weights are, and ``haq.network.inputs.call`` brings what it reads
there. So moving the float network is all there is to do: every network of a policy is a copy of it.
What is counted, chosen and written stays on the CPU, and so does the last step: a network that is
handed over is converted to integers and tested there, as its file computes it.
"""

import torch

from haq.errors import HaqError
from haq.runs.job import Job
from haq.runs.plan import Plan


def check_device(job: Job) -> None:
    """Say so if a job cannot compute where it asks to.

    Raises:
        HaqError: The sentence for the user.
    """
    if job.device == "cpu":
        return
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"was built for CUDA {built}, and finds no GPU" if built else "was built without CUDA"
        raise HaqError(
            f"device {job.device}: PyTorch {torch.__version__} {why}; leave --device out"
        )
    number = int(job.device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise HaqError(
            f"device {job.device}: there are {torch.cuda.device_count()} GPUs here, counted from 0"
        )
    if job.workers > 1 or job.ray is not None:
        raise HaqError(
            f"device {job.device}: one GPU is not shared by workers; leave --workers and --ray out"
        )


def moved(planned: Plan, device: str | torch.device) -> None:
    """Move the float network of a plan, in place, and have it compute in float32 as on a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        # TensorFloat-32 has 10 bits: fewer than sums of products of 8-bit codes need.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
    planned.model.to(device)
    planned.graph.traced.to(device)
