"""From operations back to modules, which have a training mode, statistics and names.

Layers, BatchNorms and dropout become calls of PyTorch's plain modules under the names of their
weights' owners; all else stays an operation on parameters under their own names. So it does not
matter how a model spells its layers: a Conv2d, a subclass of it and ``functional.conv2d`` on a
Parameter are the same here.
"""
