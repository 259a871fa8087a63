"""What a report shows and not every search needs: sensitivities, and 8 bits everywhere."""

from pathlib import Path

from haq.allocation.budgets import uniform_policy
from haq.allocation.policy import read_policy
from haq.allocation.schemes import SEARCHED
from haq.allocation.sensitivities import Widths, save_sensitivity, widths
from haq.datasets import load
from haq.errors import RunError
from haq.models.weights import load_weights
from haq.network.graph import Graph
from haq.quantization.calibration import load_clips
from haq.quantization.fake_quant import quantize, uniform
from haq.quantization.second_order import second_order
from haq.runs.calibration import sensitivity_images
from haq.runs.coded_size import replanned
from haq.runs.evaluation import labeled
from haq.runs.evaluator import Evaluator, Recipe
from haq.runs.folder import read_job, read_json, write_json
from haq.runs.metric import metric_of_job
from haq.runs.named import check_files_of_model, reading_of
from haq.runs.plan import images_of, plan
from haq.runs.progress import OnProgress, Progress
from haq.runs.sample import load_sample
from haq.runs.transforms import network_of
from haq.runs.uniform_reference import uniform_reference
from haq.training.scoring import score
from haq.training.teacher import teacher_from


def write_figures(folder: Path, on_progress: OnProgress) -> None:
    """Write ``sensitivity.json`` and ``uniform.json`` into a run's folder where they are missing.

    Where the run is not compared with uniform bits, as older ones are not, it is now, and its
    summary says so.

    The sensitivities are those of all bit-widths, also of those that the job excludes. Nothing is
    chosen by them or by the accuracy at 8 bits.

    Raises:
        HaqError: The run is not finished, or its model or data cannot be had again.
    """
    missing = {n for n in ("sensitivity.json", "uniform.json") if not (folder / n).exists()}
    path = folder / "summary.json"
    summary = read_json(path) if path.exists() else {}
    if not missing and "uniform_reference" in summary:
        return
    if summary.get("state") != "finished":
        # One that goes on later might take the sensitivities for its own.
        raise RunError("the run is not finished")
    job = read_job(folder)
    check_files_of_model(folder, job, weights=False)
    data = load(job.data, job.seed, job.size, reading_of(job))
    metric = metric_of_job(job, images_of(data))
    model = network_of(job, data)
    load_weights(model, folder / "float.safetensors")
    planned = plan(job, model, images_of(data), load_sample(folder))
    graph, clips = planned.graph, load_clips(folder / "clips.safetensors")
    # A run among other number formats has clips for what its choices round alone.
    whole = bool(clips.acts) and len(clips.weights) == len(graph.layers)
    if "sensitivity.json" in missing:
        images = sensitivity_images(data, job.seed)
        asked = _every_width(graph) if whole else widths(planned.table.choices)

        def on_place(done: int, count: int) -> None:
            on_progress(Progress("sensitivity", done, count))

        known = second_order(graph, clips, images, asked, on_place)
        save_sensitivity(known, folder / "sensitivity.json")
    if "uniform.json" in missing:
        policy = uniform(graph, 8, 8) if whole else uniform_policy(planned.table, 8)
        network = quantize(graph, policy, clips).eval()
        # The validation images of the run's own episodes; nothing is tuned on the training images.
        recipe = Recipe(2, job.val_images, distill=None, metric=metric)
        evaluator = Evaluator(graph, clips, data, recipe, job.seed)
        reference = teacher_from(graph.traced) if metric.needs == "reference" else None
        tested = score(network, data.test, reference=reference, metric=metric)
        accuracy = {
            metric.key("val"): evaluator.score(network).accuracy,
            metric.key("test"): tested.accuracy,
        }
        values = {name: metric.of_score(score) for name, score in accuracy.items()}
        write_json(folder / "uniform.json", values)
    if "uniform_reference" not in summary:
        evaluation = labeled(job, folder, planned, data, on_progress)
        planned = replanned(job, planned, evaluation.scoring.clips)
        policy = read_policy(folder / "policy.json")
        compared = uniform_reference(job, planned, evaluation, policy, {}, on_progress)
        write_json(path, summary | {"uniform_reference": compared})


def _every_width(graph: Graph) -> Widths:
    """Return all widths for all layers; the network's input always has 8 bits."""
    return {
        "weights": {layer.name: tuple(SEARCHED) for layer in graph.layers},
        "activations": {
            layer.name: () if layer.reads_input else tuple(SEARCHED) for layer in graph.layers
        },
    }
