"""Know2Vec: a zoo of models is a bank with one vector per model, and a task finds the model that knows it.

Shang et al., "Know2Vec: A Black-Box Proxy for Neural Network Retrieval", AAAI 2025.

    model for task t: argmax_m |cos(v_m, q_t)|
    v_m: what model m answers to the probes, less its mean; q_t: the task read on the same probes

Here a model tells two digits apart, and its vector is its logits on 64 probe images. A task is some labelled images of
two digits: it is read on the probes by the direction from the mean of the one to that of the other. Nobody says which
of the two a model calls the positive one, and so the sign of a cosine says nothing.
"""

from __future__ import annotations

import torch

import vecbank

from ._data import digits, generator
from ._sheet import Sheet

TITLE = "Know2Vec"
FAMILY = "top-k search"
MODELS, PROBES = 20, 64


def run(sheet: Sheet) -> None:
    from sklearn.linear_model import LogisticRegression

    data, draw = digits(600, sheet.seed), generator(sheet.seed)
    pairs = torch.combinations(torch.arange(10))[torch.randperm(45, generator=draw)[:MODELS]]
    probes, x, y = data.x_test[:PROBES], data.x_test[PROBES:], data.y_test[PROBES:]
    probes = probes - probes.mean(0)

    answers = []
    for pair in pairs:
        mine = torch.isin(data.y, pair)
        model = LogisticRegression(C=0.1).fit(data.x[mine], data.y[mine])
        answers.append(torch.from_numpy(model.decision_function(probes)).float())
    models = torch.stack(answers)
    models = models - models.mean(1, keepdim=True)

    # The mean of each digit, and the direction of a task, from either digit to the other.
    means = vecbank.segment_sum(x, y, 10) / torch.bincount(y, minlength=10).unsqueeze(1)
    turn = torch.rand(MODELS, generator=draw) < 0.5
    first, second = torch.where(turn[:, None], pairs.flip(1), pairs).unbind(1)
    tasks = vecbank.project(means[second] - means[first], probes, "dot")

    zoo = vecbank.Bank(torch.cat([models, -models]), "cosine")  # either sign of each: the larger cosine is |cos|
    found = zoo.nearest(tasks)

    own = torch.arange(MODELS)
    right = int((found.indices % MODELS == own).sum())
    sheet.check("tasks whose first model was trained on their digits", right, f"20 of {MODELS}", right == MODELS)
    cosine = torch.cosine_similarity(tasks[:, None].double(), models.double(), dim=-1)
    equal = int((found.indices % MODELS == cosine.abs().argmax(1)).sum())
    sheet.check("first models that are those of plain float64", equal, MODELS, equal == MODELS)
    signed = int((vecbank.nearest(tasks, models, "cosine").indices == own).sum())
    sheet.check("the same by the cosine with its sign", signed, f"fewer than {right}", signed < right)

    caption = "|cos| of every task and every model; those that belong together are on the diagonal"
    sheet.heat_map(caption, cosine.abs(), "model", "task")
