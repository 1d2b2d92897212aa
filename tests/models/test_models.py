"""The models, and the ways in which weights do not fit."""

import urllib.error
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from skimage.data import chelsea
from timm.models._efficientnet_blocks import InvertedResidual
from torchvision.transforms.v2 import functional

from dfdc_ray.errors import UserError
from dfdc_ray.experiments.models import macs
from dfdc_ray.models import NAMES, check_side, create_model, load_weights, only_side, takes_clips, takes_sound
from dfdc_ray.models.chroma import chroma_maps
from dfdc_ray.models.efficientnet_lite0 import EfficientNetLite0
from dfdc_ray.video.sound import WINDOW


@pytest.mark.parametrize("name", NAMES)
def test_logits(name: str) -> None:
    model = create_model(name).eval()
    side = only_side(name) or 64
    inputs = [torch.rand(2, 8, 3, side, side) if takes_clips(name) else torch.rand(2, 3, side, side)]
    inputs += [torch.rand(2, 8, WINDOW)] if takes_sound(name) else []
    logits = model(*inputs)
    assert logits.shape == (2,)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_what_has_learnt_nothing_says_nothing(name: str) -> None:
    """Logits of +-7, as of timm's and torchvision's own first weights of EfficientNets, cost the first epoch; ln 2 = 0.693 is
    the loss of knowing nothing.
    """
    torch.manual_seed(0)
    model = create_model(name)  # as it is trained
    side = only_side(name) or 64
    inputs = [torch.randn(8, 8, 3, side, side) if takes_clips(name) else torch.randn(8, 3, side, side)]
    inputs += [torch.randn(8, 8, WINDOW)] if takes_sound(name) else []
    with torch.no_grad():
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(*inputs), torch.arange(8.0) % 2)
    assert loss < 1


@pytest.mark.parametrize(
    ("name", "kind", "alike"),
    [  # the kind of a block, and how many of them have a shortcut that neither shrinks nor widens
        ("resnet34", torchvision.models.resnet.BasicBlock, 13),
        ("r3d_18", torchvision.models.video.resnet.BasicBlock, 5),
        ("r2plus1d_18", torchvision.models.video.resnet.BasicBlock, 5),
        ("resnet34_3d", torchvision.models.video.resnet.BasicBlock, 13),
        ("framediff_only", torchvision.models.resnet.BasicBlock, 13),
        ("seresnext50", timm.models.resnet.Bottleneck, 12),
        ("efficientnet_lite0", InvertedResidual, 9),
        ("efficientnet_b4", torchvision.models.efficientnet.MBConv, 25),
        ("efficientnet_b4_attention", torchvision.models.efficientnet.MBConv, 25),
    ],
)
def test_from_scratch_blocks_begin_as_identities(name: str, kind: type, alike: int) -> None:
    model = create_model(name)
    same: list[bool] = []
    for block in model.modules():
        if isinstance(block, kind):
            block.register_forward_hook(lambda _, given, out: same.append(torch.equal(out, given[0])))
    model(torch.rand(2, 4, 3, 64, 64) if takes_clips(name) else torch.rand(2, 3, 64, 64))
    assert sum(same) == alike


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        *((name, True) for name in ("r3d_18", "r2plus1d_18", "resnet34_3d", "framediff_early", "chroma")),
        ("framediff_frames", False),
    ],
)
def test_networks_of_time_see_in_which_order_frames_come(name: str, matters: bool) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    for weight in model.parameters():
        if weight.ndim == 1 and not weight.any():
            torch.nn.init.ones_(weight)  # blocks that begin as identities see nothing yet
    clips = torch.rand(4, 6, 3, 64, 64)
    order = torch.tensor([0, 3, 1, 5, 2, 4])  # of framediff_frames the first is left out
    with torch.inference_mode():
        as_they_are, shuffled = model(clips), model(clips[:, order])
    assert torch.allclose(as_they_are, shuffled, rtol=1e-2, atol=1e-4) != matters


