"""What automatic t follows, written by `python -m benchmarks.auto_t tune --write` for the built-in model.

t = sigmoid(BIAS + sum of OUT * tanh(HIDDEN * (features, 1))), features less MEAN by DEVIATION. The last two are of
every place, the others of the whole picture. Contrast is the log of levels of 255, noise and blocks that of one more.
"""

FEATURES = (
    "noise",
    "blur",
    "blocks",
    "texture",
    "brightness",
    "mean contrast",
    "mean fine contrast",
    "contrast",
    "fine contrast",
)
MEAN = (0.0,) * 9
DEVIATION = (1.0,) * 9
HIDDEN = ((0.0,) * 10,)
OUT = (0.0,)
BIAS = 0.0
