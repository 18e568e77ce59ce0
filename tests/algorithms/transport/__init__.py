"""Tests of the transport routines."""
