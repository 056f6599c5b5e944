"""The methods, one file each: subclasses of `sam_runner.sam.method.Method`."""

from sam_runner.sam.methods.k_step import KStep
from sam_runner.sam.methods.plain import Plain
from sam_runner.sam.methods.random_direction import RandomDirection
from sam_runner.sam.methods.sam import Sam
from sam_runner.sam.methods.second_order import SecondOrder

__all__ = ["KStep", "Plain", "RandomDirection", "Sam", "SecondOrder"]
