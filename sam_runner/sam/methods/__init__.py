"""The methods, one file each: subclasses of `sam_runner.sam.method.Method`. docs/family.md compares them."""

from sam_runner.sam.methods.ae_sam import AeSam
from sam_runner.sam.methods.around import Around, SomeSteps
from sam_runner.sam.methods.asam import Asam
from sam_runner.sam.methods.esam import Esam
from sam_runner.sam.methods.fisher_sam import FisherSam
from sam_runner.sam.methods.friendly_sam import FriendlySam
from sam_runner.sam.methods.gradient_norm import GradientNorm
from sam_runner.sam.methods.gsam import Gsam
from sam_runner.sam.methods.interval import Interval
from sam_runner.sam.methods.k_step import KStep
from sam_runner.sam.methods.late import Late
from sam_runner.sam.methods.layerwise_sam import LayerwiseSam
from sam_runner.sam.methods.looksam import LookSam
from sam_runner.sam.methods.momentum_sam import MomentumSam
from sam_runner.sam.methods.plain import Plain
from sam_runner.sam.methods.random_direction import RandomDirection
from sam_runner.sam.methods.random_sam import RandomSam
from sam_runner.sam.methods.sam import Sam
from sam_runner.sam.methods.sam_on import SamOn
from sam_runner.sam.methods.second_order import SecondOrder
from sam_runner.sam.methods.wsam import Wsam

__all__ = [
    "AeSam",
    "Around",
    "Asam",
    "Esam",
    "FisherSam",
    "FriendlySam",
    "GradientNorm",
    "Gsam",
    "Interval",
    "KStep",
    "Late",
    "LayerwiseSam",
    "LookSam",
    "MomentumSam",
    "Plain",
    "RandomDirection",
    "RandomSam",
    "Sam",
    "SamOn",
    "SecondOrder",
    "SomeSteps",
    "Wsam",
]
