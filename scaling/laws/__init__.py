"""Scaling laws, a family a file. A law is its formula, its parameters and its source; `scaling.fit` does the rest."""

from scaling.laws.batch import (
    CriticalBatch,
    DeepSeekBatch,
    DeepSeekRate,
    HorizonRate,
    OptimalTimescale,
    PowerLinesBatch,
    PowerLinesCriticalBatch,
    StepLawBatch,
    StepLawRate,
    StepsToTarget,
)
from scaling.laws.bnsl import BNSL
from scaling.laws.chinchilla import Chinchilla
from scaling.laws.curves import Annealing, MultiPower
from scaling.laws.data_constrained import DataConstrained
from scaling.laws.downstream import DownstreamError
from scaling.laws.filtering import Filtering
from scaling.laws.kaplan import Kaplan, KaplanData, KaplanSize
from scaling.laws.law import Column, Law, Parameter, Prior, Reference
from scaling.laws.mixtures import AdditiveMixture, JointMixture
from scaling.laws.moe import DenseSparse, FineGrainedMoE, JointMoE, MoESparsity
from scaling.laws.overtraining import Overtraining
from scaling.laws.parscale import ParScale
from scaling.laws.power import DiLoCo, OffsetPowerLaw, ParallelPowerLaw, PowerLaw, PowerLawFloor
from scaling.laws.reinforcement import DataEfficiency, ScaleRL
from scaling.laws.routed import Routed
from scaling.laws.sgd_risk import SGDRisk

__all__ = [
    "BNSL",
    "AdditiveMixture",
    "Annealing",
    "Chinchilla",
    "Column",
    "CriticalBatch",
    "DataConstrained",
    "DataEfficiency",
    "DeepSeekBatch",
    "DeepSeekRate",
    "DenseSparse",
    "DiLoCo",
    "DownstreamError",
    "Filtering",
    "FineGrainedMoE",
    "HorizonRate",
    "JointMixture",
    "JointMoE",
    "Kaplan",
    "KaplanData",
    "KaplanSize",
    "Law",
    "MoESparsity",
    "MultiPower",
    "OffsetPowerLaw",
    "OptimalTimescale",
    "Overtraining",
    "ParScale",
    "ParallelPowerLaw",
    "Parameter",
    "PowerLaw",
    "PowerLawFloor",
    "PowerLinesBatch",
    "PowerLinesCriticalBatch",
    "Prior",
    "Reference",
    "Routed",
    "SGDRisk",
    "ScaleRL",
    "StepLawBatch",
    "StepLawRate",
    "StepsToTarget",
]
