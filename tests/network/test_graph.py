from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

from haq.errors import ModelError
from haq.models import build, input_shape
from haq.network.graph import Handover, handovers, inventory, trace
from haq.network.layers import CallShape, Layer
from haq.network.sites import insert

IMAGE = torch.zeros(1, 3, 8, 8)

SHAPE_ONLY = {nn.Dropout, "reshape", "flatten"}
SELECTION = SHAPE_ONLY | {"max_pool2d", "slice", "pad"}
ADDITION = {"add"}
RELU = {"relu", "hardtanh"}


class Net(nn.Module):
    """A network written in one line: its forward, then its modules."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


class Mark(nn.Module):
    """Stands where a quantizer will stand."""

    def __init__(self, point):
        super().__init__()
        self.layers = point.layers

    def forward(self, x):
        return x


def conv(c_in=3, c_out=4, kernel=3, **options):
    return nn.Conv2d(c_in, c_out, kernel, padding="same", **options)


def norm_net(forward, **parts):
    return Net(forward, a=conv(), bn=nn.BatchNorm2d(4), relu=nn.ReLU(), b=conv(4), **parts)


def layers_of(model, sample=IMAGE):
    return {layer.name: layer for layer in inventory(model, sample)}


def points_of(model, sample=IMAGE):
    return [(point.tensor, point.layers, point.signed) for point in trace(model, sample).points]


def marked(model, sample):
    graph = trace(model, sample)
    return insert(graph.traced, graph.points, Mark)


def kind(node):
    if node.op == "call_module":
        return type(node.graph.owning_module.get_submodule(node.target))
    return (
        node.target._schema.name.removeprefix("aten::") if node.op == "call_function" else node.op
    )


def mark_before(node, passing=SHAPE_ONLY):
    """Return the layers of the quantizer that ``node`` comes from, or None where there is none."""
    while kind(node) in passing:
        node = node.args[0]
    is_mark = kind(node) is Mark
    return node.graph.owning_module.get_submodule(node.target).layers if is_mark else None


@cache
def whole(name):
    """Return a model, a sample, and the model's graph with quantizers marked."""
    size = {"mobilenet_v2": 32, "resnet18": 32}.get(name)
    model, sample = build(name, size=size).eval(), torch.randn(2, *input_shape(name, size))
    return model, sample, marked(model, sample)


every_kind_of_model = pytest.mark.parametrize(
    "name", ["resnet20", "mobilenet_v2", "resnet18", "digits_cnn", "digits_mlp"]
)


def test_the_layers_of_resnet20_in_order():
    layers = inventory(build("resnet20"), torch.zeros(1, 3, 32, 32))
    stages = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)]
    assert [layer.name for layer in layers] == ["conv1", *stages, "linear"]
    assert [layer.kind for layer in layers] == ["conv"] * 19 + ["linear"]
    assert layers[0] == Layer(
        "conv1", "conv", 3, 16, (3, 3), (1, 1), (1, 1), 1, (32, 32), (32, 32),
        weights=432, biases=16, macs=442_368, signed=True, reads="conv1", reads_input=True,
    )  # fmt: skip
    assert layers[7] == Layer(
        "layer2.0.conv1", "conv", 16, 32, (3, 3), (2, 2), (1, 1), 1, (32, 32), (16, 16),
        weights=4608, biases=32, macs=4608 * 256, reads="layer2.0.conv1",
    )  # fmt: skip
    assert layers[19] == Layer(
        "linear", "linear", 64, 10, weights=640, biases=10, macs=640, reads="linear"
    )


def test_macs_of_resnet20_by_hand():
    layers = inventory(build("resnet20"), torch.zeros(1, 3, 32, 32))
    stem, linear = 432 * 32 * 32, 640
    first = 6 * 2304 * 32 * 32
    second = (4608 + 5 * 9216) * 16 * 16
    third = (18432 + 5 * 36864) * 8 * 8
    assert sum(layer.macs for layer in layers) == stem + first + second + third + linear
    assert stem + first + second + third + linear == 40_551_040


def test_costs_are_per_image_whatever_the_sample():
    one, four = (inventory(build("digits_cnn"), torch.zeros(n, 1, 8, 8)) for n in (1, 4))
    assert one == four


def test_mobilenet_v2_has_53_layers_and_300_million_macs():
    layers = inventory(build("mobilenet_v2"), torch.zeros(1, 3, 224, 224))
    assert len(layers) == 53
    assert sum(layer.macs for layer in layers) == 300_774_272
    assert [layer.kind for layer in layers[:4]] == ["conv", "depthwise", "pointwise", "pointwise"]


