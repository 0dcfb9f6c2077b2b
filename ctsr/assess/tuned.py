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
MEAN = (1.0131, 0.3794, 0.4656, 0.4233, 0.4236, 1.8592, 1.2297, 1.929, 1.2886)
DEVIATION = (0.7207, 0.5885, 0.3407, 0.2819, 0.1909, 0.8382, 0.7796, 1.1433, 1.0376)
HIDDEN = (
    (-1.2273, -0.0263, -0.3989, -0.4928, 0.357, 0.6157, -0.4193, 1.1275, 1.2091, 0.5012),
    (-0.2128, 0.7122, -0.2826, 0.8911, -0.199, -0.0025, -1.2987, 0.0888, -1.0136, -0.0757),
    (0.4666, -0.4337, 0.3028, 0.5742, -1.6326, 0.4462, -0.2527, -0.0111, -0.3787, -0.6708),
    (-0.6954, 0.4314, 0.1978, 0.3926, 0.621, 0.4028, 1.1058, -0.7441, 0.122, 0.991),
    (0.383, -0.1873, 0.0865, 0.3801, -0.7329, -0.7804, 0.7255, -1.2111, -0.9352, 0.3446),
    (0.5344, 0.2804, -0.1174, -0.0385, -0.7049, -0.1727, -0.153, 0.3186, 1.4609, 0.9936),
)
OUT = (1.5768, 1.7614, 1.2618, -1.1183, -1.5512, 1.333)
BIAS = -0.7738
