"""The built-in sample: photos drawn by us, for a machine that has none yet.
Nothing else in the product draws clothes.
"""
