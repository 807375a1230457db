"""Lower precision for a bundle and what it costs: records inputs, chooses scales, writes Q/DQ graphs, measures."""
