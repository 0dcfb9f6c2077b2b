"""What automatic t follows, written by `python -m benchmarks.auto_t --write` for the built-in model.

t = sigmoid(bias + sum of weight * (feature - mean) / deviation).
"""

FEATURES = ("noise", "blur", "blocks", "texture")
MEAN = (1.179, 0.502, 0.434, 0.284)
DEVIATION = (0.768, 0.650, 0.345, 0.238)
WEIGHT = (-0.027, -0.114, -0.206, 0.008)
BIAS = -0.353
