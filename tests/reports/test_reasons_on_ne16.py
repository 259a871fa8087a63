"""On NE16 a page says why pointwise layers keep 8 bits, and the layers around them do not."""

from haq.allocation.budgets import parse_budget
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import Sensitivity
from haq.hw_profiles import load
from haq.network.layers import Layer
from haq.reports.reasons import reasons

LAYERS = (
    Layer("stem", "conv", 3, 64, (3, 3), padding=(1, 1), in_size=(14, 14), out_size=(14, 14),
          weights=1728, macs=338688, reads_input=True),
    Layer("expand", "pointwise", 64, 384, in_size=(14, 14), out_size=(14, 14), weights=24576,
          macs=4816896),
    Layer("dw", "depthwise", 384, 384, (3, 3), padding=(1, 1), groups=384, in_size=(14, 14),
          out_size=(14, 14), weights=3456, macs=677376),
)  # fmt: skip


def test_a_bit_less_changes_nothing_for_a_pointwise_layer_but_its_damage():
    target = load("gap9-ne16")
    table = tabulate(LAYERS, permitted(LAYERS, target), target)
    policy = {"stem": Bits(8, 8), "expand": Bits(8, 8), "dw": Bits(4, 8)}
    widths = {2: 0.4, 3: 0.2, 4: 0.1, 5: 0.05, 6: 0.03, 7: 0.01, 8: 0.001}
    known = Sensitivity("kl", 9, dict.fromkeys(policy, widths), {name: {8: 0.0} for name in policy})
    budget = parse_budget("latency=90%w8a8", LAYERS, target)
    sentences = reasons(table, table, policy, [budget], known)
    why = sentences["expand"]
    assert why.startswith("Weights at 8 bits: 7 would change nothing in latency and raise")
    # 97 800 cycles at 4 bits, 88 200 at 3: the rows of the engine's model.
    assert "eights at 4 bits: 3 would save 9,600 cycles" in sentences["dw"]
