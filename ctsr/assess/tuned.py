"""What automatic t follows, written by `python -m benchmarks.auto_t --write` for the built-in model.

t = sigmoid(bias + sum of weight * (feature - mean) / deviation).
"""

FEATURES = ("noise", "blur", "blocks", "texture")
MEAN = (1.0, 0.8, 0.5, 0.5)
DEVIATION = (0.7, 0.5, 0.5, 0.25)
WEIGHT = (0.0, 0.0, 0.0, 0.0)
BIAS = 0.0
