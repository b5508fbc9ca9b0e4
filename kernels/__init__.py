"""The operations that dominate the model's time, each with a plain path that runs everywhere."""

from eao.kernels.attention import attention, packed_attention
from eao.kernels.contrastive import contrastive_loss

__all__ = ["attention", "contrastive_loss", "packed_attention"]
