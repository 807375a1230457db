"""How good images are, and how alike: features of a user's network, and the measures that are made of them.

The one home of these measures: ``calibrate``, ``reconstruct`` and ``evaluate`` report the same numbers.
"""
