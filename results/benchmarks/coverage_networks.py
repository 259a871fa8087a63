"""The networks of the coverage table: from a name to a function that builds it and its inputs.

Weights are random and inputs small, unless the name says otherwise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Inputs = tuple[Tensor, ...]
Built = tuple[nn.Module, Callable[[int, int], Inputs]]
"""A network, and a function from a number of inputs and a seed to the inputs."""


def images(*shape: int) -> Callable[[int, int], Inputs]:
    """Return what makes images of a shape."""

    def inputs(count: int, seed: int) -> Inputs:
        return (torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)),)

    return inputs


def tokens(length: int, words: int, mask: bool = False) -> Callable[[int, int], Inputs]:
    """Return what makes sequences of tokens, with masks of their ends or without."""

    def inputs(count: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, words, (count, length), generator=generator)
        if not mask:
            return (ids,)
        ends = torch.randint(length // 2, length + 1, (count, 1), generator=generator)
        return ids, (torch.arange(length) < ends).long()

    return inputs


def _torchvision(name: str, size: int = 64, **options: Any) -> Built:
    import torchvision

    more: dict[str, Any] = {"weights": None}
    if "segmentation" in options or name in _SEGMENTATION:
        more |= {"weights_backbone": None}
    if name in ("googlenet", "inception_v3"):
        more |= {"init_weights": False}
    model = torchvision.models.get_model(name, **more, **options)
    return model, images(3, size, size)


_SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50")


def _video(name: str) -> Built:
    import torchvision

    return torchvision.models.get_model(name, weights=None), images(3, 8, 32, 32)


def _maxvit() -> Built:
    from torchvision.models import MaxVit

    model = MaxVit((64, 64), 32, 2, [32, 64, 128, 256], [2, 2, 3, 2], 32, 0.2)
    return model, images(3, 64, 64)


def _timm(name: str, size: int = 64, **options: Any) -> Built:
    import timm

    return timm.create_model(name, pretrained=False, **options), images(3, size, size)


def _transformers(
    model: str, config: str, inputs: Callable[[int, int], Inputs], **sizes: Any
) -> Built:
    import transformers

    built = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    return built, inputs


class _Masked(nn.Module):
    """Gives ids and their mask to a network by name."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


def _masked(model: str, config: str, inputs: Any, **sizes: Any) -> Built:
    built, inputs = _transformers(model, config, inputs, **sizes)
    return _Masked(built), inputs


class _UNet(nn.Module):
    def __init__(self, up: str):
        super().__init__()
        self.down1, self.down2 = _double(3, 16), _double(16, 32)
        self.bottom = _double(32, 64)
        self.up2, self.up1 = _up(up, 64, 32), _up(up, 32, 16)
        self.mix2, self.mix1 = _double(64, 32), _double(32, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        x = self.bottom(functional.max_pool2d(second, 2))
        x = self.mix2(torch.cat([self.up2(x), second], 1))
        return self.head(self.mix1(torch.cat([self.up1(x), first], 1)))


def _double(c_in: int, c_out: int) -> nn.Sequential:
    parts = []
    for channels in (c_in, c_out):
        parts += [
            nn.Conv2d(channels, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*parts)


def _up(kind: str, c_in: int, c_out: int) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose2d(c_in, c_out, 2, 2)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode=kind), nn.Conv2d(c_in, c_out, 1))


class _Heads(nn.Module):
    """One trunk, three heads: boxes, classes, a mask behind a sigmoid and an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_double(3, 16), nn.MaxPool2d(2), _double(16, 32))
        self.boxes, self.classes = nn.Conv2d(32, 4, 3, padding=1), nn.Conv2d(32, 10, 1)
        self.mask = nn.Conv2d(32, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        mask = functional.interpolate(self.mask(x).sigmoid(), scale_factor=2, mode="bilinear")
        return {"boxes": self.boxes(x), "classes": self.classes(x), "mask": mask}


def _autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Sigmoid(),
    )  # fmt: skip


def _superresolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 12, 3, padding=1), nn.PixelShuffle(2),
    )  # fmt: skip


class _Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_double(3, 24), _double(24, 24), nn.Conv2d(24, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 16, 9, 2, 4), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 9, 2, 4),
        nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]):
        super().__init__()
        self.words = nn.Embedding(200, 32)
        self.cells = kind(32, 64, 2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cells(self.words(ids))[0][:, -1])


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(_double(3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.numbers = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, picture: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.picture(picture), self.numbers(numbers)], 1))


def _two_inputs() -> Built:
    def inputs(count: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        picture = torch.randn(count, 3, 16, 16, generator=generator)
        return picture, torch.randn(count, 12, generator=generator)

    return _TwoInputs(), inputs


class _Flags(nn.Module):
    """Rows of which flags say which count, and a number a row how many do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mix, self.head = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, rows: Tensor, flags: Tensor, lengths: Tensor) -> Tensor:
        x = functional.relu(self.body(rows)).masked_fill(~flags[..., None], 0.0)
        return self.head(functional.relu(self.mix(x.sum(1) / lengths[:, None])))


