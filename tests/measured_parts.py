"""A profile as ``haq profile`` writes it, small enough to count with."""

from haq.hw_profiles.profile import Profile


def measured_profile(**options):
    """Return a profile as ``haq profile`` writes it, of two layers."""
    return Profile.model_validate(
        {
            "format": "haq-profile/1", "name": "mine", "title": "t", "device": "d",
            "runtime": {"name": "ONNX Runtime", "version": "0", "options": options},
            "quantities": {"latency": {"unit": "us", "provenance": "measured", "source": "s"}},
            "batch": {"reference": 2, "rule": "none"},
            "bits": {"between": "round-up"},
            "model": {
                "type": "measured", "to_quantized": 0.5, "to_float": 0.25,
                "tensors": [{"producer": "a", "consumer": "b", "values": 10}],
                "networks": {
                    "fp32": {"value": 10, "low": 9, "high": 11, "samples": 9, "contended": 0},
                    "w8a8": {"value": 40, "low": 9, "high": 11, "samples": 9, "contended": 0},
                },
                "validation": {
                    "policies": 20, "mean_error": 0.02, "worst_error": 0.05,
                    "rank_correlation": 0.97,
                },
            },
            "table": {"rows": [
                {"layer": "a", "weight": 8, "act": 8, "cost": {"latency": 3}},
                {"layer": "a", "weight": 32, "act": 32, "cost": {"latency": 10}},
                {"layer": "b", "weight": 8, "act": 8, "cost": {"latency": 5}},
                {"layer": "b", "weight": 8, "act": 7, "cost": {"latency": 6}},
                {"layer": "b", "weight": 32, "act": 32, "cost": {"latency": 12}},
            ]},
        }
    )  # fmt: skip
