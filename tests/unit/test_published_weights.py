"""R13: files of published weights that lie on this machine are checked before they are read, and run no code."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from kdbench.backbones import timm_models, torchvision_models
from kdbench.backbones.published import check_hub_checkpoint, hash_in, tensors_only
from kdbench.errors import ConfigError
from kdbench.types import StageShape

IMAGE = StageShape((3, 96, 96))
TIMM = "resnet10t"
COMMIT = "0" * 40
# A pickle that makes torch's reader of tensors stumble, by a state it does not expect, before it comes to the code.
STUMBLING = (
    b"\x80\x02ccollections\nOrderedDict\n)R(N}tb0"
    b"cos\nsystem\nX\x0b\x00\x00\x00touch owned\x85R0ccollections\nOrderedDict\n)R."
)


class Touch:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


def saved(tree: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def with_pickle(pickle: bytes) -> bytes:
    """Return a file of torch's with another pickle in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({}))) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, pickle if item.filename.endswith("data.pkl") else old.read(item))
    return out.getvalue()


def named(data: bytes) -> str:
    return f"https://example.org/models/net-{hashlib.sha256(data).hexdigest()[:8]}.pth"


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty cache of torch.hub; nothing is downloaded, and code that is run after all shows here."""
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def published(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, bytes], Path]:
    """Let resnet18 be published with some content, and lie in the cache with another one."""
    from torchvision import models

    def publish(content: bytes, found: bytes) -> Path:
        url = named(content)
        monkeypatch.setattr(models.ResNet18_Weights.DEFAULT.value, "url", url)
        path = checkpoints / url.rpartition("/")[2]
        path.write_bytes(found)
        return path

    return publish


@pytest.fixture
def published_by_timm(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], Path]:
    """Let a model of timm be published at a URL only, and lie in the cache with some content."""
    import timm
    from timm.models import _registry

    def publish(url: str, found: bytes) -> Path:
        config: Any = timm.get_pretrained_cfg(TIMM)
        changed = dataclasses.replace(config, url=url, hf_hub_id=None)
        for name in (TIMM, f"{TIMM}.{config.tag}"):
            monkeypatch.setitem(_registry._model_pretrained_cfgs, name, changed)
        path = checkpoints / url.rpartition("/")[2]
        path.write_bytes(found)
        return path

    return publish


def test_hashes_are_what_torch_hub_takes_for_some_and_no_part_of_a_name() -> None:
    assert hash_in("https://download.pytorch.org/models/resnet18-f37072fd.pth") == "f37072fd"
    assert hash_in("https://x.org/a-b/shufflenetv2_x0.5-f707e7126e.pth?download=1") == "f707e7126e"
    for name in ("IN1K-vit.h.14-300e.pth.tar", "ghostnetv3-1.0.pth.tar", "model.safetensors", ""):
        assert hash_in(f"https://x.org/{name}") == ""


def test_another_file_in_the_place_of_torchvisions_weights(published: Callable[[bytes, bytes], Path]) -> None:
    path = published(b"the true ones", saved({}))
    with pytest.raises(ConfigError) as caught:
        torchvision_models.make_model("resnet18", 7, IMAGE, pretrained=True)
    message = str(caught.value)
    assert message.startswith(f"{path}: not the published weights, or damaged: its sha256 is ")
    assert message.endswith("remove it and run again with a network, or put the published file there")


def test_weights_that_cannot_be_read(published: Callable[[bytes, bytes], Path]) -> None:
    path = published(b"x", b"x")
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"net-.*: published weights that cannot be read \(Is a directory\)"):
        torchvision_models.make_model("resnet18", 7, IMAGE, pretrained=True)


def test_no_code_in_torchvisions_weights_is_run(published: Callable[[bytes, bytes], Path]) -> None:
    """Eight digits of a hash can be had by trying."""
    data = saved({"x": Touch()})
    published(data, data)
    with pytest.raises(ConfigError, match=r"resnet18': its published weights .* could not be had from .*Unpickling"):
        torchvision_models.make_model("resnet18", 7, IMAGE, pretrained=True)
    assert not Path("owned").exists()


def test_weights_of_timm_at_a_url_are_checked_and_used(published_by_timm: Callable[[str, bytes], Path]) -> None:
    import timm

    torch.manual_seed(5)
    theirs = timm.create_model(TIMM).state_dict()
    path = published_by_timm(named(data := saved(theirs)), data)
    ours = timm_models.make_model(TIMM, 7, IMAGE, pretrained=True).state_dict()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == ["fc.weight", "fc.bias"]
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"net-.*not the published weights, or damaged: its sha256 is "):
        timm_models.make_model(TIMM, 7, IMAGE, pretrained=True)


@pytest.mark.parametrize("data", [saved({"x": Touch()}), with_pickle(STUMBLING)], ids=["code", "code after a fault"])
def test_no_code_in_weights_of_timm_is_run(data: bytes, published_by_timm: Callable[[str, bytes], Path]) -> None:
    """Whatever goes wrong with them as a TypeError, timm tries again with code allowed."""
    published_by_timm(named(data), data)
    with pytest.raises(ConfigError, match="its published weights could not be had"):
        timm_models.make_model(TIMM, 7, IMAGE, pretrained=True)
    assert not Path("owned").exists()


@pytest.mark.parametrize(("name", "prefix"), [("net-0123abcd.pth", "0123abcd"), ("vit.h.14-300e.pth", None)])
def test_weights_of_timm_are_checked_on_the_way(
    name: str, prefix: str | None, published_by_timm: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    published_by_timm(f"https://example.org/{name}", b"").unlink()
    asked: list[object] = []

    def offline(_url: str, _place: str, hash_prefix: str | None = None, **_more: object) -> None:
        asked.append(hash_prefix)
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ConfigError, match=r"OSError: no route to host. Run again with a network"):
        timm_models.make_model(TIMM, 7, IMAGE, pretrained=True)
    assert asked == [prefix]


def hugging_face(root: Path, data: bytes, *, link: bool = True) -> Path:
    """Write the cache of Hugging Face's client with the weights of the model, and return their file."""
    import timm

    config: Any = timm.get_pretrained_cfg(TIMM)
    repository = root / f"models--{config.hf_hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
    path = snapshot / "model.safetensors"
    if link:
        path.symlink_to(os.path.relpath(blob, snapshot))
    path = blob if link else path
    path.write_bytes(data)
    return path


