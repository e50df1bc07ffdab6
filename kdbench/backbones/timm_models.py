"""timm's models: ``timm:NAME``, tapped by timm's own ``forward_intermediates``."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from kdbench.backbones.base import Backbone, Library, Network
from kdbench.backbones.chains import ACTIVATIONS, Seen, first_conv_for_small, is_small, replace_module, watched
from kdbench.backbones.division import Division, Names
from kdbench.backbones.published import check_hub_checkpoint, check_hugging_face, first_line, hash_in, tensors_only
from kdbench.backbones.timm_division import depths, division_of
from kdbench.backbones.weightless import weightless
from kdbench.errors import ConfigError, unknown
from kdbench.hooks import hookimpl
from kdbench.types import Features, Source, StageShape, Taps

LIBRARY = "timm"
PRETRAINED = ":pretrained"
# What timm may read of a repository, besides a file that a model names.
_HUB_FILES = (
    "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
_NUMBERED = re.compile(r"\.\d+$")
SOURCE = Source(
    "PyTorch Image Models", 2019, "https://github.com/huggingface/pytorch-image-models",
    deviations="Up to 64 pixels the stem keeps the resolution: first convolutions have stride 1, there is no "
    "max-pooling behind them, and patches are a quarter as wide.",
)  # fmt: skip


class TimmNetwork(Network):
    """Any timm model that has ``forward_intermediates`` and one linear classifier.

    Stage 0 is the stem: what timm lists first, or, where that is a block already, what the first block is given. Maps
    are (N, C, H, W); columns of equal transformer blocks give tokens (N, T, D) of the patches at four depths. A stage
    that ends in no activation stands for its own pre-activation. Only the whole network can be run: timm's models have
    no common way to go on from a stage.

    Args:
        model: The model.
        in_channels: Channels of the images.
    """

    def __init__(self, model: nn.Module, in_channels: int) -> None:
        super().__init__(in_channels)
        self.model: Any = model
        info: Any = self.model.feature_info
        described: list[Any] = list(info)
        listed = [str(entry["module"]) for entry in described]
        self.is_column = len({int(entry["reduction"]) for entry in described}) == 1 and len(listed) > 1
        named = dict(self.model.named_modules())  # some list what is no module of theirs
        for part in (part for name in listed if name in named for part in named[name].modules()):
            if isinstance(part, ACTIVATIONS):
                setattr(part, "inplace", False)  # noqa: B010  (what an activation was given must outlive it)
        self.first = listed[0]
        is_block = _NUMBERED.search(self.first) and next(named[self.first].children(), None)
        self.has_stem = not self.is_column and not is_block
        self.taken = depths(len(listed)) if self.is_column else tuple(range(len(listed)))
        self.stage_count = len(self.taken) + (0 if self.has_stem else 1)
        self.embedding_dim = int(self.head.in_features)

    @property
    def checkpointing(self) -> bool:
        """Never: timm's own checkpointing would count every batch twice in BatchNorm's statistics."""
        return False

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        if wanted:
            raise ConfigError(
                "step.checkpointing: models of timm cannot recompute their activations without changing results; "
                "set it to false, or take a backbone of another family"
            )

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The linear classifier."""
        found = self.model.get_classifier()
        if not isinstance(found, nn.Linear):
            raise ConfigError(f"{type(self.model).__name__} has no single linear classifier; choose another backbone")
        return found

    def freeze_blocks(self) -> tuple[Names, ...]:
        return self.freeze_division().blocks

    def freeze_division(self) -> Division:
        return division_of(self.model).inside("model")

    def embed(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.model.forward_head(x, pre_logits=True)
        return embedding

    def forward_from(self, stage: int, x: Tensor, taps: Taps = Taps()) -> Features:
        taps = taps.resolve(self.stage_count)
        if stage:
            raise NotImplementedError(f"{type(self.model).__name__} cannot go on from a stage; other backbones can")
        assert taps.stages != "all"
        shift = 0 if self.has_stem else 1
        wanted = [self.taken[index - shift] for index in taps.stages if index >= shift]
        stem: list[Tensor] = []
        handle = self._watch(stem) if shift and 0 in taps.stages else None
        with watched(self.model) if taps.pre_activation else contextlib.nullcontext(Seen()) as seen:
            try:
                final, stages = self._run(x, wanted)
            finally:
                if handle is not None:
                    handle.remove()
        found = (*map(self._stem_as_stage, stem[:1]), *stages)
        embedding = self.embed(final)
        # The stem's value counts as its own pre-activation.
        before = [value if index == 0 else seen.before(value) for index, value in zip(taps.stages, found, strict=True)]
        pre = tuple(before) if taps.pre_activation else ()
        return Features(self.head(embedding), embedding if taps.embedding else None, found, pre, taps.stages)

    def _run(self, x: Tensor, wanted: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        if not wanted:
            return self.model.forward_features(x), []
        # A column's maps would be its tokens put back into place: they stay tokens.
        form = {"output_fmt": "NLC"} if self.is_column else {}
        final, stages = self.model.forward_intermediates(x, indices=list(wanted), norm=False, **form)
        return final, stages

    def _watch(self, stem: list[Tensor]) -> Any:
        def note(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            stem.append(given[0])

        return self.model.get_submodule(self.first).register_forward_pre_hook(note)

    def _stem_as_stage(self, value: Tensor) -> Tensor:
        if self.is_column:
            # Its tokens still have class and register tokens in front, which timm leaves out of the other stages'.
            return value[:, int(getattr(self.model, "num_prefix_tokens", 0)) :]
        keeps_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return value.permute(0, 3, 1, 2) if keeps_last else value


def make_model(name: str, num_classes: int, image: StageShape, *, pretrained: bool, **more: Any) -> nn.Module:
    """Return a timm model for these images.

    Args:
        name: timm's name, with or without a tag of weights.
        num_classes: Outputs of the classifier.
        image: Shape of one image.
        pretrained: Whether all but the classifier starts with the published weights.
        more: Further arguments of the model.

    Raises:
        ConfigError: If the weights cannot be had, or another file lies in their place.
    """
    more = {"num_classes": num_classes, "in_chans": image.channels, **_sized(name, image), **more}
    model = _published(name, more) if pretrained else _create(name, **more)
    if is_small(image):
        keep_resolution(model)
    return model


def _published(name: str, more: dict[str, Any]) -> nn.Module:
    """Return a timm model with its published weights; no code in their file is run."""
    _check_files(name)
    try:
        with tensors_only():
            return _create(name, pretrained=True, **more)
    except Exception as error:
        raise ConfigError(
            f"backbone '{LIBRARY}:{name}': its published weights could not be had: {first_line(error)}. Run again with "
            "a network, start from random weights (--scratch, or a backbone without pretraining), or bring a trained "
            "teacher: kdbench teacher import"
        ) from error


def _check_files(name: str) -> None:
    """Check the files of published weights that are here already, and let those that are not be checked on the way."""
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    url = str(config.url or "")
    timm.models.set_pretrained_check_hash(bool(hash_in(url)))  # else it takes "-300e." of a name for a hash
    if config.hf_hub_id:  # which timm prefers to the URL
        check_hugging_face(config.hf_hub_id, [name for name in (config.hf_hub_filename, *_HUB_FILES) if name])
    elif url:
        check_hub_checkpoint(url)


def _create(name: str, **more: Any) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, **more)
    except TypeError as error:
        if "patch_size" not in str(error) or "patch_size" not in more:
            raise
        more.pop("patch_size")  # of some families it cannot be chosen: they see fewer patches
        model = timm.create_model(name, **more)
    return model


def _sized(name: str, image: StageShape) -> dict[str, Any]:
    """Return the arguments that fit patches and position embeddings to the image, for models that have them."""
    import timm

    patch = patch_of(name)
    if patch is None and not getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        return {}
    sized: dict[str, Any] = {"img_size": (image.height, image.width)}
    if patch is not None and is_small(image):
        sized["patch_size"] = max(1, (1 << (patch.bit_length() - 1)) // 4)
    return sized


@cache
def patch_of(name: str) -> int | None:
    """Return the width in pixels of a model's patches; None if it has a convolutional stem."""
    import timm

    first = str(getattr(timm.get_pretrained_cfg(name), "first_conv", "") or "")
    if not first.endswith("proj"):
        return None
    conv = weightless(lambda: timm.create_model(name)).get_submodule(first)
    return int(conv.stride[0]) if isinstance(conv, nn.Conv2d) else None


def keep_resolution(model: Any) -> None:
    """Give a convolutional stem stride 1 and take its max-pooling out; transformers' patches are made smaller before.

    ConvNeXt's stem loses its norm as well, which its first stage brings along.
    """
    named = model.pretrained_cfg.get("first_conv") or ()
    for first in (named,) if isinstance(named, str) else tuple(named):
        conv = model.get_submodule(first)
        if isinstance(conv, nn.Conv2d) and "patch_embed" not in first and not first.endswith("proj"):
            if conv.kernel_size[0] in (4, 7) and type(conv) is nn.Conv2d:
                replace_module(model, first, first_conv_for_small(conv))
            else:
                conv.stride = (1, 1)
    for pooling in ("maxpool", "stem.pool", "features.pool0"):
        parent, _, child = pooling.rpartition(".")
        if hasattr(model, parent or "maxpool") and hasattr(model.get_submodule(parent), child):
            replace_module(model, pooling, nn.Identity())
    if type(model).__name__ == "ConvNeXt":
        replace_module(model, "stem.1", nn.Identity())


def build(name: str, num_classes: int, image: StageShape, *, pretrained: bool = False) -> TimmNetwork:
    """Return a network made of a timm model; see :func:`make_model`."""
    return TimmNetwork(make_model(name, num_classes, image, pretrained=pretrained), image.channels)


def open_model(argument: str) -> Backbone:
    """Return the backbone ``timm:NAME`` or ``timm:NAME:pretrained``.

    Raises:
        ConfigError: If timm has no such model, or one without intermediate features.
    """
    import timm

    name = argument.removesuffix(PRETRAINED)
    if not timm.is_model(name):
        near = [f"{LIBRARY}:{model}" for model in timm.list_models()]
        raise ConfigError(unknown("backbone", f"{LIBRARY}:{name}", near).partition(" All:")[0])
    config: Any = timm.get_pretrained_cfg(name)
    patched = patch_of(name) is not None
    return Backbone(
        f"{LIBRARY}:{argument}", LIBRARY, partial(build, name), SOURCE,
        min_size=32, multiple_of=4 if patched else 1, native_size=int(config.input_size[1]), square=patched,
        build_pretrained=partial(build, name, pretrained=True), pretrained=argument.endswith(PRETRAINED),
    )  # fmt: skip


@hookimpl
def kdbench_backbones() -> list[Library]:
    """Return timm as a library."""
    return [Library(LIBRARY, open_model, "timm's models, e.g. timm:vit_tiny_patch16_224")]
