"""From a folder or table to pixels: photos, splits, contents, decoding, the cache, near duplicates.
Nothing here knows of networks; torch is not imported.
"""
