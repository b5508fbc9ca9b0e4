"""The AVLnet baseline (Rouditchenko et al., arXiv 2006.09199) as the authors of Everything at Once compare with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eao.config import ModelConfig
from eao.model.audio import DAVEnet
from eao.model.batch import MODALITIES, Batch
from eao.model.layers import GatedEmbeddingUnit

# B batch, N tokens, E embedding, T spectrogram frames


class TextPooling(nn.Module):
    """Linear, ReLU, maximum over every word position, padding included: (B, N, text_dim) -> (B, E)."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(input_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x)).amax(1)


class AVLnet(nn.Module):
    """One embedding per modality, no fusion."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        embedding = config.embedding_dim
        self.DAVEnet = DAVEnet(config.audio)
        audio_dim = self.DAVEnet.output_dim
        self.DAVEnet_projection = nn.Linear(audio_dim, embedding)
        self.GU_audio = GatedEmbeddingUnit(audio_dim, audio_dim)
        self.GU_video = GatedEmbeddingUnit(config.video_dim, embedding)
        self.text_pooling_caption = TextPooling(config.text_dim, embedding)
        self.GU_text_captions = GatedEmbeddingUnit(embedding, embedding)

    @property
    def encoders(self) -> tuple[str, ...]:
        return MODALITIES

    def forward(self, batch: Batch, encoders: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Embeddings by modality, each (B, E), not normalised."""
        functions = {"text": self._text, "video": self._video, "audio": self._audio}
        wanted = [e for e in MODALITIES if e in batch.modalities] if encoders is None else encoders
        return {encoder: functions[encoder](batch) for encoder in wanted}

    def nonempty(self, batch: Batch) -> dict[str, Tensor]:
        """Which clips have which modality, (B,) bool each.

        The original takes the audio flag from the *video* mask; `audio_flag_from_video` restores that.
        """
        source = {m: m for m in batch.modalities}
        if self.config.audio_flag_from_video and "audio" in source:
            source["audio"] = "video"
        return {m: getattr(batch, f"{s}_mask").flatten(1).any(1) for m, s in source.items()}

    def _text(self, batch: Batch) -> Tensor:
        assert batch.text is not None
        return self.GU_text_captions(self.text_pooling_caption(batch.text))

    def _video(self, batch: Batch) -> Tensor:
        assert batch.video is not None
        video = batch.video
        if video.ndim == 3:
            video = F.normalize(video.amax(1), dim=1)
        return self.GU_video(video)

    def _audio(self, batch: Batch) -> Tensor:
        assert batch.audio is not None
        features = self.DAVEnet(batch.audio)  # (B, C, N)
        frames = batch.audio_frames
        # As in the original, the first clip decides for the whole batch whether lengths are known.
        if frames is None or frames[0] == -1:
            pooled = features.mean(2)
        else:
            ratio = round(batch.audio.shape[2] / features.shape[2])
            lengths = (frames / ratio).long().clamp(min=1)[:, None]
            real = torch.arange(features.shape[2], device=features.device) < lengths  # (B, N)
            pooled = (features * real[:, None]).sum(2) / real.sum(1, keepdim=True)
        return self.DAVEnet_projection(self.GU_audio(pooled))
