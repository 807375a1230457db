"""Trains tokenizers, class-conditional and text-to-image generators; made the shipped checkpoints.

Importing this package loads neither torch nor scikit-learn, so that the command line lists the recipes at once.
"""

from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.named_recipes import RECIPES
from bitdance_edge.training.recipes import GeneratorRecipe, TextRecipe, TokenizerRecipe

__all__ = ["RECIPES", "GeneratorRecipe", "TextRecipe", "TokenizerRecipe", "TrainingError"]
