"""BatchNorms of timm's own class, which hold an activation, fold into the layers before them."""

import pytest
import torch
from torch import nn

from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.quantization.bn_folding import norms_of

timm = pytest.importorskip("timm")


NETWORKS = {"test_efficientnet": 0, "repvgg_a0": 17, "regnety_002": 0}
"""Name to how many of its BatchNorms have no layer before them, but an addition."""


@pytest.mark.parametrize("name", NETWORKS)
def test_no_batch_norm_is_left_where_a_layer_stands_before_it(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    graph = trace(model, images)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert any(type(module) is not nn.BatchNorm2d for module in norms)
    network, _ = stand_in(graph)
    assert len(norms_of(network)) == len(norms) - NETWORKS[name]
    kinds = [node.op_type for node in lower(template(network, images), network).graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Conv") + kinds.count("Gemm") == len(graph.layers)
