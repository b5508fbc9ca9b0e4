"""The operations that dominate the model's time, each with a plain path that runs everywhere."""

from eao.kernels.attention import attention, packed_attention
from eao.kernels.contrastive import contrastive_loss
from eao.kernels.similarity import count_ranks, topk_similarity

__all__ = ["attention", "contrastive_loss", "count_ranks", "packed_attention", "topk_similarity"]