def test_weights_from_hugging_face_are_checked_by_the_name_they_are_kept_under(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(5)
    theirs = timm.create_model(TIMM).state_dict()
    blob = hugging_face(tmp_path / "hf", data := save(theirs))
    ours = timm_models.make_model(TIMM, 7, IMAGE, pretrained=True).state_dict()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == ["fc.weight", "fc.bias"]
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # still numbers
    with pytest.raises(ConfigError) as caught:
        timm_models.make_model(TIMM, 7, IMAGE, pretrained=True)
    assert str(caught.value).startswith(f"{blob}: not the published weights, or damaged: its sha256 is ")


def test_without_links_there_is_no_hash_to_check(tmp_path: Path) -> None:
    import timm

    hugging_face(tmp_path / "hf", save(timm.create_model(TIMM).state_dict()), link=False)
    assert timm_models.make_model(TIMM, 7, IMAGE, pretrained=True).state_dict()


def test_what_the_user_allows_torch_holds_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    before = dict(os.environ)
    with tensors_only():
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert dict(os.environ) == before


def test_a_folder_of_weights_that_may_not_be_entered_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    check_hub_checkpoint("https://example.org/net-01234567.pth")  # nothing is there, and that is no fault
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\)"):
        check_hub_checkpoint("https://example.org/net-01234567.pth")
