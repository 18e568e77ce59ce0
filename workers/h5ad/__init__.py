"""Answers as annotated data: `workers/h5ad/F/R.py` writes the answers of F.R."""