def test_after_a_linear_bottleneck_activations_are_signed_and_after_relu6_they_are_not():
    model, sample, _ = whole("mobilenet_v2")
    layers = layers_of(model, sample)
    assert layers["features.2.conv.0.0"].signed  # reads the projection of features.1
    assert not layers["features.2.conv.1.0"].signed
    assert layers["features.4.conv.0.0"].signed  # reads the sum of features.3
    assert not layers["classifier.1"].signed  # reads the mean of a ReLU6


def test_layers_that_read_one_tensor_name_its_first_reader():
    model, sample, _ = whole("resnet18")
    layers = layers_of(model, sample)
    assert layers["layer2.0.conv1"].reads == "layer2.0.conv1"
    assert layers["layer2.0.downsample.0"].reads == "layer2.0.conv1"
    shared = [name for name, layer in layers.items() if layer.reads != name]
    assert shared == [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]


def test_a_module_called_twice_is_one_layer_with_the_macs_of_both_calls():
    model = Net(lambda m, x: m.a(m.a(x)), a=conv(3, 3, 1))
    (layer,) = inventory(model, IMAGE)
    assert (layer.calls, layer.weights, layer.macs) == (2, 9, 2 * 9 * 64)
    assert layer.reads_input and layer.signed
    assert points_of(model) == [("x", ("a",), True), ("a", ("a",), True)]


def test_a_module_called_twice_joins_the_readers_of_both_tensors():
    def forward(m, x):
        y = m.stem(x).relu()
        z = m.first(y).relu()
        return m.twice(y) + m.twice(z) + m.last(z)

    parts = {name: conv(4, 4, 1) for name in ("first", "twice", "last")}
    layers = layers_of(Net(forward, stem=conv(), **parts))
    assert [layers[name].reads for name in parts] == ["first", "first", "first"]


def test_a_module_under_two_names_has_the_first():
    shared = conv(3, 3)
    assert list(layers_of(Net(lambda m, x: m.b(m.a(x)), a=shared, b=shared))) == ["a"]


@pytest.mark.parametrize(
    "module, kind",
    [
        (nn.Conv2d(8, 8, 3), "conv"),
        (nn.Conv2d(8, 8, 1), "pointwise"),
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise"),
        (nn.Conv2d(8, 16, 3, groups=8), "grouped"),
        (nn.Conv2d(8, 8, 1, groups=2), "grouped"),
    ],
)
def test_kinds_of_convolutions(module, kind):
    (layer,) = inventory(nn.Sequential(module), torch.zeros(1, 8, 8, 8))
    assert (layer.kind, layer.c_in, layer.c_out) == (kind, 8, module.out_channels)
    assert layer.weights == 8 // module.groups * module.out_channels * module.kernel_size[0] ** 2


def test_one_channel_is_no_depthwise_convolution():
    (layer,) = inventory(nn.Sequential(nn.Conv2d(1, 1, 3)), torch.zeros(1, 1, 8, 8))
    assert layer.kind == "conv"


def test_padding_same_is_given_in_rows_and_columns():
    same = nn.Conv2d(3, 4, (5, 3), padding="same", dilation=(1, 2))
    valid = nn.Conv2d(3, 4, (5, 3), (2, 1), padding="valid")
    (layer,) = inventory(nn.Sequential(same), IMAGE)
    assert (layer.padding, layer.in_size, layer.out_size) == ((2, 2), (8, 8), (8, 8))
    (layer,) = inventory(nn.Sequential(valid), IMAGE)
    assert (layer.padding, layer.stride, layer.out_size) == ((0, 0), (2, 1), (2, 6))


def test_a_linear_layer_on_tokens_has_a_position_each():
    (layer,) = inventory(nn.Sequential(nn.Linear(6, 5)), torch.zeros(2, 7, 6))
    assert (layer.in_size, layer.out_size, layer.macs) == ((7, 1), (7, 1), 7 * 30)


def test_windows_in_the_batch_axis_count_for_their_image():
    model = Net(lambda m, x: m.a(x.reshape(-1, 6)), a=nn.Linear(6, 5))
    (layer,) = inventory(model, torch.zeros(2, 7, 6))
    assert (layer.in_size, layer.macs) == ((7, 1), 7 * 30)


