"""Lower precision for a bundle, and what it costs: records real inputs, chooses scales, writes Q/DQ graphs, measures."""
