"""What automatic t follows, written by `python -m benchmarks.auto_t --write` for the built-in model.

t = sigmoid(bias + sum of weight * (feature - mean) / deviation).
"""

FEATURES = ("noise", "blur", "blocks", "texture")
MEAN = (1.216, 0.525, 0.438, 0.280)
DEVIATION = (0.789, 0.676, 0.357, 0.244)
WEIGHT = (-0.002, 0.010, -1.109, -0.003)
BIAS = -0.073
