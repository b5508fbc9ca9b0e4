"""CLIP's image tower (Radford et al., 2021), read from Hugging Face files. Its text tower is in `eao.data.text`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eao.errors import CheckpointError, MissingDependencyError

# B pictures

OUTPUT_DIM = 512
SIDE = 224
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipImage(nn.Module):
    """CLIP's image tower from frames to embeddings, not normalised.

    Args:
        model: transformers' `CLIPVisionModelWithProjection`.

    Example:
        network = ClipImage.load("clip-vit-base-patch32")
        rows = network(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))  # (1, 512)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD), persistent=False)

    @classmethod
    def load(cls, folder: str | Path) -> ClipImage:
        """The network of a folder with `config.json` and the weights.

        Raises:
            CheckpointError: it is no such folder, or a weight is missing or of another shape.
            MissingDependencyError: transformers is not installed.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder} is not a folder with a CLIP model",
                "give a copy of huggingface.co/openai/clip-vit-base-patch32, which holds the same weights as OpenAI's "
                "ViT-B-32.pt: that is a program, and is not loaded",
            )
        return cls(_load(folder)).eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return int(self.model.config.projection_dim)

    @property
    def side(self) -> int:
        """Pixels of a side of the frames."""
        return int(self.model.config.image_size)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, side, side, 3) uint8 RGB to (B, dim)."""
        x = (frames.float() / 255 - self.mean) / self.std
        embeddings: Tensor = self.model(pixel_values=x.permute(0, 3, 1, 2)).image_embeds
        return embeddings


def _load(folder: Path) -> Any:
    try:
        from transformers import CLIPVisionModelWithProjection
        from transformers.utils import logging
    except ImportError:
        raise MissingDependencyError("CLIP needs the package transformers", "pip install transformers") from None
    shows_progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would list the text tower's weights as unexpected
    try:
        model, info = CLIPVisionModelWithProjection.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers, torch and safetensors each raise their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"cannot load a CLIP model from {folder}: {reason}", "the folder must hold config.json and the weights"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
    # transformers fills what is missing with random numbers.
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            first = sorted(map(str, info[kind]))[0]
            raise CheckpointError(
                f"{folder}: {kind.removesuffix('_keys')} weight {first}", "copy the folder of the CLIP model again"
            )
    return model.float()
