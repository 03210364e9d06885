"""Localisation by its words: loops over cells, pairs of cells, and thresholds."""

import math


def cells(maps):
    return [float(value) for row in maps.tolist() for value in row]


def pointing_game(scores, coverage):
    scores, coverage = cells(scores), cells(coverage)
    if max(coverage) == 0:
        return math.nan
    hits = [c for s, c in zip(scores, coverage, strict=True) if s == max(scores)]
    return sum(hits) / len(hits)


def positive_share(scores, coverage):
    scores, coverage = cells(scores), cells(coverage)
    total = sum(s for s in scores if s > 0)
    if max(coverage) == 0 or total == 0:
        return math.nan
    return sum(s * c for s, c in zip(scores, coverage, strict=True) if s > 0) / total


def auroc(scores, inside):
    scores, inside = cells(scores), cells(inside)
    object_scores = [s for s, i in zip(scores, inside, strict=True) if i]
    others = [s for s, i in zip(scores, inside, strict=True) if not i]
    if not object_scores or not others:
        return math.nan
    wins = sum((a > b) + 0.5 * (a == b) for a in object_scores for b in others)
    return wins / (len(object_scores) * len(others))


def best_dice(scores, inside):
    scores, inside = cells(scores), cells(inside)
    if not any(inside):
        return math.nan
    best = 0.0
    for threshold in set(scores):
        taken = [s >= threshold for s in scores]
        both = sum(t and bool(i) for t, i in zip(taken, inside, strict=True))
        best = max(best, 2 * both / (sum(taken) + sum(map(bool, inside))))
    return best
