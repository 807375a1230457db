"""From a bundle to a calibrated one: a file for each step of ``calibrate.py``, and the parts that steps share.

record -> choose -> search -> write -> measure -> report
"""