def test_a_normalisation_that_follows_leaves_a_bias_behind():
    layers = layers_of(norm_net(lambda m, x: m.b(m.relu(m.bn(m.a(x))))))
    assert layers["a"].biases == 4
    bare = Net(lambda m, x: m.b(m.a(x)), a=conv(bias=False), b=conv(4, 5))
    assert [layer.biases for layer in inventory(bare, IMAGE)] == [0, 5]


def test_one_layer_before_two_normalisations_keeps_both_apart():
    parts = {"a": conv(3, 3, bias=False), "n1": nn.BatchNorm2d(3), "n2": nn.BatchNorm2d(3)}
    graph = trace(Net(lambda m, x: m.n2(m.a(m.n1(m.a(x)))), **parts), IMAGE)
    assert graph.layers[0].biases == 0
    assert graph.floats == ("n1", "n2")


def test_other_modules_with_weights_are_listed():
    model = Net(
        lambda m, x: m.c(m.ln(m.emb(x))) * m.scale + m.bn(m.c(m.gn(m.c.weight))),
        emb=nn.Embedding(5, 4),
        ln=nn.LayerNorm(4),
        gn=nn.Linear(4, 4),
        c=nn.Linear(4, 4),
        bn=nn.BatchNorm1d(4),
        scale=nn.Parameter(torch.ones(())),
    )
    assert trace(model, torch.zeros(1, 4, dtype=torch.int64)).floats == (
        "ln", "scale", "gn", "bn"
    )  # fmt: skip


def test_a_normalisation_is_listed_unless_it_folds_into_a_layer():
    folds = norm_net(lambda m, x: m.b(m.relu(m.bn(m.a(x)))))
    before = norm_net(lambda m, x: m.b(m.bn(m.relu(m.a(x)))))
    branched = norm_net(lambda m, x: (m.bn(y := m.a(x)), m.b(y)))
    assert [trace(m, IMAGE).floats for m in (folds, before, branched)] == [(), ("bn",), ("bn",)]


def test_the_projections_of_an_attention_are_layers():
    model = Net(
        lambda m, x: m.b(m.att(x, x, x)[0]),
        att=nn.MultiheadAttention(4, 2, batch_first=True),
        b=nn.Linear(4, 2),
    )
    graph = trace(model, torch.zeros(1, 5, 4))
    assert [(layer.name, layer.weights, layer.macs) for layer in graph.layers] == [
        ("att.in_proj", 48, 240), ("att.out_proj", 16, 80), ("b", 8, 40)
    ]  # fmt: skip
    assert graph.floats == ()


def test_a_forward_that_branches_on_values_is_refused():
    model = Net(lambda m, x: m.a(x) if x.sum() > 0 else m.a(-x), a=conv())
    with pytest.raises(ModelError, match="the forward of Net cannot be captured: it branches on"):
        trace(model, IMAGE)


def test_a_sample_that_does_not_fit_is_named():
    with pytest.raises(ModelError, match="does not run on a sample of 1x1x8x8: .*channels"):
        trace(nn.Sequential(conv()), torch.zeros(1, 1, 8, 8))


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="contains no layer with weights"):
        trace(nn.ReLU(), IMAGE)


