"""Networks of torchvision and timm give what their libraries give, in every geometry."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import ImageChops

from embedder.model.spec import Preprocessing
from models import ArchitectureError, WeightsError, architectures
from models.export import check_export, dimension
from models.photos import photo
from models.timm_networks import keeps_last_layer
from tests.models.libraries import Library, pictures
from tests.weights import serve_files

QUICK = ("mobilenet_v3_small", "timm/test_vit.r160_in1k")
# Every geometry: 232 to 224 bilinear; 236 to 224 bilinear; 256 to 224 bilinear; 384 to 384 bilinear;
# 518 to 518 bicubic; 248 to 224 bicubic, mean and std 0.5; 384 to 384 bicubic, squashed.
THOROUGH = (
    "resnet50",
    "convnext_tiny",
    "vit_b_16",
    "efficientnet_v2_s",
    "swin_t",
    "timm/vit_small_patch14_dinov2.lvd142m",
    "timm/vit_base_patch16_siglip_224.webli",
    "timm/convnextv2_nano.fcmae_ft_in22k_in1k_384",
)


@pytest.fixture(
    scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.models) for name in THOROUGH)]
)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(request.param, tmp_path_factory.mktemp("library"))


def test_embeddings_of_files_without_loss_are_the_librarys(library: Library) -> None:
    files = pictures("PNG", [(640, 427), (427, 640), (801, 601)])
    assert min(library.cosines(files)) >= 0.9999


def test_embeddings_of_large_jpegs_are_near_the_librarys(library: Library) -> None:
    size = library.backbone.preprocessing.resize
    files = pictures("JPEG", [(5 * size + 1, 4 * size + 2)])  # decoded at one half: twice the target is left
    assert min(library.cosines(files)) >= 0.999


def test_another_photo_and_two_pixels_would_be_noticed(library: Library) -> None:
    one, other = (library.embedding(file) for file in pictures("PNG", [(640, 427)])[:2])
    assert one @ other < 0.999
    shifted = io.BytesIO()
    ImageChops.offset(photo("astronaut.png"), 4, 0).save(shifted, "PNG", compress_level=1)
    plain = io.BytesIO()
    photo("astronaut.png").save(plain, "PNG", compress_level=1)
    assert library.embedding(plain.getvalue()) @ library.embedding(shifted.getvalue()) < 0.9998


def test_the_file_takes_any_number_of_images_and_gives_vectors_of_length_one(library: Library) -> None:
    files = pictures("PNG", [(300, 200)])
    given = library.served(files)
    assert given.shape == (3, dimension(library.backbone))
    assert np.linalg.norm(given.astype(float), axis=1) == pytest.approx(1, abs=1e-5)
    model = onnx.load_from_string(library.onnx)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert check_export(library.onnx, library.backbone) >= 0.99999


# Names


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("resnet51", "torchvision has no network 'resnet51'; near it are resnet"),
        ("fcn_resnet50", "torchvision has no network 'fcn_resnet50'"),  # it segments
        (
            "resnet50.imagenet1k_v3",
            "no weights 'imagenet1k_v3' for resnet50, but imagenet1k_v1, imagenet1k_v2",
        ),
        ("timm/resnet51.x", "timm has no network 'resnet51'; near it are resnet"),
        ("timm/test_vit2", "1 kinds of weights for test_vit2: name timm/test_vit2.r160_in1k"),
        ("timm/test_vit2.none", "1 kinds of weights for test_vit2: name timm/test_vit2.r160_in1k"),
        ("timm/vit_base_patch16_sapiens2.fb", "768 x 1024 pixels; the service makes squares"),
        ("timm/deepseek_vit_412m.deepseek_v4_1_flash", "crops by 'border', which the service can't do"),
    ],
)
def test_a_name_that_is_none_and_a_geometry_that_can_not_be_made_are_refused(
    architecture: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError) as refused:
        architectures.maker(architecture).backbone(architecture, str(tmp_path))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_of_torchvision_have_their_own_preprocessing() -> None:
    torchvision = architectures.maker("resnet50")
    first, second = (
        torchvision._entry("resnet50", tag).transforms()  # type: ignore[attr-defined]
        for tag in ("imagenet1k_v1", "imagenet1k_v2")
    )
    made = [torchvision.preprocessing("resnet50", preset) for preset in (first, second)]  # type: ignore[attr-defined]
    assert made == [Preprocessing(256, 224), Preprocessing(232, 224)]


def test_a_name_in_the_store_is_one_that_bentoml_takes() -> None:
    for name in timm.list_pretrained():
        assert len(architectures.store_name(f"timm/{name}")) <= 63
    assert architectures.store_name("timm/vit_small_patch14_dinov2.lvd142m") == (
        "timm-vit_small_patch14_dinov2.lvd142m"
    )


def test_towers_of_clips_kind_keep_their_projection_and_nothing_else_keeps_its_classes() -> None:
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        # No data set that timm has weights for has so few classes; ImageNet-1K has 1000.
        projects = config.num_classes not in (0, 1000) and config.num_classes < 2000
        assert keeps_last_layer(name) or not projects, name
        assert projects or config.num_classes == 0 or not keeps_last_layer(name), name


# Weights


@pytest.mark.parametrize("architecture", QUICK)
def test_untrained_weights_take_no_network_and_are_the_same_each_time(architecture: str) -> None:
    maker = architectures.maker(architecture)
    one, other = (maker.backbone(architecture, "untrained") for _ in range(2))
    assert one.weights == other.weights
    assert (one.weights.name, one.weights.trained, one.licence) == ("untrained", False, "")
    for name, tensor in one.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[name])


@pytest.mark.parametrize("architecture", QUICK)
def test_a_file_for_another_network_is_refused_in_one_line(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.ones(3)}, path)
    with pytest.raises(WeightsError) as refused:
        architectures.maker(architecture).backbone(architecture, str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_download_that_is_not_what_its_name_promises_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    entry = architectures.maker("mobilenet_v3_small")._entry("mobilenet_v3_small", "")  # type: ignore[attr-defined]
    name = entry.url.rpartition("/")[2]
    assert name == "mobilenet_v3_small-047dcff4.pth"
    with serve_files({name: b"another file"}) as origin:
        monkeypatch.setattr(entry, "_value_", entry.value.__class__(f"{origin}/{name}", None, {}))
        with pytest.raises(
            WeightsError, match=r"is not the right file: invalid hash value \(expected \"047dcff4\""
        ):
            architectures.maker("mobilenet_v3_small")._network(  # type: ignore[attr-defined]
                "mobilenet_v3_small", entry, "pretrained", None
            )
