"""``data.decoder=dali``: workers read and check the bytes, NVIDIA DALI decodes and crops them, on the GPU or the CPU.

The workers are the loader's own (``encoded.py``) and say what is done to each view (``arguments.py``); the main process
feeds their batches to a pipeline without any random state (``graph.py``) and hands on its tensors (``decoder.py``).
"""
