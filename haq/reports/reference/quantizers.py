"""Markdown of what was measured on quantization, training and export."""

from typing import Any

from haq.reports.reference.markdown import TITLES, markdown, width


def ptq_table(records: list[dict[str, Any]]) -> str:
    """Return the accuracies without fine-tuning and without labels."""
    (record,) = records
    images = record["images"]
    lead = (
        f"Weights of {record['model']} in few bits without fine-tuning and without labels, test "
        "accuracy (average bits over all layers, allocated by sensitivities; activations float). "
        f"*corrected*: statistics of {images['statistics']} images; *learned*: also the rounding, "
        f"on {images['rounding']} images; *folded*: the network without BatchNorm:"
    )
    rows = [row for row in record["rows"] if row["method"] != "float"]
    table = [
        [
            row["network"], row["method"], f"{row['avg_weight_bits']:g}",
            f"{row['test_accuracy']:.2%}", f"{row['cpu_seconds']:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    floats = next(row for row in record["rows"] if row["method"] == "float")
    table.insert(0, ["as it is", "float", "32", f"{floats['test_accuracy']:.2%}", "0"])
    return markdown(lead, ["network", "method", "bits", "test", "CPU seconds"], table)


def profiles_table(records: list[dict[str, Any]]) -> str:
    """Return how well measured profiles predict."""
    lead = (
        "Profiles measured in ONNX Runtime, and how well they predict the latency of policies "
        "that the fit had not seen: each half by a fit to the other one (one image at a time, with "
        "studies on the machine stopped; at one thread its CPU time, else the time on the wall):"
    )
    head = [
        "network", "threads", "float us", "int8 us", "policies", "mean error", "worst",
        "rank correlation", "seconds",
    ]  # fmt: skip
    rows = []
    for record in records:
        unseen, times = record["unseen_policies"], record["latency_us"]
        int8 = next(time for name, time in times.items() if name.endswith("a8"))
        rows.append(
            [
                record["model"], str(record["options"]["threads"]),
                f"{times['fp32']['value']:,.0f}", f"{int8['value']:,.0f}",
                str(unseen["policies"]), f"{unseen['mean_error']:.1%}",
                f"{unseen['worst_error']:.1%}", f"{unseen['rank_correlation']:.3f}",
                f"{record['wall_seconds']:.0f}",
            ]
        )  # fmt: skip
    return markdown(lead, head, rows)


def exports_table(records: list[dict[str, Any]]) -> str:
    """Return what exported files are worth in ONNX Runtime."""
    lead = (
        "Exported files in ONNX Runtime: accuracy on all test images there and in PyTorch, equal "
        "answers, images whose logits equal the file's integers worked out in numpy bit for bit, "
        "and latency beside the float network and ONNX Runtime's own 8-bit `quantize_static` (one "
        "image, one thread, interleaved; no fine-tuning):"
    )
    head = [
        "network", "kB", "ONNX Runtime", "PyTorch", "equal answers", "equal to the bit", "us",
        "of float", "of quantize_static",
    ]  # fmt: skip
    rows = []
    for record in records:
        for row in record["rows"]:
            own = row["latency_us"]["this"]
            rows.append(
                [
                    f"{record['model']} {row['policy']}", f"{row['bytes'] / 1000:.0f}",
                    f"{row['onnxruntime_test_accuracy']:.2%}", f"{row['torch_test_accuracy']:.2%}",
                    f"{row['top1_agreement']:.2%}",
                    f"{row['images_equal_to_the_last_bit']} of {row['simulated_images']}",
                    f"{own:,.0f}", f"{own / row['latency_us']['fp32']:.2f}",
                    f"{own / row['latency_us']['quantize_static']:.2f}",
                ]
            )  # fmt: skip
    return markdown(lead, head, rows)


def training_sentence(record: dict[str, Any]) -> str:
    """Return the accuracies of a float network."""
    data = TITLES[record.get("data", "cifar10")]
    return (
        f"Float network: {record['model']}{width(record)} on {data}, "
        f"{record['epochs']} epochs of the 45 000 training rows: validation "
        f"{record['val_accuracy']:.2%}, test {record['test_accuracy']:.2%}."
    )


def calibration_tables(record: dict[str, Any]) -> str:
    """Return the accuracies after quantization, by clipping and bits."""
    lines = [
        f"Accuracy of {record['model']} on {record['validation_images']} validation images right "
        f"after quantization, without any fine-tuning (float {record['float']:.2%}; first and last "
        "layer at 8 bits):",
        "",
    ]
    for what, methods in record["accuracy"].items():
        widths = list(next(iter(methods.values())))
        lines += [
            f"| {what}, bits | " + " | ".join(widths) + " |",
            "|---|" + "---:|" * len(widths),
            *(
                f"| `{method}` | " + " | ".join(f"{row[bits]:.2%}" for bits in widths) + " |"
                for method, row in methods.items()
            ),
            "",
        ]
    return "\n".join(lines).rstrip()
