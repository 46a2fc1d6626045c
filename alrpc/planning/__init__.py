"""Measure the components' costs and choose a split of the components over the stages."""
