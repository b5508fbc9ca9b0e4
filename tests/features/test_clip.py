from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eao.errors import CheckpointError
from eao.features.clip import ClipImage

transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP model, text tower included, as Hugging Face stores it."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**TOWER, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 12},
        projection_dim=12,
    )
    path = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(path)
    return path


def test_equals_the_whole_model_with_its_own_preprocessing(folder: Path) -> None:
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    images = ((frames / 255 - mean) / std).permute(0, 3, 1, 2)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    network = ClipImage.load(folder)
    with torch.inference_mode():
        vision = model.vision_model(pixel_values=images).pooler_output
        expected = model.visual_projection(vision)
        rows = network(frames)
    assert (network.dim, network.side) == (12, 32)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


def test_a_missing_weight_is_named(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"missing weight visual_projection\.weight"):
        ClipImage.load(tmp_path)


def test_an_archive_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    (tmp_path / "ViT-B-32.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"openai/clip-vit-base-patch32"):
        ClipImage.load(tmp_path / "ViT-B-32.pt")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load a CLIP model from"):
        ClipImage.load(tmp_path)