def test_tracing_leaves_the_model_as_it_is():
    model = norm_net(lambda m, x: m.b(m.relu(m.bn(m.a(x)))))
    model.bn.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, torch.randn(4, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [model.training, model.bn.training, model.a.training] == [True, False, True]


def test_a_functional_dropout_is_traced_as_in_evaluation():
    model = Net(lambda m, x: functional.dropout(m.a(x), 0.5, m.training), a=conv())
    graph = trace(model, IMAGE)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(graph.traced(x), model.a(x))


def before_b(change, negative):
    return pytest.param(lambda m, x: m.b(change(m.a(x), x)), negative)


@pytest.mark.parametrize(
    "forward, signed",
    [
        before_b(lambda a, x: a, True),
        before_b(lambda a, x: a.relu(), False),
        before_b(lambda a, x: functional.relu6(a, inplace=True), False),
        before_b(lambda a, x: functional.leaky_relu(a), True),
        before_b(lambda a, x: functional.silu(a), True),
        before_b(lambda a, x: torch.sigmoid(a), False),
        before_b(lambda a, x: functional.avg_pool2d(a.relu(), 2), False),
        before_b(lambda a, x: functional.max_pool2d(a, 2), True),
        before_b(lambda a, x: a.relu() + torch.sigmoid(a), False),
        before_b(lambda a, x: a.relu() + a, True),
        before_b(lambda a, x: a.relu() - 1, True),
        before_b(lambda a, x: a.relu() + (-1), True),
        before_b(lambda a, x: a.relu() * 2, False),
        before_b(lambda a, x: a.relu() * -2, True),
        before_b(lambda a, x: torch.add(a.relu(), a.abs(), alpha=-1), True),
        before_b(lambda a, x: a.relu().mean(-1, keepdim=True), False),
        before_b(lambda a, x: torch.cat([a.relu()[:, :2], a.abs()[:, 2:]], 1), False),
        before_b(lambda a, x: torch.cat([a.relu()[:, 1:], x[:, :1]], 1), True),
        before_b(lambda a, x: functional.pad(a.relu(), (1, 1)), False),
        before_b(lambda a, x: functional.pad(a.relu(), (1, 1, 1, 1), mode="reflect"), False),
        before_b(lambda a, x: functional.pad(a.relu(), (1, 1), value=-1), True),
        before_b(lambda a, x: a.relu().view(x.size(0), 4, x.shape[2] * 2, -1), False),
        before_b(lambda a, x: torch.cat(a.relu().chunk(2, dim=1)[::-1], 1), False),
    ],
)
def test_whether_a_layer_reads_negative_values(forward, signed):
    layers = layers_of(Net(forward, a=conv(), b=conv(4)))
    assert layers["b"].signed is signed
    assert layers["a"].signed


def test_a_flattened_image_is_still_the_networks_input():
    (first, *rest) = inventory(build("digits_mlp"), torch.zeros(1, 1, 8, 8))
    assert first.reads_input
    assert not any(layer.reads_input for layer in rest)


@every_kind_of_model
def test_every_layer_reads_what_its_own_quantizer_gives(name):
    _, _, traced = whole(name)
    layers = [node for node in traced.graph.nodes if kind(node) in (nn.Conv2d, nn.Linear)]
    assert all(node.target in mark_before(node.args[0]) for node in layers)


@every_kind_of_model
def test_both_operands_of_every_addition_are_kept_in_8_bits(name):
    _, _, traced = whole(name)
    sums = [node for node in traced.graph.nodes if kind(node) in ADDITION]
    assert len(sums) == {"resnet20": 9, "mobilenet_v2": 10, "resnet18": 8}.get(name, 0)
    assert all(mark_before(operand, SELECTION) == () for node in sums for operand in node.args)


@every_kind_of_model
def test_what_a_layer_or_a_sum_computes_is_quantized_after_normalisation_and_relu(name):
    _, _, traced = whole(name)
    for node in traced.graph.nodes:
        if kind(node) in {nn.Conv2d, nn.Linear} | ADDITION:
            while kind(*node.users) in {nn.BatchNorm2d} | RELU:
                (node,) = node.users
            assert all(kind(user) in (Mark, "output") for user in node.users)


@every_kind_of_model
def test_quantizers_that_do_nothing_change_nothing(name):
    model, sample, traced = whole(name)
    with torch.no_grad():
        assert torch.equal(traced(sample), model(sample))


def test_the_points_of_a_residual_block():
    def forward(m, x):
        y = m.relu(m.bn(m.a(x)))
        return m.fc(m.relu(m.b(y) + y).mean((2, 3)))

    assert points_of(norm_net(forward, fc=nn.Linear(4, 2))) == [
        ("x", ("a",), True),
        ("relu", (), False),  # the other side of the addition reads it in 8 bits,
        ("relu", ("b",), False),  # the layer in its own
        ("b", (), True),
        ("relu_1", (), False),  # what is pooled
        ("mean", ("fc",), False),
    ]


def test_resnet20_has_a_quantizer_for_every_layer_and_every_operand():
    points = trace(build("resnet20"), torch.zeros(1, 3, 32, 32)).points
    read = [point for point in points if point.layers]
    assert [point.layers for point in read] == [
        (layer.name,) for layer in inventory(build("resnet20"), torch.zeros(1, 3, 32, 32))
    ]
    assert len(points) - len(read) == 1 + 9 + 9  # the stem, before and after each addition


def test_a_shortcut_from_the_input_is_quantized_too():
    model = Net(lambda m, x: m.b(m.a(x) + x), a=conv(3, 3), b=conv())
    assert points_of(model) == [
        ("x", (), True),
        ("x", ("a",), True),
        ("a", (), True),
        ("add", ("b",), True),
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda m, y: y.relu_(),
        lambda m, y: m.relu(y),
        lambda m, y: functional.relu(y, inplace=True),
    ],
)
def test_who_reads_a_tensor_changed_in_place_reads_the_change(change):
    def forward(m, x):
        y = m.a(x)
        change(m, y)
        return m.b(y)

    parts = {"a": conv(), "b": conv(4), "relu": nn.ReLU(inplace=True)}
    model = Net(forward, **parts)
    (_, layers, signed) = points_of(model)[1]
    assert (layers, signed) == (("b",), False)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(marked(model, IMAGE)(x), model(x))


