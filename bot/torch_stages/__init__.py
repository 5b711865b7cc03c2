"""The stages that need torch, each in a process of its own: calibrate and quantize, evaluate and draw, refresh.

The only room that joins calibration, quantize and evaluate. Nothing but `cli` imports it, and only when such a
verb is called, so that planning and publishing stay light. A module per process: AutoAWQ takes seconds to import,
and only quantizing needs it.
"""
