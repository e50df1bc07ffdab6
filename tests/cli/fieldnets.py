"""The CIFAR networks of the distillation literature a second time, without kdbench: their keys, and what they compute.

``KEYS`` lists (key, shape) in the order of the published state dicts; ``FORWARD`` takes a state dict and normalised
images to (stages, values before the last activation of the stages behind the stem, embedding, logits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Keys = Iterator[tuple[str, tuple[int, ...]]]
Result = tuple[list[Tensor], list[Tensor], Tensor, Tensor]


def kernel(name: str, out: int, inner: int, side: int, *, bias: bool = False) -> Keys:
    yield f"{name}.weight", (out, inner, side, side)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Keys:
    for word in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{word}", (width,)
    yield f"{name}.num_batches_tracked", ()


def linear(name: str, classes: int, width: int) -> Keys:
    yield f"{name}.weight", (classes, width)
    yield f"{name}.bias", (classes,)


def conv_norm(conv: str, bn: str, out: int, inner: int, side: int) -> Keys:
    yield from kernel(conv, out, inner, side)
    yield from norm(bn, out)


def basic_keys(name: str, inner: int, out: int, shortcut: str, *, projects: bool) -> Keys:
    yield from conv_norm(f"{name}.conv1", f"{name}.bn1", out, inner, 3)
    yield from conv_norm(f"{name}.conv2", f"{name}.bn2", out, out, 3)
    if projects:
        yield from conv_norm(f"{name}.{shortcut}.0", f"{name}.{shortcut}.1", out, inner, 1)


def resnet_keys(depth: int, widths: tuple[int, ...], classes: int) -> Keys:
    yield from conv_norm("conv1", "bn1", widths[0], 3, 3)
    inner = widths[0]
    for stage, width in enumerate(widths[1:], start=1):
        for block in range((depth - 2) // 6):
            projects = block == 0 and (stage > 1 or inner != width)
            yield from basic_keys(f"layer{stage}.{block}", inner, width, "downsample", projects=projects)
            inner = width
    yield from linear("fc", classes, inner)


def wrn_keys(depth: int, widen: int, classes: int) -> Keys:
    yield from kernel("conv1", 16, 3, 3)
    inner = 16
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
        for block in range((depth - 4) // 6):
            name = f"block{stage}.layer.{block}"
            yield from norm(f"{name}.bn1", inner)
            yield from conv_norm(f"{name}.conv1", f"{name}.bn2", width, inner, 3)
            yield from kernel(f"{name}.conv2", width, width, 3)
            if inner != width:
                yield from kernel(f"{name}.convShortcut", width, inner, 1)
            inner = width
    yield from norm("bn1", inner)
    yield from linear("fc", classes, inner)


def vgg_keys(depths: tuple[int, ...], classes: int) -> Keys:
    inner = 3
    for block, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512, 512), strict=True)):
        for index in range(depth):  # convolution, norm and ReLU take a number each
            yield from kernel(f"block{block}.{3 * index}", width, inner, 3, bias=True)
            yield from norm(f"block{block}.{3 * index + 1}", width)
            inner = width
    yield from linear("classifier", classes, inner)


def imagenet_keys(depths: tuple[int, ...], expansion: int, classes: int) -> Keys:
    yield from conv_norm("conv1", "bn1", 64, 3, 3)
    inner = 64
    for stage, depth in enumerate(depths, start=1):
        width = 32 * 2**stage
        for block in range(depth):
            name, out = f"layer{stage}.{block}", width * expansion
            projects = block == 0 and (stage > 1 or inner != out)
            if expansion == 1:
                yield from basic_keys(name, inner, out, "shortcut", projects=projects)
            else:
                yield from conv_norm(f"{name}.conv1", f"{name}.bn1", width, inner, 1)
                yield from conv_norm(f"{name}.conv2", f"{name}.bn2", width, width, 3)
                yield from conv_norm(f"{name}.conv3", f"{name}.bn3", out, width, 1)
                if projects:
                    yield from conv_norm(f"{name}.shortcut.0", f"{name}.shortcut.1", out, inner, 1)
            inner = out
    yield from linear("linear", classes, inner)


MOBILE = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))


def mobile_keys(classes: int) -> Keys:
    yield from conv_norm("conv1.0", "conv1.1", 16, 3, 3)
    inner = 16
    for group, (factor, out, depth, _) in enumerate(MOBILE):
        for block in range(depth):
            name, middle = f"blocks.{group}.{block}.conv", inner * factor
            yield from conv_norm(f"{name}.0", f"{name}.1", middle, inner, 1)
            yield from conv_norm(f"{name}.3", f"{name}.4", middle, 1, 3)
            yield from conv_norm(f"{name}.6", f"{name}.7", out, middle, 1)
            inner = out
    yield from conv_norm("conv2.0", "conv2.1", 1280, 160, 1)
    yield from linear("classifier.0", classes, 1280)


def shuffle1_keys(classes: int) -> Keys:
    yield from conv_norm("conv1", "bn1", 24, 3, 1)
    inner = 24
    for stage, (total, depth) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for block in range(depth):
            name, out = f"layer{stage}.{block}", total if block else total - inner
            middle = out // 4
            yield from conv_norm(f"{name}.conv1", f"{name}.bn1", middle, inner if inner == 24 else inner // 3, 1)
            yield from conv_norm(f"{name}.conv2", f"{name}.bn2", middle, 1, 3)
            yield from conv_norm(f"{name}.conv3", f"{name}.bn3", out, middle // 3, 1)
            inner = total
    yield from linear("linear", classes, inner)


def shuffle2_keys(classes: int) -> Keys:
    yield from conv_norm("conv1", "bn1", 24, 3, 1)
    inner = 24
    for stage, (total, depth) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
        half = total // 2
        shapes = ((inner, 1, 3), (half, inner, 1), (half, inner, 1), (half, 1, 3), (half, half, 1))
        for number, shape in enumerate(shapes, start=1):
            yield from conv_norm(f"layer{stage}.0.conv{number}", f"layer{stage}.0.bn{number}", *shape)
        for block in range(1, depth + 1):
            for number, (group, side) in enumerate(((half, 1), (1, 3), (half, 1)), start=1):
                name = f"layer{stage}.{block}"
                yield from conv_norm(f"{name}.conv{number}", f"{name}.bn{number}", half, group, side)
        inner = total
    yield from conv_norm("conv2", "bn2", 1024, 464, 1)
    yield from linear("linear", classes, 1024)


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2, groups=groups)


def bn(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


def cbr(state: State, conv_name: str, bn_name: str, x: Tensor, stride: int = 1) -> Tensor:
    return bn(state, bn_name, conv(state, conv_name, x, stride)).relu()


def blocks_of(state: State, prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def classify(state: State, head: str, x: Tensor) -> tuple[Tensor, Tensor]:
    pooled = x.flatten(2).mean(2)
    return pooled, pooled @ state[f"{head}.weight"].T + state[f"{head}.bias"]


def resnet(state: State, x: Tensor, *, stages: int, shortcut: str, head: str) -> Result:
    x = cbr(state, "conv1", "bn1", x)
    after, before = [x], []
    for stage in range(1, stages + 1):
        for block in range(blocks_of(state, f"layer{stage}.")):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if f"{name}.conv3.weight" in state:
                out = cbr(state, f"{name}.conv1", f"{name}.bn1", x)
                out = cbr(state, f"{name}.conv2", f"{name}.bn2", out, stride)
                out = bn(state, f"{name}.bn3", conv(state, f"{name}.conv3", out))
            else:
                out = cbr(state, f"{name}.conv1", f"{name}.bn1", x, stride)
                out = bn(state, f"{name}.bn2", conv(state, f"{name}.conv2", out))
            if f"{name}.{shortcut}.0.weight" in state:
                x = bn(state, f"{name}.{shortcut}.1", conv(state, f"{name}.{shortcut}.0", x, stride))
            pre = out + x
            x = pre.relu()
        after.append(x)
        before.append(pre)
    return after, before, *classify(state, head, x)


def wrn(state: State, x: Tensor) -> Result:
    x = conv(state, "conv1", x)
    after = [x]
    for stage in (1, 2, 3):
        for block in range(blocks_of(state, f"block{stage}.layer.")):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            active = bn(state, f"{name}.bn1", x).relu()
            out = conv(state, f"{name}.conv1", active, stride)
            out = conv(state, f"{name}.conv2", bn(state, f"{name}.bn2", out).relu())
            changes = f"{name}.convShortcut.weight" in state
            x = out + (conv(state, f"{name}.convShortcut", active, stride) if changes else x)
        after.append(x)
    norms = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
    before = [bn(state, name, stage) for name, stage in zip(norms, after[1:], strict=True)]
    return after, before, *classify(state, "fc", before[-1].relu())


def vgg(state: State, x: Tensor) -> Result:
    after, before = [], []
    for block in range(5):
        if block in (1, 2, 3):
            x = F.max_pool2d(x, 2)
        for index in range(blocks_of(state, f"block{block}.") // 2):
            pre = bn(state, f"block{block}.{3 * index + 1}", conv(state, f"block{block}.{3 * index}", x))
            x = pre.relu()
        after.append(x)
        before.append(pre)
    return after, before[1:], *classify(state, "classifier", x)


def mobile(state: State, x: Tensor) -> Result:
    x = cbr(state, "conv1.0", "conv1.1", x, 2)
    after = [x]
    for group, (_, _, depth, first) in enumerate(MOBILE):
        for block in range(depth):
            name, stride = f"blocks.{group}.{block}.conv", first if block == 0 else 1
            out = cbr(state, f"{name}.0", f"{name}.1", x)
            out = cbr(state, f"{name}.3", f"{name}.4", out, stride)
            out = bn(state, f"{name}.7", conv(state, f"{name}.6", out))
            x = x + out if stride == 1 and x.shape == out.shape else out
        if group in (1, 2, 4, 6):
            after.append(x)
    return after, after[1:], *classify(state, "classifier.0", cbr(state, "conv2.0", "conv2.1", x))


def interleave(x: Tensor, groups: int) -> Tensor:
    """Return channel ``g * (C / groups) + c`` at place ``c * groups + g``."""
    each = x.shape[1] // groups
    return x[:, [group * each + channel for channel in range(each) for group in range(groups)]]


def shuffle1(state: State, x: Tensor) -> Result:
    x = cbr(state, "conv1", "bn1", x)
    after, before = [x], []
    for stage, depth in ((1, 4), (2, 8), (3, 4)):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            out = cbr(state, f"{name}.conv1", f"{name}.bn1", x)
            out = out if (stage, block) == (1, 0) else interleave(out, 3)
            out = cbr(state, f"{name}.conv2", f"{name}.bn2", out, 1 if block else 2)
            out = bn(state, f"{name}.bn3", conv(state, f"{name}.conv3", out))
            pre = out + x if block else torch.cat((out, F.avg_pool2d(x, 3, 2, 1)), 1)
            x = pre.relu()
        after.append(x)
        before.append(pre)
    return after, before, *classify(state, "linear", x)


def shuffle2(state: State, x: Tensor) -> Result:
    x = cbr(state, "conv1", "bn1", x)
    after, before = [x], []
    for stage, depth in ((1, 3), (2, 7), (3, 3)):
        name = f"layer{stage}.0"
        left = bn(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, 2))
        left = cbr(state, f"{name}.conv2", f"{name}.bn2", left)
        right = cbr(state, f"{name}.conv3", f"{name}.bn3", x)
        right = bn(state, f"{name}.bn4", conv(state, f"{name}.conv4", right, 2))
        x = interleave(torch.cat((left, cbr(state, f"{name}.conv5", f"{name}.bn5", right)), 1), 2)
        for block in range(1, depth + 1):
            name, half = f"layer{stage}.{block}", x.shape[1] // 2
            kept, out = x[:, :half], cbr(state, f"{name}.conv1", f"{name}.bn1", x[:, half:])
            out = bn(state, f"{name}.bn2", conv(state, f"{name}.conv2", out))
            out = bn(state, f"{name}.bn3", conv(state, f"{name}.conv3", out))
            pre = torch.cat((kept, out), 1)
            x = interleave(torch.cat((kept, out.relu()), 1), 2)
        after.append(x)
        before.append(pre)
    return after, before, *classify(state, "linear", cbr(state, "conv2", "bn2", x))


def _cifar(state: State, x: Tensor) -> Result:
    return resnet(state, x, stages=3, shortcut="downsample", head="fc")


def _imagenet(state: State, x: Tensor) -> Result:
    return resnet(state, x, stages=4, shortcut="shortcut", head="linear")


VGG = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
KEYS: dict[str, Callable[[int], Keys]] = {
    **{f"resnet{d}": lambda c, d=d: resnet_keys(d, (16, 16, 32, 64), c) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": lambda c, d=d: resnet_keys(d, (32, 64, 128, 256), c) for d in (8, 32)},
    **{f"wrn_{d}_{k}": lambda c, d=d, k=k: wrn_keys(d, k, c) for d in (16, 40) for k in (1, 2)},
    **{name: lambda c, depths=depths: vgg_keys(depths, c) for name, depths in VGG.items()},
    "MobileNetV2": mobile_keys,
    "ShuffleV1": shuffle1_keys,
    "ShuffleV2": shuffle2_keys,
    "ResNet18": lambda c: imagenet_keys((2, 2, 2, 2), 1, c),
    "ResNet50": lambda c: imagenet_keys((3, 4, 6, 3), 4, c),
}
FORWARD: dict[str, Callable[[State, Tensor], Result]] = {
    "resnet": _cifar,
    "wrn": wrn,
    "vgg": vgg,
    "MobileNetV2": mobile,
    "ShuffleV1": shuffle1,
    "ShuffleV2": shuffle2,
    "ResNet": _imagenet,
}


def forward_of(name: str) -> Callable[[State, Tensor], Result]:
    return next(forward for family, forward in FORWARD.items() if name.startswith(family))


def filled(name: str, classes: int, seed: int = 0) -> State:
    """Return a state dict of random weights under which no value of the network vanishes or grows without bound."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for key, shape in KEYS[name](classes):
        noise = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(100)
        elif key.endswith("running_var"):
            state[key] = noise.abs() + 0.5
        elif len(shape) > 1:
            state[key] = noise * math.sqrt(2 / math.prod(shape[1:]))
        else:
            state[key] = 0.1 * noise + (1.0 if key.endswith(".weight") else 0.0)
    return state