def test_a_sum_in_place_is_a_sum():
    def forward(m, x):
        y = m.a(x)
        y.add_(m.c(x))
        return m.b(y)

    assert points_of(Net(forward, a=conv(), b=conv(4), c=conv())) == [
        ("x", ("a", "c"), True),
        ("a", (), True),
        ("c", (), True),
        ("add", ("b",), True),
    ]


def test_a_tensor_added_to_itself_is_a_sum():
    model = Net(lambda m, x: (y + y).mean() if (y := m.a(x)) is not None else x, a=conv())
    assert points_of(model) == [("x", ("a",), True), ("a", (), True), ("add", (), True)]


def test_the_branches_of_a_concatenation_are_kept_and_the_whole_is_read():
    model = Net(lambda m, x: m.b(torch.cat([m.a(x).relu(), m.c(x)], 1)), a=conv(), c=conv())
    model.b = conv(8)
    assert points_of(model) == [
        ("x", ("a", "c"), True),
        ("relu", (), False),
        ("c", (), True),
        ("cat", ("b",), True),
    ]


def test_a_gate_reads_kept_tensors():
    model = Net(lambda m, x: m.b((y := m.a(x).relu()) * torch.sigmoid(m.g(y))), a=conv())
    model.b, model.g = conv(4), conv(4, 4)
    assert points_of(model) == [
        ("x", ("a",), True),
        ("relu", (), False),
        ("relu", ("g",), False),
        ("g", (), True),
        ("mul", ("b",), False),
    ]


def test_one_relu_module_may_serve_everywhere():
    model = norm_net(lambda m, x: m.c(m.relu(m.b(m.relu(m.a(x))))), c=conv(4))
    del model.bn
    assert points_of(model) == [
        ("x", ("a",), True),
        ("relu", ("b",), False),
        ("relu_1", ("c",), False),
    ]


def test_dropout_and_flatten_stand_behind_the_quantizer():
    parts = {"a": conv(), "drop": nn.Dropout(), "fc": nn.Linear(256, 2)}
    model = Net(lambda m, x: m.fc(m.drop(m.a(x).relu()).view(x.size(0), -1)), **parts)
    assert points_of(model) == [("x", ("a",), True), ("relu", ("fc",), False)]
    (relu,) = (node for node in marked(model, IMAGE).graph.nodes if node.name == "relu")
    assert [kind(user) for user in relu.users] == [Mark]


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_a_layer_reads_what_stands_before_its_padding(mode):
    def forward(m, x):
        return m.b(functional.pad(m.a(x).relu(), (1, 1, 1, 1), mode=mode))

    model = Net(forward, a=conv(), b=nn.Conv2d(4, 4, 3))
    assert points_of(model) == [("x", ("a",), True), ("relu", ("b",), False)]


def test_padding_with_another_number_is_read_as_a_tensor_of_its_own():
    model = Net(lambda m, x: m.b(functional.pad(m.a(x).relu(), (1, 1), value=1.0)), a=conv())
    model.b = conv(4)
    assert [tensor for tensor, *_ in points_of(model)] == ["x", "relu", "pad"]


def test_asking_for_a_shape_is_not_reading():
    parts = {"a": conv(), "fc": nn.Linear(256, 2)}
    model = Net(lambda m, x: m.fc((y := m.a(x).relu()).view(y.size(0), y.shape[1] * 64)), **parts)
    assert points_of(model) == [("x", ("a",), True), ("relu", ("fc",), False)]


def test_sums_of_sizes_and_of_indices_are_not_quantized():
    def forward(m, x):
        return m.fc(m.emb(x + x.flip(1)).view(x.size(0), x.size(1) + x.size(1) * 3))

    model = Net(forward, emb=nn.Embedding(5, 4), fc=nn.Linear(12, 2))
    sample = torch.zeros(1, 3, dtype=torch.int64)
    assert points_of(model, sample) == [("emb", ("fc",), True)]


