"""Time and memory of layers and models against named rivals; README.md beside this file has the results."""
from .case import Settings
from .comparisons import benchmark_attention, benchmark_growth, benchmark_layer, benchmark_model
from .machine import describe_machine
from .measure import COLUMNS
from .plot import draw_growth