def _flags() -> Built:
    def inputs(count: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 9, (count,), generator=generator)
        rows = torch.randn(count, 8, 12, generator=generator)
        return rows, torch.arange(8) < lengths[:, None], lengths

    return _Flags(), inputs


class _Pyramid(nn.Module):
    """One head, a convolution with its BatchNorm, for feature maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = _double(3, 16), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        sizes = (x, functional.max_pool2d(x, 2))
        each = [functional.relu(self.norm(self.shared(one))).mean((2, 3)) for one in sizes]
        return self.head(torch.cat(each, 1))


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = _double(3, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 16:
            x = functional.avg_pool2d(x, 2)
        return self.head(self.body(x).mean((2, 3)))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu")
        self.words, self.body = nn.Embedding(200, 64), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.words(ids)).mean(1))


def _own(model: Callable[[], nn.Module], inputs: Callable[[int, int], Inputs]) -> Built:
    return model(), inputs


_BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 128, "vocab_size": 500, "max_position_embeddings": 64}  # fmt: skip
_VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "image_size": 32, "patch_size": 8, "num_labels": 10}  # fmt: skip
_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
          "max_position_embeddings": 64, "use_cache": False}  # fmt: skip
_VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18")

NETWORKS: dict[str, Callable[[], Built]] = {
    **{
        f"torchvision:{name}": partial(_torchvision, name, **more)
        for name, more in {
            "resnet18": {}, "resnet50": {}, "resnext50_32x4d": {}, "mobilenet_v2": {},
            "mobilenet_v3_small": {}, "mobilenet_v3_large": {}, "efficientnet_b0": {},
            "efficientnet_v2_s": {}, "regnet_y_400mf": {}, "regnet_x_400mf": {}, "densenet121": {},
            "shufflenet_v2_x1_0": {}, "googlenet": {}, "inception_v3": {"size": 96},
            "squeezenet1_1": {}, "vgg11": {}, "alexnet": {}, "convnext_tiny": {}, "mnasnet0_5": {},
            "vit_b_16": {"image_size": 64}, "swin_t": {}, "swin_v2_t": {},
            "deeplabv3_mobilenet_v3_large": {}, "lraspp_mobilenet_v3_large": {}, "fcn_resnet50": {},
        }.items()
    },
    "torchvision:maxvit": _maxvit,
    **{f"torchvision:{name}": partial(_video, name) for name in _VIDEO},
    "torchvision:ssdlite320_mobilenet_v3_large": partial(
        _torchvision, "ssdlite320_mobilenet_v3_large", weights_backbone=None
    ),
    **{
        f"timm:{name}": partial(_timm, name, **more)
        for name, more in {
            "resnet18": {}, "resnet26d": {}, "efficientnet_lite0": {}, "repvgg_a0": {},
            "convnext_atto": {}, "deit_tiny_patch16_224": {"img_size": 64},
            "vit_tiny_patch16_224": {"img_size": 64},
            "swin_tiny_patch4_window7_224": {"img_size": 64},
            "efficientformerv2_s0": {"img_size": 64}, "fastvit_t8": {}, "edgenext_xx_small": {},
            "mixer_s32_224": {"img_size": 64}, "mobilenetv3_small_050": {},
            "mobilenetv4_conv_small": {}, "ghostnet_100": {}, "mobilevit_xxs": {},
            "mobilevitv2_050": {}, "tf_efficientnet_b0": {}, "eca_nfnet_l0": {},
            "regnety_002": {}, "resnetv2_50": {}, "levit_128s": {"img_size": 64},
            "poolformer_s12": {},
            "lcnet_050": {}, "tinynet_e": {}, "repghostnet_050": {}, "hrnet_w18_small": {},
            "pit_ti_224": {"img_size": 64}, "xcit_nano_12_p16_224": {"img_size": 64},
            "convit_tiny": {"img_size": 64}, "cait_xxs24_224": {"img_size": 64},
            "gmlp_ti16_224": {"img_size": 64}, "resmlp_12_224": {"img_size": 64},
            "ese_vovnet19b_slim": {}, "mambaout_femto": {}, "dla46_c": {}, "cspresnet50": {},
            "tiny_vit_5m_224": {},
        }.items()
    },
    "timm:deit_tiny_patch16_224 at 224": partial(_timm, "deit_tiny_patch16_224", 224),
    "transformers:BERT": partial(
        _masked, "BertForSequenceClassification", "BertConfig", tokens(24, 500, mask=True),
        **_BERT, num_labels=10,
    ),
    "transformers:RoBERTa": partial(
        _transformers, "RobertaForSequenceClassification", "RobertaConfig", tokens(24, 500),
        **_BERT, num_labels=10,
    ),
    "transformers:DistilBERT": partial(
        _masked, "DistilBertForSequenceClassification", "DistilBertConfig",
        tokens(24, 500, mask=True), dim=64, n_layers=2, n_heads=4, hidden_dim=128,
        vocab_size=500, max_position_embeddings=64, num_labels=10,
    ),
    "transformers:GPT-2": partial(
        _transformers, "GPT2LMHeadModel", "GPT2Config", tokens(24, 500), n_embd=64, n_layer=2,
        n_head=4, vocab_size=500, n_positions=64, use_cache=False,
    ),
    "transformers:Llama": partial(
        _transformers, "LlamaForCausalLM", "LlamaConfig", tokens(24, 500), **_LLAMA
    ),
    "transformers:Qwen2": partial(
        _transformers, "Qwen2ForCausalLM", "Qwen2Config", tokens(24, 500), **_LLAMA
    ),
    "transformers:ViT": partial(
        _transformers, "ViTForImageClassification", "ViTConfig", images(3, 32, 32), **_VIT
    ),
    "transformers:DeiT": partial(
        _transformers, "DeiTForImageClassification", "DeiTConfig", images(3, 32, 32), **_VIT
    ),
    "transformers:ResNet": partial(
        _transformers, "ResNetForImageClassification", "ResNetConfig", images(3, 64, 64),
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], num_labels=10,
    ),
    "transformers:SegFormer": partial(
        _transformers, "SegformerForSemanticSegmentation", "SegformerConfig", images(3, 64, 64),
        hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=64, num_labels=5,
    ),
    "transformers:Whisper encoder": lambda: _whisper(),
    "transformers:T5 encoder": partial(
        _transformers, "T5EncoderModel", "T5Config", tokens(24, 500), d_model=64, d_kv=16,
        d_ff=128, num_layers=2, num_heads=4, vocab_size=500,
    ),
    "own:U-Net, transposed": partial(_own, partial(_UNet, "transposed"), images(3, 32, 32)),
    "own:U-Net, nearest": partial(_own, partial(_UNet, "nearest"), images(3, 32, 32)),
    "own:U-Net, bilinear": partial(_own, partial(_UNet, "bilinear"), images(3, 32, 32)),
    "own:several heads": partial(_own, _Heads, images(3, 32, 32)),
    "own:autoencoder": partial(_own, _autoencoder, images(3, 32, 32)),
    "own:super-resolution": partial(_own, _superresolution, images(3, 24, 24)),
    "own:denoiser": partial(_own, _Denoiser, images(3, 24, 24)),
    "own:Conv1d": partial(_own, _conv1d, images(1, 128)),
    "own:LSTM": partial(_own, partial(_Recurrent, nn.LSTM), tokens(16, 200)),
    "own:GRU": partial(_own, partial(_Recurrent, nn.GRU), tokens(16, 200)),
    "own:two inputs": _two_inputs,
    "own:flags and lengths": _flags,
    "own:one layer at two sizes": partial(_own, _Pyramid, images(3, 16, 16)),
    "own:bags": partial(_own, lambda: nn.Sequential(nn.EmbeddingBag(200, 32, mode="sum"),
                                                    nn.Linear(32, 10)), tokens(12, 200)),
    "own:branch on a shape": partial(_own, _Branches, images(3, 32, 32)),
    "own:TransformerEncoder": partial(_own, _Encoder, tokens(16, 200)),
}  # fmt: skip


def _whisper() -> Built:
    import transformers

    config = transformers.WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=128, vocab_size=500,
        num_mel_bins=16, max_source_positions=50, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.models.whisper.modeling_whisper.WhisperEncoder(config), images(16, 100)
