"""Hugging Face's preprocessor_config.json: what it says is done, and what can't be done is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedder.model.spec import Preprocessing
from models import ArchitectureError
from models.preprocessor_config import read_preprocessor_config

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]

# As the repositories openai/clip-vit-base-patch32, google/siglip-base-patch16-224, facebook/dinov2-base,
# google/vit-base-patch16-224 and facebook/convnext-tiny-224 have them.
CLIP: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": 3,
    "size": 224,
}
SIGLIP: dict[str, Any] = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": HALF,
    "image_processor_type": "SiglipImageProcessor",
    "image_std": HALF,
    "processor_class": "SiglipProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
DINOV2: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": IMAGENET_MEAN,
    "image_processor_type": "BitImageProcessor",
    "image_std": IMAGENET_STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
VIT: dict[str, Any] = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": HALF,
    "image_processor_type": "ViTImageProcessor",
    "image_std": HALF,
    "resample": 2,
    "size": 224,
}
CONVNEXT: dict[str, Any] = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "resample": 3,
    "size": 224,
}


def read(folder: Path, config: object) -> Preprocessing:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(config))
    return read_preprocessor_config(path)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (CLIP, Preprocessing(224, 224, "bicubic", mean=tuple(CLIP_MEAN), std=tuple(CLIP_STD))),
        (SIGLIP, Preprocessing(224, 224, "bicubic", "squash", tuple(HALF), tuple(HALF))),
        (DINOV2, Preprocessing(256, 224, "bicubic")),
        (VIT, Preprocessing(224, 224, "bilinear", "squash", tuple(HALF), tuple(HALF))),
        (CONVNEXT, Preprocessing(256, 224, "bicubic")),
        ({**CONVNEXT, "size": {"shortest_edge": 384}}, Preprocessing(384, 384, "bicubic", "squash")),
        (
            {**VIT, "do_normalize": False},
            Preprocessing(224, 224, "bilinear", "squash", (0.0,) * 3, (1.0,) * 3),
        ),
        ({**DINOV2, "image_processor_type": "BitImageProcessorFast"}, Preprocessing(256, 224, "bicubic")),
    ],
)
def test_what_the_file_says_is_what_is_done(
    tmp_path: Path, config: dict[str, Any], wanted: Preprocessing
) -> None:
    assert read(tmp_path, config) == wanted


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**CLIP, "do_pad": True}, "do_pad is on"),
        ({**CLIP, "do_resize": False}, "do_resize is off"),
        ({**CLIP, "do_center_crop": False}, "which gives no square"),
        ({**CLIP, "resample": 0}, "its resample is 0; known are 1, 2 and 3"),
        ({**CLIP, "rescale_factor": 1.0}, "its rescale_factor is 1.0, not 1/255"),
        ({**CLIP, "crop_size": 300}, "its resize is 224 and its crop 300"),
        ({**CLIP, "image_mean": [0.5]}, "its mean is [0.5], not three numbers"),
        ({**SIGLIP, "size": {"height": 224, "width": 448}}, "which gives no square"),
        (
            {**SIGLIP, "image_processor_type": "BeitImageProcessor"},
            "its image_processor_type is 'BeitImageProcessor'",
        ),
        ([], "holds a list, not a preprocessor_config"),
    ],
)
def test_what_can_not_be_done_is_refused_in_one_line(tmp_path: Path, config: object, said: str) -> None:
    with pytest.raises(ArchitectureError) as refused:
        read(tmp_path, config)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(ArchitectureError, match=r"text\.json is no JSON"):
        read_preprocessor_config(tmp_path / "text.json")
    with pytest.raises(ArchitectureError, match=r"none\.json can't be read: No such file"):
        read_preprocessor_config(tmp_path / "none.json")
