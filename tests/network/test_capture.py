"""Networks as people write them: what is captured answers as they do, or says why it cannot."""

import copy
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from haq.errors import ModelError
from haq.network.capture import capture, unwrapped
from haq.network.graph import trace
from haq.network.modules import bias_of
from haq.network.outputs import taken_apart

IMAGES = (3, 8, 8)
TOKENS = 7


class Net(nn.Module):
    """A network written in one line: its forward, then its parts."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def conv(c_in=3, c_out=4, kernel=3, **options):
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


class Preset(nn.Conv2d):
    """A Conv2d that only presets arguments."""

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, 3, padding=1, bias=False)


class Same(nn.Conv2d):
    """A Conv2d that pads by itself, as its input's size wants it."""

    def forward(self, x):
        across = max((-(-x.shape[-1] // 2) - 1) * 2 + 3 - x.shape[-1], 0)
        x = functional.pad(x, (across // 2, across - across // 2) * 2)
        return functional.conv2d(x, self.weight, self.bias, 2)


class Standardised(nn.Conv2d):
    """A convolution whose weights have mean 0."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with an activation in it."""

    def forward(self, x):
        return functional.relu(super().forward(x))


def tied_convolutions():
    model = Net(
        lambda m, x: m.fc(m.n2(m.b(m.n1(m.a(x)).relu())).relu().mean((2, 3))),
        a=conv(3, 3, bias=False), b=conv(3, 3, bias=False),
        n1=nn.BatchNorm2d(3), n2=nn.BatchNorm2d(3), fc=nn.Linear(3, 2),
    )  # fmt: skip
    model.b.weight = model.a.weight
    return model


def tied_embedding():
    model = Net(
        lambda m, x: m.head(m.mid(m.emb(x)).relu()),
        emb=nn.Embedding(9, 4), mid=nn.Linear(4, 4), head=nn.Linear(4, 9, bias=False),
    )  # fmt: skip
    model.head.weight = model.emb.weight
    return model


def in_place(change):
    def forward(m, x):
        y = m.a(x)
        y = change(m, y)
        return m.fc(m.b(y).mean((2, 3)))

    return lambda: Net(forward, a=conv(), b=conv(4), drop=nn.Dropout(), norm=nn.BatchNorm2d(4),
                       fc=nn.Linear(4, 2))  # fmt: skip


def returned(y, change):
    change(y)
    return y


def optional(m, x, scale=None):
    y = m.a(x)
    return m.b(y if scale is None else y * scale)


def by_shape(m, x):
    y = m.a(x)
    while y.shape[-1] > 2:
        y = functional.avg_pool2d(y, 2)
    return m.fc(y.flatten(1)) if y.dim() == 4 else y


def without_gradients(m, x):
    with torch.no_grad():
        y = m.a(x)
    with torch.autocast("cpu", enabled=False):
        return m.fc(m.b(y).mean((2, 3)))


def pruned():
    model = Net(lambda m, x: m.fc(m.a(x).relu().mean((2, 3))), a=conv(), fc=nn.Linear(4, 2))
    prune.l1_unstructured(model.a, "weight", 0.5)
    return model


def parts(**more):
    return {"a": conv(), "fc": nn.Linear(4, 2)} | more


def head(m, y):
    return m.fc(y.relu().mean((2, 3)))


NETWORKS = {
    # name: (network, inputs, names of its layers, names of what stays float)
    "preset arguments": (lambda: Net(lambda m, x: head(m, m.a(x)), **parts(a=Preset(3, 4))),
                         IMAGES, "a fc", ""),
    "own padding": (lambda: Net(lambda m, x: head(m, m.a(x)), **parts(a=Same(3, 4, 3))),
                    IMAGES, "a fc", ""),
    "reflection": (lambda: Net(lambda m, x: head(m, m.a(x)),
                               **parts(a=conv(padding_mode="reflect"))), IMAGES, "a fc", ""),
    "functions on parameters": (
        lambda: Net(lambda m, x: functional.linear(
            functional.conv2d(x, m.w1, m.w1_bias).relu().mean((2, 3)), m.w2),
            w1=nn.Parameter(torch.randn(4, 3, 3, 3)), w1_bias=nn.Parameter(torch.randn(4)),
            w2=nn.Parameter(torch.randn(2, 4))),
        IMAGES, "w1 w2", ""),
    "products with parameters": (
        lambda: Net(lambda m, x: torch.addmm(m.b, (x @ m.w).relu().flatten(1), m.v),
                    w=nn.Parameter(torch.randn(4, 3)), v=nn.Parameter(torch.randn(15, 2)),
                    b=nn.Parameter(torch.randn(2))), (5, 4), "w v", ""),
    "names that end in numbers": (
        lambda: Net(lambda m, x: functional.conv2d(m.c1(x), m.c1.weight, stride=2),
                    c1=conv(3, 3)), IMAGES, "c1 c1_1", ""),
    "a layer called by its parameters": (
        lambda: Net(lambda m, x: functional.linear(x, m.qkv.weight, m.qkv.bias),
                    qkv=nn.Linear(4, 12)), (5, 4), "qkv", ""),
    "one layer, two strides": (
        lambda: Net(lambda m, x: m.fc(functional.conv2d(x, m.a.weight, stride=2).mean((2, 3))
                                      + m.a(x).mean((2, 3))), **parts()), IMAGES, "a a_1 fc", ""),
    "attention": (
        lambda: Net(lambda m, x: m.b(m.att(x, x, x)[0]), b=nn.Linear(4, 2),
                    att=nn.MultiheadAttention(4, 2, batch_first=True)),
        (5, 4), "att.in_proj att.out_proj b", ""),
    "attention between two": (
        lambda: Net(lambda m, x: m.b(m.att(x, y := x.flip(1), y)[0]), b=nn.Linear(4, 2),
                    att=nn.MultiheadAttention(4, 2, batch_first=True)),
        (5, 4), "att.in_proj att.in_proj_1 att.out_proj b", ""),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (5, 4),
        "self_attn.in_proj self_attn.out_proj linear1 linear2", "norm1 norm2"),
    "conv1d": (
        lambda: Net(lambda m, x: m.fc(m.c(x).relu().mean(2)), c=nn.Conv1d(3, 4, 3),
                    fc=nn.Linear(4, 2)), (3, 9), "c fc", ""),
    "conv3d and transposed": (
        lambda: Net(lambda m, x: m.fc(m.up(m.c(x[:, :, None])[:, :, 0].relu()).mean((2, 3))),
                    c=nn.Conv3d(3, 4, (1, 3, 3)), up=nn.ConvTranspose2d(4, 4, 2),
                    fc=nn.Linear(4, 2)), IMAGES, "c up fc", ""),
    "lstm": (lambda: Net(lambda m, x: m.fc(m.rnn(x)[0][:, -1]), fc=nn.Linear(3, 2),
                         rnn=nn.LSTM(4, 3, batch_first=True)), (5, 4),
             "rnn.weight_ih_l0 rnn.weight_hh_l0 fc", "rnn"),
    "parameters used directly": (
        lambda: Net(lambda m, x: m.fc(torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1) + m.pos),
                    cls=nn.Parameter(torch.randn(1, 1, 4)), pos=nn.Parameter(torch.randn(6, 4)),
                    fc=nn.Linear(4, 2)), (5, 4), "fc", "cls pos"),
    "tied convolutions": (tied_convolutions, IMAGES, "a b fc", ""),
    "tied embedding": (tied_embedding, TOKENS, "mid head", ""),
    "relu_ as a function": (in_place(lambda m, y: returned(y, torch.relu_)),
                            IMAGES, "a b fc", ""),
    "functional.relu_": (in_place(lambda m, y: returned(y, functional.relu_)),
                         IMAGES, "a b fc", ""),
    "in place on a view": (in_place(lambda m, y: returned(y, lambda y: y[:, :2].relu_())),
                           IMAGES, "a b fc", ""),
    "in place before a view is read": (
        in_place(lambda m, y: (y.transpose(2, 3), y.mul_(2))[0] + y), IMAGES, "a b fc", ""),
    "in place behind dropout and a norm": (
        in_place(lambda m, y: returned(m.drop(m.norm(y)), lambda z: z[:, :1].zero_())),
        IMAGES, "a b fc", ""),
    "assignment to a part": (
        in_place(lambda m, y: returned(y, lambda y: y.__setitem__((slice(None), 0), 1.0))),
        IMAGES, "a b fc", ""),
    "augmented assignment": (in_place(lambda m, y: y.__iadd__(y.sigmoid())), IMAGES, "a b fc", ""),
    "inplace modules": (
        lambda: Net(lambda m, x: head(m, m.act(m.b(m.act(m.a(x))))),
                    **parts(b=conv(4, 4), act=nn.ReLU6(inplace=True))), IMAGES, "a b fc", ""),
    "the input in place": (lambda: Net(lambda m, x: head(m, m.a(x.relu_())), **parts()),
                           IMAGES, "a fc", ""),
    "optional argument": (lambda: Net(optional, **parts(b=conv(4))), IMAGES, "a b", ""),
    "control flow on shapes": (lambda: Net(by_shape, a=conv(), fc=nn.Linear(16, 2)),
                               IMAGES, "a fc", ""),
    "no_grad and autocast": (lambda: Net(without_gradients, **parts(b=conv(4, 4))),
                             IMAGES, "a b fc", ""),
    "weight_norm": (lambda: Net(lambda m, x: head(m, m.a(x)),
                                **parts(a=parametrizations.weight_norm(conv()))),
                    IMAGES, "a fc", ""),
    "weight_norm by hooks": (
        lambda: Net(lambda m, x: head(m, m.a(x)), **parts(a=nn.utils.weight_norm(conv()))),
        IMAGES, "a fc", ""),
    "spectral_norm": (lambda: Net(lambda m, x: head(m, m.a(x)),
                                  **parts(a=parametrizations.spectral_norm(conv()))),
                      IMAGES, "a fc", ""),
    "prune without remove": (pruned, IMAGES, "a fc", ""),
    "weight standardisation": (
        lambda: Net(lambda m, x: head(m, m.a(x)), **parts(a=Standardised(3, 4, 3))),
        IMAGES, "a fc", ""),
    "batchnorm of another class": (
        lambda: Net(lambda m, x: head(m, m.n(m.a(x))), **parts(n=NormAct(4))), IMAGES, "a fc", ""),
    "batchnorm without statistics": (
        lambda: Net(lambda m, x: head(m, m.n(m.a(x))),
                    **parts(n=nn.BatchNorm2d(4, track_running_stats=False))), IMAGES, "a fc", ""),
    "dropouts": (lambda: Net(lambda m, x: m.fc(m.d(m.d2(m.a(x))).mean((2, 3))),
                             **parts(d=nn.Dropout(0.3), d2=nn.Dropout2d(0.3))), IMAGES, "a fc", ""),
    "constants": (
        lambda: Net(lambda m, x: head(m, m.a(x) + torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1)),
                    **parts()), IMAGES, "a fc", ""),
    "names that a graph has": (
        lambda: Net(lambda m, x: m.fc(m.graph(m.meta(x)).mean((2, 3))), fc=nn.Linear(4, 2),
                    meta=conv(), graph=conv(4, 4)), IMAGES, "model.meta model.graph model.fc", ""),
    "a frozen backbone": (
        lambda: Net(lambda m, x: head(m, m.n(m.a(x))), **parts(n=nn.BatchNorm2d(4)))
        .requires_grad_(False), IMAGES, "a fc", ""),
}  # fmt: skip


def made(name):
    torch.manual_seed(1)
    build, shape, layers, floats = NETWORKS[name]
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model, shape, layers.split(), floats.split()


def inputs(shape, count):
    if shape == TOKENS:
        return torch.randint(9, (count, 5), generator=torch.Generator().manual_seed(count))
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_a_captured_network_answers_as_the_model_for_any_number_of_inputs(name):
    model, shape, layers, _ = made(name)
    graph = trace(model, inputs(shape, 1))
    assert [layer.name for layer in graph.layers] == layers
    for count in (2, 5):
        with torch.no_grad():
            expected = model.eval()(inputs(shape, count))
            torch.testing.assert_close(graph.traced(inputs(shape, count)), expected)


@every_network
def test_every_value_of_a_network_is_in_a_layer_a_folding_norm_or_counted_as_float(name):
    model, shape, layers, floats = made(name)
    graph = trace(model, inputs(shape, 1))
    assert list(graph.floats) == floats
    stored = {id(v): v.numel() for v in graph.traced.parameters()}
    folding = sum(
        module.weight.numel() + module.bias.numel() for name, module in graph.traced.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name not in graph.floats
    )  # fmt: skip
    biases = sum(
        bias.numel() for layer in layers
        if (bias := bias_of(graph.traced.get_submodule(layer))) is not None
    )  # fmt: skip
    counted = sum(layer.weights for layer in graph.layers) + biases + folding
    assert sum(stored.values()) == counted + sum(graph.float_parameters.values())


@every_network
def test_gradients_reach_what_the_model_trains(name):
    model, shape, *_ = made(name)
    traced = trace(model, inputs(shape, 1)).traced
    trained = [value for value in traced.parameters() if value.requires_grad]
    assert bool(trained) is any(value.requires_grad for value in model.parameters())
    if trained:
        traced(inputs(shape, 2)).square().sum().backward()
        assert all(value.grad is not None for value in trained)


@every_network
def test_copies_of_a_captured_network_are_whole(name):
    model, shape, *_ = made(name)
    traced = trace(model, inputs(shape, 1)).traced
    expected = traced(inputs(shape, 3))
    twin = copy.deepcopy(traced)
    assert torch.equal(twin(inputs(shape, 3)), expected)
    assert twin.state_dict().keys() == traced.state_dict().keys()
    assert not {id(v) for v in twin.parameters()} & {id(v) for v in traced.parameters()}


@every_network
def test_capture_leaves_the_model_as_it_is(name):
    model, shape, *_ = made(name)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    trace(model, inputs(shape, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("name", ["dropouts", "batchnorm of another class", "tied convolutions"])
def test_training_mode_changes_what_a_captured_network_does(name):
    model, shape, *_ = made(name)
    traced = trace(model, inputs(shape, 1)).traced
    x = inputs(shape, 4)
    torch.manual_seed(0)
    expected = model.train()(x)
    model = made(name)[0].train()
    traced = trace(model, inputs(shape, 1)).traced.train()
    torch.manual_seed(0)
    torch.testing.assert_close(traced(x), expected)


def test_statistics_go_on_under_the_model_s_names():
    model, shape, *_ = made("batchnorm of another class")
    traced = trace(model, inputs(shape, 1)).traced
    assert type(traced.n) is nn.BatchNorm2d
    assert traced.state_dict().keys() == model.state_dict().keys()
    before = traced.n.running_mean.clone()
    traced.train()(inputs(shape, 4))
    assert not torch.equal(traced.n.running_mean, before)
    assert traced.n.num_batches_tracked == 1


@pytest.mark.parametrize("name", ["inplace modules", "tied convolutions", "dropouts"])
def test_a_captured_network_can_be_pickled(name):
    model, shape, *_ = made(name)
    traced = trace(model, inputs(shape, 1)).traced
    twin = pickle.loads(pickle.dumps(traced))
    assert torch.equal(twin(inputs(shape, 3)), traced(inputs(shape, 3)))


# What is said.


def test_a_shared_weight_is_copied_for_each_layer_and_said():
    model, shape, *_ = made("tied convolutions")
    graph = trace(model, inputs(shape, 1))
    assert graph.notes == ("b shares its weight with a; each has a copy of its own",)
    assert torch.equal(graph.traced.a.weight, graph.traced.b.weight)
    assert graph.traced.a.weight is not graph.traced.b.weight
    assert graph.traced.a.weight is model.a.weight


def test_an_embedding_and_the_layer_that_shares_its_weight_are_one_layer():
    model, shape, *_ = made("tied embedding")
    graph = trace(model, inputs(shape, 1))
    assert graph.notes == (
        "emb and head share one weight: its bits are those of layer head",
    )  # fmt: skip
    assert graph.float_parameters == {}
    assert [layer.weights for layer in graph.layers] == [16, 36]


def test_a_computed_weight_is_fixed_and_said():
    model, shape, *_ = made("prune without remove")
    graph = trace(model, inputs(shape, 1))
    assert torch.equal(graph.traced.a.weight, model.a.weight)
    assert (graph.traced.a.weight == 0).float().mean() == 0.5
    (note,) = graph.notes
    assert note.startswith("the weights of a are computed from other parameters")


def test_parts_that_the_forward_never_reaches_are_named():
    model = Net(lambda m, x: head(m, m.a(x)), **parts(aux=nn.Linear(4, 2), odd=conv()))
    graph = trace(model, torch.zeros(1, *IMAGES))
    assert graph.notes == ("the forward never reaches aux, odd, left out",)
    assert "aux.weight" not in graph.traced.state_dict()


def test_a_network_without_a_layer_is_refused():
    with pytest.raises(ModelError, match="contains no layer with weights that its forward calls"):
        trace(nn.Sequential(nn.LayerNorm(8), nn.ReLU()), torch.zeros(1, 3, 8))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_brought_to_float32_in_a_copy(kind):
    model = Net(lambda m, x: head(m, m.a(x)), **parts()).to(kind)
    graph = trace(model, torch.zeros(1, *IMAGES, dtype=kind))
    name = str(kind).removeprefix("torch.")
    assert graph.notes == (f"the network was brought from {name} to float32",)
    assert {value.dtype for value in graph.traced.parameters()} == {torch.float32}
    assert {value.dtype for value in model.parameters()} == {kind}


def test_two_inputs_that_are_one_tensor_stay_two():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, image, other):
            return self.a(image) - self.b(other)

    model, x = Two(), torch.zeros(1, *IMAGES)
    traced = trace(model, (x, x)).traced
    left, right = torch.randn(2, *IMAGES), torch.randn(2, *IMAGES)
    assert torch.equal(traced(left, right), model(left, right))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_taken_off(wrap):
    model = Net(lambda m, x: head(m, m.a(x)), **parts())
    assert unwrapped(wrap(model)) is model
    assert [layer.name for layer in trace(wrap(model), torch.zeros(1, *IMAGES)).layers] == [
        "a",
        "fc",
    ]


def test_a_scripted_network_is_refused():
    scripted = torch.jit.trace(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, *IMAGES))
    with pytest.raises(ModelError, match="compiled by torch.jit, .*: give the nn.Module"):
        trace(scripted, torch.zeros(1, *IMAGES))
    with pytest.raises(ModelError, match="^1 was compiled by torch.jit, .*: give the nn.Module"):
        trace(nn.Sequential(nn.Conv2d(3, 3, 1), scripted), torch.zeros(1, *IMAGES))


def refuses_small(m, x):
    if x.shape[-1] < 16:
        raise ValueError("images must have 16 columns")
    return m.a(x)


calls = iter(range(1000))


@pytest.mark.parametrize(
    "forward, message",
    [
        (refuses_small, "does not run on a sample of 1x3x8x8: images must have 16 columns"),
        (lambda m, x: m.a(x) if x.sum() > 0 else m.a(-x), "it branches on values that it computes"),
        (lambda m, x: m.a(x).reshape(2, -1), "it works for one number of inputs at a time alone"),
        (lambda m, x: m.a(x) * next(calls), "does not give the model's answers"),
        (lambda m, x: m.a(x) + m.count.add_(1), "changes 'count' in evaluation mode"),
        (lambda m, x: (m.a(x), {1, 2}), "gives a set; it must give tensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_captured_says_why(forward, message):
    model = Net(forward, a=conv())
    model.register_buffer("count", torch.zeros(()))
    with pytest.raises(ModelError, match=message):
        trace(model, torch.zeros(1, *IMAGES))


# Outputs.


@dataclass
class Heads:
    logits: Tensor
    boxes: Tensor | None = None


Pair = namedtuple("Pair", "logits boxes")

OUTPUTS = {
    "Tensor": lambda y: y,
    "dict": lambda y: {"logits": y, "aux": y + 1},
    "OrderedDict": lambda y: OrderedDict(logits=y, aux=y + 1),
    "tuple": lambda y: (y, [y + 1, None]),
    "list": lambda y: [y],
    "Heads": Heads,
    "Heads in Heads": lambda y: Heads(y, Heads(y + 1)),
    "Pair": lambda y: Pair(y, {"a": 2 * y}),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_keep_their_structure(kind):
    end = OUTPUTS[kind]
    model = Net(lambda m, x: end(head(m, m.a(x))), **parts())
    graph = trace(model, torch.zeros(1, *IMAGES))
    x = torch.randn(3, *IMAGES)
    expected, given = model(x), copy.deepcopy(graph.traced)(x)
    assert type(given) is type(expected)
    (structure, tensors), (wanted, values) = taken_apart(given), taken_apart(expected)
    assert structure == wanted
    torch.testing.assert_close(tensors, values)


@pytest.mark.parametrize("end", [Heads, lambda y: OrderedDict(logits=y), lambda y: Pair(y, [y])])
def test_what_goes_out_in_a_structure_is_not_quantized(end):
    graph = trace(Net(lambda m, x: end(head(m, m.a(x))), **parts()), torch.zeros(1, *IMAGES))
    assert [point.tensor for point in graph.points] == ["x", "relu", "mean"]


def test_a_forward_that_changes_its_input_leaves_the_callers_data():
    class Halving(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x[:, :2].mul_(0.5)
            return self.fc(x)

    torch.manual_seed(0)
    model, inputs = Halving().eval(), torch.randn(5, 4)
    before = inputs.clone()
    graph = trace(model, inputs)
    with torch.no_grad():
        answer = graph.traced(inputs)
        assert torch.equal(inputs, before)
        torch.testing.assert_close(answer, model(before.clone()))


@pytest.mark.parametrize(
    "sample, message",
    [
        (torch.zeros(0, 4), "the sample has no row"),
        (torch.tensor(3.0), "the sample has no row"),
        ([], "the sample has no row"),
        (np.zeros((2, 4), np.float32), "the sample is a ndarray; give torch tensors"),
        ([np.zeros((2, 4), np.float32)], "the sample holds a ndarray; give torch tensors"),
        ({"input": [1, 2]}, "the sample holds a list"),
        (None, "the sample is a NoneType"),
    ],
)
def test_samples_that_are_none_are_refused_in_one_sentence(sample, message):
    with pytest.raises(ModelError, match=message):
        capture(nn.Linear(4, 3).eval(), sample)
