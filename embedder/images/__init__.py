"""Image files into pixels: formats and their limits, decoding with Pillow, and the memory it may take.

containers       bytes -> Picture: format, size, orientation, the memory to decode it; no Pillow
webp_lossless    the part of a lossless WebP's cost that its size does not show
decode           Picture -> uint8 (crop, crop, 3), by a network's Preprocessing; alone knows Pillow
decode_budget    how much memory all decoding may take at once
"""
