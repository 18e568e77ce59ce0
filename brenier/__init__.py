"""Brenier: optimal transport over HTTP, from Python.

import brenier

client = brenier.Client("http://127.0.0.1:8000")
answer = client.transport.sinkhorn(geometry={"x": x, "y": y}, epsilon=0.1)
answer.value, answer.plan, answer.certificate.duality_gap
"""

from brenier.client import Client
from brenier.errors import BrenierError, ProblemError, Unreachable
from brenier.jobs import Job
from brenier.results import Record, RemoteArray, Result
from brenier.uploads import Dataset

__all__ = [
    "BrenierError",
    "Client",
    "Dataset",
    "Job",
    "ProblemError",
    "Record",
    "RemoteArray",
    "Result",
    "Unreachable",
]
