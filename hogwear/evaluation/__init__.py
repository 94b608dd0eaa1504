"""From pixels to figures: predictions, metrics, charts, the report, pictures.
Nothing here changes a weight.
"""
