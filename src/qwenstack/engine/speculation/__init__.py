"""Guesses of the tokens that come next, so that one step of the model can confirm several."""

from qwenstack.engine.speculation.cost import StepCost, measure_step_cost
from qwenstack.engine.speculation.draft_model import DraftModel, DraftModelSpeculator, load_draft_model
from qwenstack.engine.speculation.ngram import NgramSpeculator
from qwenstack.engine.speculation.speculator import DraftRequest, Speculator

__all__ = [
    "DraftModel",
    "DraftModelSpeculator",
    "DraftRequest",
    "NgramSpeculator",
    "Speculator",
    "StepCost",
    "load_draft_model",
    "measure_step_cost",
]
