"""Raters for tests of the user study. They are synthetic, are called so, and prefer by a rule: nobody's votes."""

import math

import numpy as np
from PIL import Image

from restoration_env.benchmarks.study import Answer, make_study

SCENES = {"lake": "water", "sea": "water", "hill": "mountain", "cat": "animal"}
METHODS = ("photograph", "ours", "gan", "plain")
TRUE = {"photograph": 1.5, "ours": 0.6, "gan": -0.4, "plain": -1.7}  # log strengths


def write_pictures(folder, methods=METHODS, scenes=SCENES, size=(48, 32)):
    """A picture for each method and scene, each of another colour."""
    for row, method in enumerate(methods):
        for column, (scene, category) in enumerate(scenes.items()):
            path = folder / method / category / f"{scene}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (40 + 50 * row, 40 + 50 * column, 120)).save(path)
    return folder


def write_study(folder, **options):
    """A study of part I (ours against gan) and part II (all four), eight questions."""
    settings = {"against": ["gan"], "ranked": METHODS, **options}
    return make_study(folder / "study.db", write_pictures(folder / "pictures"), "ours", **settings)


def rate(study, number, strengths, count=None):
    """A synthetic rater answers ``count`` questions, or all, as Bradley and Terry's model has it."""
    random, token = np.random.default_rng(number), study.begin(f"synthetic rater {number}")
    answered = 0
    while answered != count:
        question, _ = study.next_question(token)
        if question is None:
            break
        # Gumbel noise on log strengths: rankings whose pairs have exactly the model's odds.
        scores = [strengths[method] + random.gumbel() for method in question.shown]
        study.answer(token, question.id, list(np.argsort(scores)[::-1]), 1.0)
        answered += 1
    return token


def synthetic_answers(strengths, raters=20, each=30, seed=0):
    """Answers of part I between all pairs of methods, by synthetic raters."""
    random, names, answers = np.random.default_rng(seed), list(strengths), []
    for rater in range(raters):
        for _ in range(each):
            a, b = random.choice(names, 2, replace=False)
            first = random.random() < 1 / (1 + math.exp(strengths[b] - strengths[a]))
            answers.append(Answer(rater, 1, "scene", "water", (a, b) if first else (b, a)))
    return answers
