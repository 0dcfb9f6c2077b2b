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
MEAN = (1.0238, 0.3705, 0.4736, 0.4235, 0.4248, 1.8712, 1.2433, 1.9489, 1.3092)
DEVIATION = (0.7129, 0.5837, 0.3448, 0.2822, 0.1904, 0.8282, 0.7695, 1.1401, 1.0356)
HIDDEN = (
    (-0.6816, -0.0868, -0.1181, -0.4859, 0.0117, 0.4828, -0.5667, 0.8753, 0.9552, 0.4233),
    (-0.5588, -0.0521, 0.0035, -0.2556, -0.7279, 0.5616, -0.5964, 0.8466, 1.0292, 0.3451),
    (-0.1444, 0.3925, 0.235, 0.3991, 0.0828, 0.0045, -0.9818, -0.07, -0.6875, 0.4057),
    (-0.2912, 0.137, 0.0014, -0.7312, 1.2788, -0.7055, 0.4752, -0.0059, 0.2667, 0.6844),
    (0.1858, -0.1186, 0.0663, 0.2081, -0.8914, -0.4419, 0.6293, -1.0272, -1.0059, 0.2543),
    (-0.6099, 0.2773, 0.6374, 0.2548, 0.4559, -0.2878, 1.3251, -0.3988, 0.4644, 0.5431),
)
OUT = (1.3521, 1.3209, 1.0566, -1.3116, -1.4903, -1.5507)
BIAS = -0.9232
