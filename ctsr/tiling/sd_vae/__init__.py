"""Stable Diffusion's autoencoder over pictures of any size, as if it saw them whole.

Its GroupNorms take mean and variance of the whole picture, so a tile normalised by itself gets other colours than its
neighbour. Read in this order:

1. `levels`: encoder and decoder as chains of levels, one a resolution. A level computes its GroupNorms by a function
   that it is given.
2. `schedule`: how each level is run over a picture, by the memory that there is: whole, layer by layer, or in parts.
3. `layer_by_layer`: one layer of a level after the other over the whole picture. Statistics and result are exact.
4. `part_by_part`: where no activation of the whole picture can be kept, so that memory does not grow with the picture.
   Statistics come from a `sample` of the picture and a survey of all of it; parts that are given them have no seams.
5. `statistics`: mean and variance of GroupNorms, module by module: measured, pooled, used.
"""
