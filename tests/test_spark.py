"""Inference on Spark gives what `recommend` gives on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.models import PopularModel

from models.contract import CASES, make_model, with_other_id_types
from rectools_neural import DLRMModel, DSSMModel, UserKNNModel
from rectools_neural.registry import MODELS

pytest.importorskip("pyspark", reason="Spark is not installed: pip install rectools-neural[spark]")
from rectools_neural.spark import recommend