def test_a_fresh_head_on_imagenets_weights_says_nothing_yet() -> None:
    torch.manual_seed(0)
    model = create_model("efficientnet_lite0")
    load_weights(model, "imagenet")
    picture = torch.from_numpy(chelsea()[:224, :224].copy()).permute(2, 0, 1).float() / 127.5 - 1
    with torch.inference_mode():
        logits = model(torch.stack([picture, picture.flip(2), -picture, torch.zeros_like(picture)]))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert 0.6 < loss < 0.8


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet34", 21_284_672 + 513),  # torchvision's without its 1000 outputs, and one
        ("meso4", 27_977),
        ("mesoinception4", 28_615),
        ("efficientnet_b4", 17_548_616 + 1793),
        ("efficientnet_b4_attention", 17_548_616 + 1793 + 57),
        ("seresnext50", 27_559_896 - 2_049_000 + 2049),
        ("r3d_18", 33_371_472 - 205_200 + 513),  # of Kinetics' 400 outputs
        ("r2plus1d_18", 31_505_325 - 205_200 + 513),
        ("efficientnet_lite0", 4_652_008 - 1_281_000 + 1281),
    ],
)
def test_parameters(name: str, published: int) -> None:
    assert sum(p.numel() for p in create_model(name).parameters()) == published


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_models_counts_right(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (row,) = ([cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    size, parameters, gmacs = row[3:6]
    assert parameters == f"{sum(p.numel() for p in create_model(name).parameters()):,}"
    numbers = [int(word) for word in size.split() if word.isdigit()]
    frames = numbers[0] if takes_clips(name) else 1
    assert f"{macs(name, side=numbers[-1], frames=frames) / 1e9:.3g}" == gmacs


def test_mesonet_takes_one_size() -> None:
    with pytest.raises(UserError, match="--image-size 256"):
        check_side("meso4", 224)
    check_side("meso4", 256)
    check_side("resnet34", 97)
    with pytest.raises(UserError, match="of Meso4 there are none"):
        load_weights(create_model("meso4"), "imagenet")


@pytest.mark.parametrize(("name", "channels"), [("meso4", (8, 8, 16, 16)), ("mesoinception4", (11, 12, 16, 16))])
def test_maps_of_mesonet(name: str, channels: tuple[int, ...]) -> None:
    """Figures 4 and 6 of the paper: four poolings, to 128, 64, 32 and 8 a side."""
    maps: list[tuple[int, ...]] = []
    model = create_model(name).eval()
    for layer in model.get_submodule("features").children():
        if isinstance(layer, torch.nn.MaxPool2d):
            layer.register_forward_hook(lambda _, __, out: maps.append(tuple(out.shape[1:])))
    model(torch.rand(1, 3, 256, 256))
    assert maps == [(c, s, s) for c, s in zip(channels, (128, 64, 32, 8), strict=True)]


def test_attention_that_is_one_everywhere_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, attentive = create_model("efficientnet_b4").eval(), create_model("efficientnet_b4_attention").eval()
    save_file(plain.state_dict(), tmp_path / "b4.safetensors")
    load_weights(attentive, str(tmp_path / "b4.safetensors"))
    x = torch.rand(1, 3, 224, 224)
    attentive.attention.bias.data.fill_(100.0)
    looked: list[tuple[int, ...]] = []
    attentive.attention.register_forward_hook(lambda _, __, out: looked.append(tuple(out.shape)))
    with torch.inference_mode():
        assert torch.equal(attentive(x), plain(x))
        attentive.attention.bias.data.zero_()
        assert not torch.equal(attentive(x), plain(x))
    assert looked == [(1, 1, 28, 28)] * 2


def test_inflated_weights_do_to_equal_frames_what_they_did_to_one(tmp_path: Path) -> None:
    """In the midst of a clip so long that its padded ends are not felt there."""
    torch.manual_seed(0)
    flat, deep = create_model("resnet34").eval(), create_model("resnet34_3d").eval()
    with torch.no_grad():
        for name, weight in flat.named_parameters():
            if name.endswith("bn2.weight"):  # residual blocks begin as identities
                weight.fill_(0.2)
    save_file(flat.state_dict(), tmp_path / "flat.safetensors")
    load_weights(deep, str(tmp_path / "flat.safetensors"))
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected = flat.maxpool(flat.relu(flat.bn1(flat.conv1(x))))
        expected = flat.layer2(flat.layer1(expected))
        found = deep.layer2(deep.layer1(deep.stem(x[:, :, None].expand(-1, -1, 41, -1, -1))))
    assert found.shape[2] == 21
    assert torch.allclose(found[:, :, 10], expected, atol=1e-4)
    assert deep(x[:, None].expand(-1, 8, -1, -1, -1)).shape == (1,)


@pytest.mark.parametrize("name", ["framediff_frames", "framediff_only", "framediff_early", "framediff_late"])
def test_differences_of_frames(tmp_path: Path, imagenet_like: dict[str, torch.Tensor], name: str) -> None:
    """What stands still is nothing to the differences, whatever it shows; weights of ResNet34 serve every stream."""
    save_file(imagenet_like, tmp_path / "resnet34.safetensors")
    model = create_model(name).eval()
    load_weights(model, str(tmp_path / "resnet34.safetensors"))
    first = {stream: model.get_parameter(f"streams.{stream}.conv1.weight") for stream in model.STREAMS}
    if name != "framediff_only":
        frames = first.get("frame", first.get("both"))[:, :3]
        assert torch.equal(frames, imagenet_like["conv1.weight"])
    if name != "framediff_frames":
        differences = first.get("difference", first.get("both"))[:, -3:]
        assert torch.allclose(differences, imagenet_like["conv1.weight"].mean(1, keepdim=True))
    still, other = (torch.rand(1, 1, 3, 64, 64).expand(-1, 3, -1, -1, -1) for _ in range(2))
    with torch.inference_mode():
        same = torch.allclose(model(still), model(other), atol=1e-6)
        assert same == (name == "framediff_only")
        moving = still.clone()
        moving[:, 1] += 0.5 * torch.rand(3, 64, 64)
        assert not torch.allclose(model(moving), model(still), atol=1e-6)


def test_light_that_changes_is_in_no_map_of_chroma_and_a_splotch_is() -> None:
    torch.manual_seed(0)
    clip = torch.rand(1, 1, 3, 1, 1) * 0.2 + 0.3 + 0.1 * torch.rand(1, 1, 3, 64, 64).expand(1, 6, -1, -1, -1)
    assert chroma_maps(clip).abs().max() < 1e-6  # what stands still
    lamp = 1 + 0.3 * torch.rand(1, 6, 3, 1, 1)
    lit = chroma_maps(clip * lamp)
    assert lit.abs().max() < 0.02  # not 0, for nearly black pixels' sake
    splotched = clip * lamp
    splotched[:, 3, 0, 24:32, 24:32] *= 1.1
    found = (chroma_maps(splotched) - lit)[0].abs()
    assert found[3, 0].argmax() in (6 * 16 + 6, 6 * 16 + 7, 7 * 16 + 6, 7 * 16 + 7)
    assert found[3, 0].max() > 0.05
    assert found[3, 2].max() > 0.03  # also against its neighbours
    assert found[3, 1].max() < 1e-3  # blue


def test_a_swapped_face_that_changes_colour_is_not_taken_for_the_light() -> None:
    """It fills most of the crop, as faces do: what changes is the face and not what is around it."""
    torch.manual_seed(0)
    clip = 0.3 + 0.1 * torch.rand(1, 1, 3, 64, 64).expand(1, 6, -1, -1, -1).clone()
    clip = clip.contiguous()
    clip[:, 3, 0, 12:52, 12:52] *= 1.1
    own = chroma_maps(clip)[0, 3, 0] - chroma_maps(clip)[0, 2, 0]
    assert own[4:12, 4:12].min() > 0.05
    assert own[:3].abs().max() < 1e-5


def test_what_passes_through_the_rim_is_not_taken_for_the_light() -> None:
    """Hair, or a person behind, in a quarter of it."""
    torch.manual_seed(0)
    clip = (0.3 + 0.1 * torch.rand(1, 1, 3, 64, 64)).repeat(1, 6, 1, 1, 1)
    without = chroma_maps(clip)
    clip[:, 3, 0, :8] *= 1.3
    found = (chroma_maps(clip) - without)[0, 3, 0]
    assert found[:2].min() > 0.1
    assert found[3:].abs().max() < 1e-5


def test_unknown_model() -> None:
    with pytest.raises(UserError, match="resnet34"):
        create_model("resnet35")


@pytest.fixture(scope="module")
def imagenet_like() -> dict[str, torch.Tensor]:
    """A state dict with ImageNet's shapes: 1000 outputs."""
    torch.manual_seed(1)
    return torchvision.models.resnet34(weights=None).state_dict()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_file_with_another_head(tmp_path: Path, imagenet_like: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    save_file(imagenet_like, path) if suffix == "safetensors" else torch.save(imagenet_like, path)
    model = create_model("resnet34")
    head = model.get_parameter("fc.weight").clone()
    load_weights(model, str(path))
    assert torch.equal(model.state_dict()["layer3.1.conv1.weight"], imagenet_like["layer3.1.conv1.weight"])
    assert torch.equal(model.get_parameter("fc.weight"), head)


def test_a_fitting_head_is_taken(tmp_path: Path) -> None:
    source, model = create_model("resnet34"), create_model("resnet34")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, str(tmp_path / "w.safetensors"))
    assert torch.equal(model.get_parameter("fc.weight"), source.get_parameter("fc.weight"))


def test_misfits_are_named(tmp_path: Path, imagenet_like: dict[str, torch.Tensor]) -> None:
    state = dict(imagenet_like)
    del state["layer1.0.bn1.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        load_weights(create_model("resnet34"), str(tmp_path / "w.pth"))
    shapes = "shape of conv1.weight: (64, 3, 3, 3), the model has (64, 3, 7, 7)"
    for words in ("missing: layer1.0.bn1.bias", "unexpected: extra.weight", shapes):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("no.pth", None, "no such file"), ("bad.pth", b"nonsense", "cannot be read"), ("bad.safetensors", b"nonsense" * 9, "cannot be read")],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_weights(create_model("resnet34"), str(tmp_path / name))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Path}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(create_model("resnet34"), str(tmp_path / "w.pth"))


def test_whole_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no plain state dict"):
        load_weights(create_model("resnet34"), str(tmp_path / "w.pth"))


def test_imagenet_without_network_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match="no route") as caught:
        load_weights(create_model("resnet34"), "imagenet")
    assert str(tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth") in str(caught.value)


def test_imagenet_is_taken_from_where_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagenet_like: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(imagenet_like, tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth")
    model = create_model("resnet34")
    load_weights(model, "imagenet")
    assert torch.equal(model.state_dict()["conv1.weight"], imagenet_like["conv1.weight"])
    deep = create_model("resnet34_3d")
    load_weights(deep, "imagenet")
    assert torch.allclose(deep.state_dict()["stem.0.weight"].sum(2), imagenet_like["conv1.weight"], atol=1e-6)


def test_weights_that_timm_hosts_are_taken_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = timm.create_model("seresnext50_32x4d").state_dict()  # their names, and a head of 1,000 classes
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "seresnext50_32x4d_racm-a304a460.pth")
    model = create_model("seresnext50")
    load_weights(model, "imagenet")
    assert torch.equal(model.state_dict()["body.layer4.2.se.fc2.weight"], state["layer4.2.se.fc2.weight"])


def test_packaged_imagenet_weights_are_those_of_the_very_network() -> None:
    """With them timm's network calls skimage's photograph of a cat a cat: layers in a wrong order would see nothing."""
    weights = EfficientNetLite0.PRETRAINED["imagenet"]()
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    network.load_state_dict({name.removeprefix("body."): value for name, value in weights.items()})
    picture = torch.from_numpy(chelsea()).permute(2, 0, 1).float() / 255
    mean, std = EfficientNetLite0.CHANNELS
    with torch.inference_mode():
        logits = network(functional.normalize(functional.resize(picture, [224, 224], antialias=True), list(mean), list(std))[None])[0]
    assert int(logits.argmax()) in (281, 282, 285)  # ImageNet's tabby, tiger cat, Egyptian cat

    model = create_model("efficientnet_lite0")
    load_weights(model, "imagenet")
    assert torch.equal(model.state_dict()["body.conv_stem.weight"], weights["body.conv_stem.weight"])
