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
from eao.model.fusion import EPS, FusionTransformer
from eao.model.layers import build_projection
from eao.model.packed import PackedTokens, build_layout, pack_rows

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
        wanted = self._checked(batch, encoders)
        if self.training and self.config.architecture == "text-video" and batch.audio is not None:
            # The original runs its unused audio network here, which moves the BatchNorm statistics of the checkpoint.
            # A batch without audio saves the time.
            with torch.no_grad():
                self.davenet(batch.audio)
        if not wanted:
            return {}
        singles = _without_sums(wanted)
        present = [m for m in MODALITIES if any(m in encoder_modalities(e) for e in singles)]
        tokens = [self.packed_tokens(batch, m) for m in present]
        if self.config.architecture == "per-modality":
            # One transformer each: the combinations are the modalities themselves.
            pooled = {
                (m, m): self._pool([t], [[0]], self.get_submodule(f"fusion_{m}"))[0]
                for m, t in zip(present, tokens, strict=True)
            }
        else:
            combinations = [[present.index(m) for m in encoder_modalities(e)] for e in singles]
            blocks = iter(self._pool(tokens, combinations, self.fusion))
            pooled = {(e, m): next(blocks) for e in singles for m in self._read(e)}
        return self._with_sums(self._heads(pooled), wanted)

    def forward_dense(self, batch: Batch, encoders: Sequence[str]) -> dict[str, Tensor]:
        """As `forward`, as a static graph over padded tensors: what engines are compiled from."""
        wanted = self._checked(batch, encoders)
        pooled: dict[tuple[str, str], Tensor] = {}
        tokens: dict[str, Tokens] = {}
        for encoder in _without_sums(wanted):
            modalities = encoder_modalities(encoder)
            tokens |= {m: self.tokens(batch, m) for m in modalities if m not in tokens}
            parts = [tokens[m] for m in modalities]
            per_modality = self.config.architecture == "per-modality"
            fusion = self.get_submodule(f"fusion_{encoder}") if per_modality else self.fusion
            x, mask = torch.cat([t.x for t in parts], 1), torch.cat([t.mask for t in parts], 1)
            read = fusion(x, mask, [t.x.shape[1] for t in parts])
            pooled |= {(encoder, m): part for m, part in zip(self._read(encoder), read, strict=True)}
        return self._with_sums(self._heads(pooled), wanted)

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
            x, mask = self.audio_features(x, mask, batch.audio_frames)
        return self.project_tokens(x, mask, modality)

    def project_tokens(self, x: Tensor, mask: Tensor, modality: str) -> Tokens:
        """The tokens of one modality from what its projection reads.

        Args:
            x: (B, N, D) raw tokens; of audio what `audio_features` gives.
            mask: (B, N) bool.
            modality: a name.
        """
        x = self.get_submodule(f"{modality}_norm_layer")(self.get_submodule(f"{modality}_token_proj")(x))
        x, mask, _ = self.fusion.fill_empty(x, mask)
        table = self._positions(modality, x.shape[1])
        return Tokens(x if table is None else x + table, mask)

    def audio_features(
        self, audio: Tensor, mask: Tensor, frames: Tensor | None, *, real_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """DAVEnet's tokens and which of them are real.

        Args:
            audio: (B, 40, T).
            mask: (B, T) bool.
            frames: (B,) real frames, by which some models pool.
            real_only: leave out what only tokens that are not real would need; those are undefined then.

        Returns:
            (B, N, C) and (B, N) bool.
        """
        length = audio.shape[2]
        # For whole multiples the ratio is the network's stride: a constant, so that exported graphs keep T dynamic.
        stride = self.davenet.stride
        ratio = stride if length % stride == 0 else frames_per_token(length, -(-length // stride))
        mask = pool_mask(mask, ratio)
        limit, pooling = self.max_audio_tokens, self.config.audio_pooling
        is_pooled = self.config.audio_max_frames is not None and pooling != "none" and mask.shape[1] > limit
        if is_pooled and frames is None and pooling != "clip":
            raise DataError("this model pools audio tokens by the clip's length", "give Batch.audio_frames")
        lengths = mask.new_zeros(len(mask), dtype=torch.int64) if frames is None else (frames / ratio).trunc().long()
        wanted = None
        if real_only:
            wanted = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
            if is_pooled:
                wanted = wanted.maximum(lengths)
        x = self.davenet(audio, wanted).transpose(1, 2)  # (B, N, C)
        return limit_tokens(x, mask, lengths, limit, pooling) if is_pooled else (x, mask)

    def packed_tokens(self, batch: Batch, modality: str) -> PackedTokens:
        """As `tokens`, the real ones alone."""
        x, mask = getattr(batch, modality), getattr(batch, f"{modality}_mask")
        if modality == "audio":
            x, mask = self.audio_features(x, mask, batch.audio_frames, real_only=True)
        rows, empty, lengths = pack_rows(mask)
        x = self.get_submodule(f"{modality}_token_proj")(x.flatten(0, 1)[rows])
        x = self.get_submodule(f"{modality}_norm_layer")(x)
        x = torch.where(empty[:, None], self.fusion.masking_token.to(x.dtype), x)
        table = self._positions(modality, mask.shape[1])
        return PackedTokens(x if table is None else x + table[rows % mask.shape[1]], lengths)

    def _pool(
        self, tokens: Sequence[PackedTokens], combinations: Sequence[Sequence[int]], fusion: nn.Module
    ) -> tuple[Tensor, ...]:
        """What the heads read, (B, D) each: by combination, then modality (one a combination with a cls token)."""
        layout = build_layout([t.lengths for t in tokens], combinations, self.config.fusion.use_cls_token)
        pooled: Tensor = fusion.packed(torch.cat([t.x for t in tokens]), layout)  # type: ignore[operator]  # (G, D)
        return pooled.unflatten(0, (-1, len(tokens[0].lengths))).unbind(0)

    def _read(self, encoder: str) -> tuple[str, ...]:
        """The modalities whose output is read from an encoder, which also name the heads it goes through."""
        modalities = encoder_modalities(encoder)
        return modalities[:1] if self.config.fusion.use_cls_token else modalities

    def _heads(self, pooled: dict[tuple[str, str], Tensor]) -> dict[str, Tensor]:
        """Embeddings by encoder from what was read for each (encoder, modality), every head run once."""
        by_head: dict[str, list[tuple[str, str]]] = {}
        for key in pooled:
            by_head.setdefault(self._head_name(key[1]), []).append(key)
        parts: dict[str, list[Tensor]] = {}
        for name, keys in by_head.items():
            outputs = self.get_submodule(name)(torch.cat([pooled[key] for key in keys]))
            for (encoder, _), x in zip(keys, outputs.unflatten(0, (len(keys), -1)).unbind(0), strict=True):
                parts.setdefault(encoder, []).append(x)
        return {e: xs[0] if len(xs) == 1 else _mean([normalize(x) for x in xs]) for e, xs in parts.items()}

    def _with_sums(self, outputs: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        for encoder in wanted:
            if "+" in encoder:
                outputs[encoder] = _mean([normalize(outputs[m]) for m in encoder_modalities(encoder)])
        return {encoder: outputs[encoder] for encoder in wanted}

    def _positions(self, modality: str, tokens: int) -> Tensor | None:
        """The (N, D) positional table of a modality; None where the model adds none."""
        # The per-modality model owns positional tables too but never adds them.
        if not self.config.use_positional_emb or self.config.architecture == "per-modality":
            return None
        table = self.get_parameter(f"{modality}_pos_embed")[0]
        if tokens != len(table):
            raise DataError(
                f"{tokens} {modality} tokens, but the positional table holds {len(table)}",
                "set data.video_tokens, data.text.max_words and data.audio_frames to the sizes of the tables",
            )
        return table

    def _head_name(self, modality: str) -> str:
        shared = not (self.config.individual_projections or self.config.architecture == "per-modality")
        return "proj" if shared else f"{modality}_proj"

    def _default_encoders(self, batch: Batch) -> tuple[str, ...]:
        names = (*MODALITIES, *PAIRS) if self.config.cross_modal else MODALITIES
        return tuple(e for e in names if e in self.encoders and set(encoder_modalities(e)) <= set(batch.modalities))

    def _checked(self, batch: Batch, encoders: Sequence[str] | None) -> tuple[str, ...]:
        """The encoders to compute, all of which this model and this batch have."""
        wanted = self._default_encoders(batch) if encoders is None else tuple(encoders)
        for encoder in wanted:
            if encoder not in self.encoders:
                raise ConfigError(f"this model has no encoder {encoder!r}", f"it offers {', '.join(self.encoders)}")
            missing = set(encoder_modalities(encoder)) - set(batch.modalities)
            if missing:
                raise DataError(
                    f"encoder {encoder!r} needs {', '.join(sorted(missing))}, which the batch does not have"
                )
        return wanted


def _without_sums(encoders: Sequence[str]) -> list[str]:
    """The encoders that have to be computed: a sum is made of its two modalities'."""
    return list(dict.fromkeys(m for e in encoders for m in (encoder_modalities(e) if "+" in e else (e,))))


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0) / len(parts)


def build_model(config: ModelConfig) -> EverythingAtOnce | AVLnet:
    """The model a configuration describes, freshly initialised."""
    return AVLnet(config) if config.architecture == "avlnet" else EverythingAtOnce(config)