def test_the_pooled_stem_of_resnet18_is_kept_before_and_read_after_the_pool():
    model, sample, _ = whole("resnet18")
    assert points_of(model, sample)[:3] == [
        ("x", ("conv1",), True),
        ("relu", (), False),
        ("max_pool2d", ("layer1.0.conv1",), False),
    ]


@pytest.mark.parametrize(
    "end",
    [
        lambda y: y,
        lambda y: y.squeeze(1),
        lambda y: (y.flatten(1), y),
        lambda y: {"logits": y},
    ],
)
def test_the_output_is_not_quantized(end):
    assert points_of(Net(lambda m, x: end(m.a(x)), a=conv())) == [("x", ("a",), True)]


def test_a_forward_may_take_several_tensors():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x, y, scale=1.0):
            return self.a(input=x) + self.b(y)

    graph = trace(Two(), (IMAGE, IMAGE))
    assert [(layer.name, layer.reads_input) for layer in graph.layers] == [("a", True), ("b", True)]


def residual(self, x):
    """Two blocks of one layer each on a stem; the second one's sum is what the head reads."""
    x = self.relu(self.stem(x))
    x = x + self.one(x)
    x = x + self.two(x)
    return self.head(x.mean((2, 3)))


def residual_net():
    return Net(
        residual, stem=conv(), relu=nn.ReLU(), one=conv(4), two=conv(4), head=nn.Linear(4, 2)
    )


def test_a_sum_runs_with_the_layer_that_adds_last():
    points = {
        (p.tensor, bool(p.layers)): (p.source, p.joins) for p in trace(residual_net(), IMAGE).points
    }
    assert points == {
        ("x", True): ("", ()),
        ("relu", True): ("stem", ()),
        ("relu", False): ("stem", ("one",)),
        ("one", False): ("one", ("one",)),
        ("add", True): ("one", ()),
        ("add", False): ("one", ("two",)),
        ("two", False): ("two", ("two",)),
        ("add_1", False): ("two", ()),
        ("mean", True): ("two", ()),
    }


def test_handovers_by_hand():
    images = torch.zeros(2, 3, 8, 8)
    assert handovers(trace(residual_net(), images), images) == (
        Handover("stem", "one", 4 * 64),  # both the layer and its addition read it
        Handover("stem", "one", 4 * 64),
        Handover("one", "two", 4 * 64),
        Handover("one", "two", 4 * 64),
        Handover("two", "head", 4),
    )


def test_a_tensor_with_two_readers_is_handed_over_once():
    def forks(self, x):
        x = self.stem(x)
        return self.left(x) + self.right(x)

    model = Net(forks, stem=conv(), left=conv(4), right=conv(4))
    assert handovers(trace(model, IMAGE), IMAGE) == (
        Handover("stem", "left", 256),
        Handover("left", "right", 256),
    )


def test_a_head_called_at_two_sizes_is_seen_at_both():
    def forward(m, x):
        y = m.stem(x).relu()
        return m.head(y).mean() + m.head(functional.avg_pool2d(y, 4)).mean()

    head = layers_of(Net(forward, stem=conv(), head=conv(4, 2)))["head"]
    assert head.shapes == (CallShape((8, 8), (8, 8), 72 * 64, 1), CallShape((2, 2), (2, 2), 288, 1))
    assert (head.calls, head.macs) == (2, 72 * 68)
    assert [(part.in_size, part.calls, part.macs) for part in head.by_size()] == [
        ((8, 8), 1, 72 * 64),
        ((2, 2), 1, 288),
    ]


def test_calls_of_one_size_need_no_sizes_of_their_own():
    (layer,) = inventory(Net(lambda m, x: m.a(m.a(x)), a=conv(3, 3)), IMAGE)
    assert layer.shapes == () and layer.by_size() == (layer,)


def test_what_stays_float_is_counted_and_what_is_tied_once():
    model = Net(
        lambda m, x: m.c(m.ln(m.emb(x)) + m.scale),
        emb=nn.Embedding(5, 4),
        ln=nn.LayerNorm(4),
        c=nn.Linear(4, 4),
        scale=nn.Parameter(torch.ones(4)),
    )
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    assert trace(model, tokens).float_parameters == {"scale": 4, "ln": 8}
