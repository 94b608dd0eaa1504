"""From a folder or table to pixels: photos, splits, decoding, the cache, near duplicates, checks.
Nothing here knows about networks, and nothing imports torch.
"""
