"""Metrics of one's own."""

import numpy as np


def brier(labels, probabilities):
    return np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1).mean()


def nothing(labels, probabilities):
    return None


def fails(labels, probabilities):
    raise ValueError("odd")
