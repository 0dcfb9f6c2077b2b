"""The curve of sRGB (IEC 61966-2-1) in numbers: encoded = 1.055 light^(1 / 2.4) - 0.055, and a line near black."""

GAIN, OFFSET, GAMMA = 1.055, 0.055, 2.4
SLOPE = 12.92
"""Of the line: encoded = 12.92 light."""
DARK, DARK_ENCODED = 0.0031308, 0.04045
"""Where the line ends, in linear light and encoded."""
