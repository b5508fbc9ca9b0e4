"""The Everything-at-Once model: tokens per modality, one fusion transformer for any combination, output heads.

Attribute names are those of the authors' checkpoints, so that their state dicts load without renaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eao.config import ModelConfig
from eao.errors import ConfigError, DataError
from eao.kernels.contrastive import normalize
from eao.model.audio import DAVEnet, frames_per_token, limit_tokens, pool_mask
from eao.model.avlnet import AVLnet
from eao.model.batch import ENCODERS, MODALITIES, PAIRS, SUMS, Batch, encoder_modalities
from eao.model.fusion import EPS, FusionTransformer, masked_mean
from eao.model.layers import build_projection

# B batch, N tokens, D width, E embedding, T spectrogram frames


@dataclass
class Tokens:
    """One modality, ready for fusion: `x` (B, N, D), `mask` (B, N) bool with at least one True a row."""

    x: Tensor
    mask: Tensor


class EverythingAtOnce(nn.Module):
    """Text, video and audio, and any combination of them, in one embedding space (arXiv 2112.04446).

    Covers three published architectures: "fusion" (one transformer for all modalities), "text-video" (the same weights,
    audio unused) and "per-modality" (a transformer each, no fusion).

    Example:
        >>> model = build_model(ModelConfig(text_dim=8, video_dim=8, embedding_dim=8,
        ...     fusion={"embed_dim": 8, "num_heads": 2}, audio={"channels": (4, 4, 4, 4, 4, 4, 4)}))
        >>> mask = torch.ones(2, 3, dtype=torch.bool)
        >>> sorted(model(Batch(text=torch.ones(2, 3, 8), text_mask=mask)))
        ['text']
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.fusion.embed_dim
        per_modality = config.architecture == "per-modality"
        if config.use_positional_emb:
            audio_tokens = int((config.audio_max_frames or 0) / (64 if config.audio.version == "v2" else 16))
            sizes = {"video": config.video_max_tokens, "text": config.text_max_tokens, "audio": audio_tokens}
            for modality, size in sizes.items():
                table = nn.Parameter(torch.empty(1, size or 0, width))
                nn.init.trunc_normal_(table, std=0.02)
                self.register_parameter(f"{modality}_pos_embed", table)
        self.fusion = FusionTransformer(config.fusion)
        for modality in ("video", "text", "audio"):
            self.add_module(f"{modality}_norm_layer", nn.LayerNorm(width, eps=EPS))
        self.davenet = DAVEnet(config.audio)
        inputs = {"video": config.video_dim, "text": config.text_dim, "audio": self.davenet.output_dim}
        for modality, size in inputs.items():
            self.add_module(f"{modality}_token_proj", build_projection(config.token_projection, size, width))
        if config.individual_projections or per_modality:
            for modality in ("video", "text", "audio"):
                head = build_projection(config.output_projection, width, config.embedding_dim)
                self.add_module(f"{modality}_proj", head)
        else:
            self.proj = build_projection(config.output_projection, width, config.embedding_dim)
        if per_modality:
            self.fusion_text = self.fusion  # one module under two names, as in the published state dict
            self.fusion_video = FusionTransformer(config.fusion)
            self.fusion_audio = FusionTransformer(config.fusion)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The embeddings this model offers."""
        if self.config.architecture == "text-video":
            return ("text", "video")
        separate_cls = self.config.fusion.use_cls_token and self.config.individual_projections
        if self.config.architecture == "per-modality" or separate_cls:
            return (*MODALITIES, *SUMS)
        return (*ENCODERS, *SUMS)

    def forward(self, batch: Batch, encoders: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Embeddings by encoder name, each (B, E), in the order asked for.

        Single-modality embeddings are the raw head outputs. Combinations are means of unit vectors, one per modality,
        each taken from the tokens of that modality after fusion; with a cls token they are the raw head output.

        Args:
            batch: clips; never changed.
            encoders: names of `self.encoders`; by default every one whose modalities the batch has, pairs only if the
                model was configured with `cross_modal`.
        """
        wanted = self._default_encoders(batch) if encoders is None else tuple(encoders)
        for encoder in wanted:
            self._check(encoder, batch)
        if self.training and self.config.architecture == "text-video" and batch.audio is not None:
            # The original runs its unused audio network here, which moves the BatchNorm statistics of the checkpoint.
            # A batch without audio saves the time.
            with torch.no_grad():
                self.davenet(batch.audio)
        needed = {m for encoder in wanted for m in encoder_modalities(encoder)}
        tokens = {m: self.tokens(batch, m) for m in MODALITIES if m in needed}
        outputs: dict[str, Tensor] = {}
        for encoder in wanted:
            singles = encoder_modalities(encoder) if "+" in encoder else ()
            for name in (*singles, encoder):
                if name not in outputs and "+" not in name:
                    outputs[name] = self._embed(name, tokens)
            if singles:
                outputs[encoder] = _mean([normalize(outputs[m]) for m in singles])
        return {encoder: outputs[encoder] for encoder in wanted}

    def nonempty(self, batch: Batch) -> dict[str, Tensor]:
        """Which clips have which of the batch's modalities, (B,) bool each: the validity masks of the loss."""
        masks = {m: getattr(batch, f"{m}_mask") for m in batch.modalities}
        if "audio" in masks:
            frames = masks["audio"].shape[1]
            masks["audio"] = pool_mask(masks["audio"], frames_per_token(frames, -(-frames // self.davenet.stride)))
            if self.config.audio_max_frames is not None and self.config.audio_pooling != "none":
                masks["audio"] = masks["audio"][:, : self.max_audio_tokens]
        return {m: mask.any(1) for m, mask in masks.items()}

    @property
    def max_audio_tokens(self) -> int:
        """The cap on audio tokens (only meaningful with `audio_max_frames`)."""
        return int((self.config.audio_max_frames or 0) / self.davenet.stride)

    def tokens(self, batch: Batch, modality: str) -> Tokens:
        """The tokens of one modality as the fusion transformer receives them."""
        x, mask = getattr(batch, modality), getattr(batch, f"{modality}_mask")
        if modality == "audio":
            x, mask = self._audio_features(x, mask, batch.audio_frames)
        x = self.get_submodule(f"{modality}_norm_layer")(self.get_submodule(f"{modality}_token_proj")(x))
        x, mask, _ = self.fusion.fill_empty(x, mask)
        # The per-modality model owns positional tables too but never adds them.
        if self.config.use_positional_emb and self.config.architecture != "per-modality":
            table = self.get_parameter(f"{modality}_pos_embed")
            if x.shape[1] != table.shape[1]:
                raise DataError(
                    f"{x.shape[1]} {modality} tokens, but the positional table holds {table.shape[1]}",
                    "set data.video_tokens, data.text.max_words and data.audio_frames to the sizes of the tables",
                )
            x = x + table
        return Tokens(x, mask)

    def _audio_features(self, audio: Tensor, mask: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.davenet(audio).transpose(1, 2)  # (B, N, C)
        length = audio.shape[2]
        # For whole multiples the ratio is the network's stride: a constant, so that exported graphs keep T dynamic.
        ratio = self.davenet.stride if length % self.davenet.stride == 0 else frames_per_token(length, x.shape[1])
        mask = pool_mask(mask, ratio)
        limit = self.max_audio_tokens
        if self.config.audio_max_frames is None or self.config.audio_pooling == "none" or x.shape[1] <= limit:
            return x, mask
        if frames is None and self.config.audio_pooling != "clip":
            raise DataError("this model pools audio tokens by the clip's length", "give Batch.audio_frames")
        lengths = torch.zeros(x.shape[0], device=x.device) if frames is None else frames / ratio
        return limit_tokens(x, mask, lengths.trunc().long(), limit, self.config.audio_pooling)

    def _embed(self, encoder: str, tokens: dict[str, Tokens]) -> Tensor:
        modalities = encoder_modalities(encoder)
        per_modality = self.config.architecture == "per-modality"
        fusion = self.get_submodule(f"fusion_{encoder}") if per_modality else self.fusion
        mask = torch.cat([tokens[m].mask for m in modalities], 1)
        x = fusion(torch.cat([tokens[m].x for m in modalities], 1), mask)
        if self.config.fusion.use_cls_token:
            return self._head(modalities[0])(x[:, 0])
        sizes = [tokens[m].x.shape[1] for m in modalities]
        pooled = [masked_mean(part, tokens[m].mask) for m, part in zip(modalities, x.split(sizes, 1), strict=True)]
        heads = [self._head(m)(p) for m, p in zip(modalities, pooled, strict=True)]
        return heads[0] if len(heads) == 1 else _mean([normalize(h) for h in heads])

    def _head(self, modality: str) -> nn.Module:
        shared = not (self.config.individual_projections or self.config.architecture == "per-modality")
        return self.proj if shared else self.get_submodule(f"{modality}_proj")

    def _default_encoders(self, batch: Batch) -> tuple[str, ...]:
        names = (*MODALITIES, *PAIRS) if self.config.cross_modal else MODALITIES
        return tuple(e for e in names if e in self.encoders and set(encoder_modalities(e)) <= set(batch.modalities))

    def _check(self, encoder: str, batch: Batch) -> None:
        if encoder not in self.encoders:
            raise ConfigError(f"this model has no encoder {encoder!r}", f"it offers {', '.join(self.encoders)}")
        missing = set(encoder_modalities(encoder)) - set(batch.modalities)
        if missing:
            raise DataError(f"encoder {encoder!r} needs {', '.join(sorted(missing))}, which the batch does not have")


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0) / len(parts)


def build_model(config: ModelConfig) -> EverythingAtOnce | AVLnet:
    """The model a configuration describes, freshly initialised."""
    return AVLnet(config) if config.architecture == "avlnet" else EverythingAtOnce(config)
