"""From video files to features: decoding, backbones, spectrograms."""
