"""The built-in sample: pictures drawn by us, for a machine without photos.
No other part of Hogwear draws clothes.
"""
