"""Reference models with attention branches, adapters, and loading of models by name."""

from __future__ import annotations

from xaieval.models.abn import ABNClassifier
from xaieval.models.attention import AttentionBranch, AttentionOutput, SeparableBlock, amplify, attention_loss, evidence_map
from xaieval.models.blackbox import BlackBox, as_module, onnx_model
from xaieval.models.builtin import cue_scenes, fpn_scenes, scenes_backbone
from xaieval.models.designs import DESIGNS, Design, focus
from xaieval.models.fal import FAL, levels_of
from xaieval.models.features import FewShot, LinearHead
from xaieval.models.fpn import LEVELS, FPNClassifier
from xaieval.models.gate_statistics import GateStatistics, gate_statistics
from xaieval.models.loading import LoadedModel, load_model
from xaieval.models.overhead import Overhead, overhead
from xaieval.models.prompted_masks import PromptedMask
from xaieval.models.weights import load_weights, read_weights
from xaieval.models.zeroshot import ZeroShot

__all__ = [
    "DESIGNS",
    "FAL",
    "LEVELS",
    "ABNClassifier",
    "AttentionBranch",
    "AttentionOutput",
    "BlackBox",
    "Design",
    "FPNClassifier",
    "FewShot",
    "GateStatistics",
    "LinearHead",
    "LoadedModel",
    "Overhead",
    "PromptedMask",
    "SeparableBlock",
    "ZeroShot",
    "amplify",
    "as_module",
    "attention_loss",
    "cue_scenes",
    "evidence_map",
    "focus",
    "fpn_scenes",
    "gate_statistics",
    "levels_of",
    "load_model",
    "load_weights",
    "onnx_model",
    "overhead",
    "read_weights",
    "scenes_backbone",
]
